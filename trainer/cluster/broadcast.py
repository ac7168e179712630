"""Weights to all generators at once, from rank 0 of the learner over NCCL; a file only for those that come up in between.

    publish ──> learner ranks: send          gather parameter by parameter, rank 0 sends   ┐ at the same time, in a group that
           └──> pool: invite every engine    join, pause, receive, go on, confirm          ┘ met before, or meets now

The group is made anew when other engines sample than at the last publication. One that is lost in the middle is given up
after its deadline like any other, but the ranks of the learner are stuck with it: they fail at the same deadline, and begin
again from the newest checkpoint. What a new group is sent first, and what is sent after a rollback, is summed up on every
engine and compared: that reads whole models back, so it is not done each time. **Tried on CPUs with TCP in place of NCCL; never on GPUs.**
"""

import functools
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch.distributed as dist

from trainer.cluster.engine import Invitation
from trainer.cluster.pool import Pool
from trainer.cluster.sync import FileSync
from trainer.sync.vllm_transfer import Elsewhere, Sender, announcement, invitations
from trainer.types import Version


@dataclass(frozen=True)
class Meeting:
    """A group of rank 0 of the learner and all workers of the engines that sample."""

    name: str
    address: str
    port: int
    members: tuple[str, ...]
    workers: int
    """Of each engine."""
    packed: bool
    deadline: float


class BroadcastSync:
    """Implements `WeightSync`.

    Args:
        files: for engines that come up.
        apply: calls a function with the learner of every rank, at once (`LearnerGroup.apply`).
        workers: of each engine.
        deadline: seconds that the ranks wait for the engines.
    """

    def __init__(
        self,
        files: FileSync,
        pool: Pool,
        apply: Callable[..., Sequence[Any]],
        workers: int,
        deadline: float,
        packed: bool = True,
    ) -> None:
        self._files, self._pool, self._apply = files, pool, apply
        self._workers, self._deadline, self._packed = workers, deadline, packed
        self._meeting: Meeting | None = None
        self._meetings, self._branch = 0, -1
        self._thread = ThreadPoolExecutor(1, "broadcast")

    def publish(self, version: Version) -> None:
        members = tuple(self._pool.sampling)
        if not members:
            self._files.publish(version)
            return
        prove = version.branch != self._branch
        if self._meeting is None or self._meeting.members != members:
            self._meeting, prove = self._arrange(members), True
        meeting, self._branch = self._meeting, version.branch
        joins = invitations(meeting.address, meeting.port, dict.fromkeys(members, self._workers), self._packed)
        info = self._apply(layout, doing="describing weights")[0]
        sending = self._thread.submit(self._apply, send, meeting, version, doing="sending weights")
        invited = {name: Invitation(meeting.name, join, info, prove) for name, join in joins.items()}
        self._pool.broadcast(invited, version, functools.cache(lambda: self._files.file(version)))
        sending.result()
        self._files.tidy()

    def _arrange(self, members: tuple[str, ...]) -> Meeting:
        self._meetings += 1
        address, port = self._apply(place, doing="finding a place to meet")[0]
        name = f"{self._meetings}:{address}:{port}"
        return Meeting(name, address, port, members, self._workers, self._packed, self._deadline)


# In the processes of the ranks

_senders: "WeakKeyDictionary[Any, tuple[str, Sender]]" = WeakKeyDictionary()


def layout(learner: Any) -> dict[str, Any]:
    """What this learner's weights are called, and their formats and shapes."""
    return announcement(learner.layout())


def place(learner: Any) -> tuple[str, int]:
    """An address of this machine that the others reach, and a port that is free there now."""
    import ray

    address = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind((address, 0))
        return address, int(free.getsockname()[1])


def send(learner: Any, meeting: Meeting, version: Version) -> None:
    """This rank's part: meet if that was not done yet, then send, or gather with the one that sends.

    Raises:
        TransferError: not everybody came, or took it, in time.
    """
    name, sender = _senders.get(learner, ("", None))
    if sender is None or name != meeting.name:
        if sender is not None:
            sender.close()
        rank, ranks = dist.get_rank(), dist.get_world_size()
        device = next(learner.model.parameters()).device
        sender = Sender(learner, rank, ranks, device, packed=meeting.packed, deadline=meeting.deadline)
        workers = [meeting.workers] * len(meeting.members)
        sender.open(Elsewhere(workers), meeting.address, meeting.port)
        _senders[learner] = meeting.name, sender
    sender.send(version)
