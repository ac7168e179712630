"""vLLM's NCCL transfer on a CPU: its own classes on both ends, and a communicator over TCP where NCCL would be.

Imported in the workers because `Extension` is given as their extension class. Only the unpacked path: the packed one needs
CUDA streams.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer import nccl_common

from trainer.sync.vllm_backend import Extension

__all__ = ["Extension", "TcpCommunicator"]


class TcpCommunicator:
    """What vLLM's engines use of PyNcclCommunicator."""

    def __init__(self, address: str, port: int, rank: int, world_size: int, device: Any = None) -> None:
        self._rank = rank
        self._group = StatelessProcessGroup.create(host=address, port=port, rank=rank, world_size=world_size)

    def broadcast(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        sent = self._group.broadcast_obj(tensor if self._rank == src else None, src)
        if self._rank != src:
            tensor.copy_(sent)

    def destroy(self) -> None:
        self._group = None  # type: ignore[assignment]


def install() -> None:
    """Put it where vLLM looks for NCCL."""
    nccl_common.stateless_init_process_group = TcpCommunicator
    torch.cuda.current_stream = lambda device=None: None  # type: ignore[assignment]
    torch.accelerator.current_device_index = lambda: 0


install()
