"""The ranks that share one optimizer step, as far as the arithmetic of the learner needs to know them."""

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Peers(Protocol):
    """All methods are collective: every rank calls them the same number of times in the same order."""

    rank: int
    """0..ranks-1"""
    ranks: int

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks, the same bits on each."""
        ...

    def largest(self, values: Tensor) -> Tensor:
        """The maximum over all ranks."""
        ...


class Alone:
    """A learner of one process."""

    rank, ranks = 0, 1

    def total(self, values: Tensor) -> Tensor:
        return values

    def largest(self, values: Tensor) -> Tensor:
        return values


class ProcessGroupPeers:
    """The ranks of a process group (None: all), over which tensors of the learner's device can be reduced."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)

    def total(self, values: Tensor) -> Tensor:
        return self._reduced(values, dist.ReduceOp.SUM)

    def largest(self, values: Tensor) -> Tensor:
        return self._reduced(values, dist.ReduceOp.MAX)

    def _reduced(self, values: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
        out = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out, op=how, group=self._group)
        return out
