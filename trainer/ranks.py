"""`controlplane.agent.Ranks` over torch.distributed: one small broadcast per step boundary, one vote per decision."""

import torch
import torch.distributed as dist

from controlplane.agent import MESSAGE_BYTES

_HEAD = 4  # bytes of the length


class TorchRanks:
    """The ranks of a process group (None: all). Its tensors lie on `device`: "cpu" for gloo, the rank's GPU for NCCL.

    A rank that is late or gone makes the collective fail after the timeout of the group, as it does in training.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, device: str | torch.device = "cpu") -> None:
        self._group, self._device = group, device
        self._source = 0 if group is None else dist.get_global_rank(group, 0)
        self._leads = dist.get_rank(group) == 0

    def broadcast(self, message: bytes) -> bytes:
        """What rank 0 of the group passes."""
        buffer = torch.zeros(_HEAD + MESSAGE_BYTES, dtype=torch.uint8)
        if self._leads:
            if len(message) > MESSAGE_BYTES:
                raise ValueError(f"a message has {len(message)} bytes; at most {MESSAGE_BYTES} can be sent")
            content = len(message).to_bytes(_HEAD, "big") + message
            buffer[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        buffer = buffer.to(self._device)
        dist.broadcast(buffer, src=self._source, group=self._group)
        content = bytes(buffer.cpu().tolist())
        return content[_HEAD : _HEAD + int.from_bytes(content[:_HEAD], "big")]

    def all_agree(self, yes: bool) -> bool:
        """Whether every rank of the group says yes."""
        votes = torch.tensor([int(yes)], dtype=torch.int32, device=self._device)
        dist.all_reduce(votes, op=dist.ReduceOp.MIN, group=self._group)
        return bool(votes.item())
