"""A batch made ready for the learner: which completions are computed, with which advantage and weight, as tensors.

    scored groups -> effective batch (zero-variance filter) -> advantages, token weights -> rows that have a gradient

Groups of equal rewards have no gradient and are never computed; without the filter they still count in every denominator,
as in the paper's ablation. Completions cut by the length limit carry no loss under `mask_truncated`, but their rewards
count in the mean of their group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from trainer.learn.advantage import advantages
from trainer.learn.weights import token_weights
from trainer.settings import Loss
from trainer.types import Completion, ScoredGroup


@dataclass(frozen=True)
class Batch:
    """Sequences, longest first; N of them, W the longest. Padding is on the right."""

    tokens: Tensor
    """[N, W] prompt and completion."""
    behaviour: Tensor
    """[N, W] log-probability as sampled; meaningless where there is no loss."""
    carries: Tensor
    """[N, W] true for tokens that carry loss."""
    group: Tensor
    """[N] sequences of one group share their prompt."""
    prompt: Tensor
    """[N] tokens of the prompt."""
    length: Tensor
    """[N] tokens of prompt and completion."""
    advantage: Tensor
    """[N]"""
    weight: Tensor
    """[N] of each token that carries loss."""
    temperature: Tensor
    """[N]"""

    def halves(self) -> tuple[tuple["Batch", int], ...]:
        """Every other prompt, and the rest, each with its number of prompts; the batch as it is where there is only one."""
        present, rank = torch.unique(self.group, return_inverse=True)
        if len(present) < 2:
            return ((self, len(present)),)
        return tuple((self._rows(rank % 2 == odd), (len(present) + 1 - odd) // 2) for odd in (0, 1))

    def _rows(self, which: Tensor | slice) -> "Batch":
        return Batch(**{part.name: getattr(self, part.name)[which] for part in fields(self)})

    def owners(self, ranks: int) -> Tensor:
        """[N] which of `ranks` computes each sequence: shares of about as many tokens. Neighbours share a prompt."""
        order = torch.argsort(self.group, stable=True)
        upto = self.length[order].cumsum(0)
        middle = upto - self.length[order] / 2
        owners = torch.empty_like(order)
        owners[order] = (middle * ranks / upto[-1]).long().clamp(max=ranks - 1)
        return owners

    def micro_batches(self, budget: int, rank: int = 0, ranks: int = 1) -> Iterator["Batch"]:
        """This rank's sequences in slices of similar lengths, at most `budget` tokens each, padding included (one
        sequence at least). As many slices on every rank: where a rank has fewer, it gets `nothing` for the rest."""
        owners = self.owners(ranks)
        cuts = [_cuts(self.length[owners == each].tolist(), budget) for each in range(ranks)]
        mine = self._rows(owners == rank)
        for rows, longest in cuts[rank]:
            part = mine._rows(rows)
            yield replace(
                part, **{name: getattr(part, name)[:, :longest] for name in ("tokens", "behaviour", "carries")}
            )
        for _ in range(max(map(len, cuts)) - len(cuts[rank])):
            yield self._nothing()

    def _nothing(self) -> "Batch":
        """One short sequence without a token that carries loss: all zero gradients, and no statistics."""
        row = self._rows(slice(1))
        two = {name: torch.zeros_like(getattr(row, name)[:, :2]) for name in ("tokens", "behaviour", "carries")}
        return replace(row, **two, prompt=torch.full_like(row.prompt, 1), length=torch.full_like(row.length, 2))

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(**{part.name: getattr(self, part.name).to(device) for part in fields(self)})


def _cuts(lengths: Sequence[int], budget: int) -> list[tuple[slice, int]]:
    """Where sequences, longest first, are cut into slices, each with its longest."""
    cuts, start = [], 0
    while start < len(lengths):
        rows = slice(start, start + max(1, budget // lengths[start]))
        cuts.append((rows, lengths[start]))
        start = rows.stop
    return cuts


@dataclass(frozen=True)
class _Row:
    """One completion of the effective batch."""

    scored: ScoredGroup
    completion: Completion
    group: int
    count: int
    """Tokens that carry loss."""

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.scored.group.request.prompt.tokens

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion.tokens)


def assemble(groups: Sequence[ScoredGroup], loss: Loss) -> tuple[Batch, float] | None:
    """The batch, in host memory, and the standard deviation of its centred rewards; None where nothing has a gradient."""
    counted = [group for group in groups if group.signal == "mixed" or not loss.zero_variance_filter]
    if not any(group.signal == "mixed" for group in counted):
        return None
    grouped, std = advantages([group.rewards for group in counted], loss.advantage)
    rows = [
        _Row(scored, completion, index, _loss_tokens(completion, loss.mask_truncated))
        for index, scored in enumerate(counted)
        for completion in scored.group.completions
    ]
    weights = token_weights([row.count for row in rows], [row.group for row in rows], loss.aggregation)
    values = [advantage for group in grouped for advantage in group]
    computed = [
        (row, advantage, weight)
        for row, advantage, weight in zip(rows, values, weights, strict=True)
        if row.count and row.scored.signal == "mixed"
    ]
    if not computed:
        return None
    computed.sort(key=lambda entry: -entry[0].length)
    return _tensors([entry[0] for entry in computed], [e[1] for e in computed], [e[2] for e in computed]), std


def _loss_tokens(completion: Completion, mask_truncated: bool) -> int:
    return 0 if mask_truncated and completion.finish == "length" else sum(completion.loss_mask)


def _tensors(rows: Sequence[_Row], advantage: Sequence[float], weight: Sequence[float]) -> Batch:
    prompt = torch.tensor([len(row.prompt) for row in rows])
    length = torch.tensor([row.length for row in rows])
    at = torch.arange(int(length[0])).expand(len(rows), -1)
    real = at < length.unsqueeze(1)
    completion = real & (at >= prompt.unsqueeze(1))

    def laid_out(where: Tensor, values: Tensor) -> Tensor:
        out = torch.zeros(where.shape, dtype=values.dtype)
        out[where] = values
        return out

    return Batch(
        tokens=laid_out(real, torch.tensor([token for row in rows for token in row.prompt + row.completion.tokens])),
        behaviour=laid_out(completion, torch.tensor([x for row in rows for x in row.completion.logprobs])),
        carries=laid_out(completion, torch.tensor([x for row in rows for x in row.completion.loss_mask])),
        group=torch.tensor([row.group for row in rows]),
        prompt=prompt,
        length=length,
        advantage=torch.tensor(advantage, dtype=torch.float32),
        weight=torch.tensor(weight, dtype=torch.float32),
        temperature=torch.tensor([row.scored.group.request.sampling.temperature for row in rows]),
    )
