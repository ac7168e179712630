"""One rank of the learner, as a class that its process runs: `learner_group.py` makes it a Ray actor.

What a rank is expected to refuse - a disk that is full, a checkpoint that it cannot read, a directive - it returns as a
sentence, empty when there is nothing to say. What it raises means that the rank is of no use any more.
"""

import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch._C._distributed_c10d import TCPStore

from controlplane.agent import Directive
from trainer.checkpoint.store import CheckpointError
from trainer.cluster.ballot import objection
from trainer.learn import LearnResult
from trainer.learn.sharded import ShardedLearner, join
from trainer.model import load_model
from trainer.recipe import Recipe
from trainer.sync import files
from trainer.types import ScoredGroup

R = TypeVar("R")
REMEMBERED = 100
"""Steps of which a rank still knows with what it took them."""
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Taken:
    """What one rank says of a step: everything in it must be the same on all ranks."""

    step: int
    tunables: Mapping[str, float]
    result: LearnResult


class LearnerWorker:
    """Every method but `listen`, `consider`, `keep` and `used` is collective."""

    def __init__(self, rank: int, ranks: int, recipe: Recipe, start: Path, device: str, checkpoints: Path) -> None:
        """`device` is the one that this process has; `start` a directory with the model; both as seen from here."""
        self._rank, self._ranks, self._recipe, self._start = rank, ranks, recipe, start
        self._device, self._checkpoints = torch.device(device), checkpoints
        self._store: Any = None
        self._used: deque[Taken] = deque(maxlen=REMEMBERED)
        torch.set_num_threads(max(1, int(recipe.cluster.learners.cpus)))

    def listen(self, host: str) -> int:
        """Rank 0: open the place where the ranks find each other, on one address of this machine; its port.

        Nobody is asked for a password there, so the address is that of the ranks' own network, or loopback.
        """
        door = socket.create_server((host, 0))
        port: int = door.getsockname()[1]
        self._store = TCPStore(
            host, port, self._ranks, is_master=True, wait_for_workers=False, master_listen_fd=door.detach()
        )
        return port

    def join(self, host: str, port: int, seconds: float, places: Sequence[str]) -> None:
        """Meet the other ranks and open the model. A collective that takes longer than `seconds` fails from now on.
        `places`: the address of each rank's machine."""
        self._neighbours = places.count(places[self._rank])
        if host == LOOPBACK:
            for library in ("GLOO", "NCCL"):
                os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
        if self._store is None:
            self._store = TCPStore(host, port, self._ranks, is_master=False)
        join(self._store, self._rank, self._ranks, self._device, timedelta(seconds=seconds))
        recipe = self._recipe
        model = load_model(self._start, dtype="auto")
        self._learner = ShardedLearner(model, recipe.optimizer, recipe.loss, recipe.precision, self._device)

    def step(self, step: int, groups: Sequence[ScoredGroup], tunables: Mapping[str, float], base_lr: float) -> Taken:
        """Take optimizer step `step` together."""
        self._learner.discard()
        self._learner.base_lr = base_lr
        taken = Taken(step, dict(tunables), self._learner.step(step, groups, tunables))
        self._used.append(taken)
        return taken

    def used(self) -> list[Taken]:
        """The last steps of this rank, and what was in force in each."""
        return list(self._used)

    def export(self, path: Path) -> tuple[str, str]:
        """Write the weights as generators take them; from rank 0, which writes it, the SHA-256 of the file, or why not."""
        weights = self._learner.weights()
        digest = refusal = ""
        if self._rank == 0:
            try:
                digest = files.write(path, self._learner.layout(), weights)
            except OSError as error:
                refusal = str(error)
        for _ in weights:  # the other ranks go through all of them, whatever becomes of the file
            pass
        return digest, refusal

    def keep(self, name: str, forgotten: Sequence[str]) -> None:
        """Copy the state in force into host memory under a name; forget copies that nobody names any more."""
        for old in forgotten:
            self._learner.release(old)
        self._learner.keep(name)

    def write(self, directory: Path, name: str | None) -> str:
        """Write this rank's files of the state in force, or of a copy. Why not."""
        return _refusal(self._learner.write, directory, name)

    def stage(self, source: Path | str) -> str:
        """Bring a state to where `commit` takes it from. Why not; nothing has changed then."""
        return _refusal(self._learner.stage, source)

    def commit(self) -> None:
        """Put in force what is staged."""
        self._learner.commit()

    def consider(self, directive: Directive) -> str:
        """This rank's vote: why it cannot follow."""
        together = self._learner.local_bytes * self._neighbours
        return objection(directive, self._recipe, self._checkpoints, together)

    def apply(self, function: Callable[..., R], args: Sequence[Any]) -> R:
        """Call a function with the learner of this rank, at the same time as on the others."""
        return function(self._learner, *args)


def _refusal(function: Callable[..., None], *args: Any) -> str:
    try:
        function(*args)
    except CheckpointError as error:
        return str(error)
    return ""
