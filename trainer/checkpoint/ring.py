"""The newest checkpoints once more in memory, with what was in flight: for a rollback without the disk, and for forks.

A checkpoint on disk leaves out what is between curriculum and learner: a restart generates it again, under newer weights.
A snapshot has it all, so that what goes on from it goes on bit for bit. It is a copy in host memory (weights and optimizer,
three times the weights, and the generator's cache), and lives as long as the process.

    ring.put(Snapshot.of(digest, content, flight))      when a checkpoint has been written
    ring.get(digest) / ring.newest                      to go back to one, or to fork from it
    snapshot.content() / snapshot.flight                for everybody who restores it, any number of times
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trainer.checkpoint.shards import Shards
from trainer.checkpoint.store import Content
from trainer.rollout.collector import Flight
from trainer.types import Version


@dataclass(frozen=True)
class Snapshot:
    """One moment of a run between two steps. Never changes, however often it is restored."""

    digest: str
    """Of the checkpoint on disk that holds the same state; empty where there is none."""
    flight: Flight | None
    """What was between curriculum and learner; None where the generator cannot take snapshots."""
    _content: Content

    @classmethod
    def of(cls, digest: str, content: Content, flight: Flight | None) -> "Snapshot":
        """Copy a state that goes on changing."""
        return cls(digest, flight, _copied(content))

    @property
    def version(self) -> Version:
        """Of the weights in it."""
        return Version(*self._content.values["run"]["version"])

    def content(self) -> Content:
        """What the checkpoint holds, as a copy of its own: a learner may go on working in the tensors it is given."""
        return _copied(self._content)


class SnapshotRing:
    """The newest `size` snapshots, none where `size` is 0."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._snapshots: list[Snapshot] = []

    def put(self, snapshot: Snapshot) -> None:
        """Add the newest; the oldest goes when there is no room."""
        self._snapshots = [*self._snapshots, snapshot][-self.size :] if self.size else []

    def get(self, digest: str) -> Snapshot | None:
        """The snapshot of a checkpoint, if it is still there."""
        return next((snapshot for snapshot in self if snapshot.digest == digest), None)

    @property
    def newest(self) -> Snapshot | None:
        return self._snapshots[-1] if self._snapshots else None

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self._snapshots)


def _copied(content: Content) -> Content:
    return Content(_tensors(content.tensors), copy.deepcopy(dict(content.values)))


def _tensors(tree: Any) -> Any:
    """Deep copy, tensors in host memory; shards copy themselves where they are."""
    if isinstance(tree, Shards):
        return tree.copied()
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, Mapping):
        return {key: _tensors(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_tensors(value) for value in tree]
    return copy.deepcopy(tree)
