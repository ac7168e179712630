"""The learner ranks as one learner: `Learner` for the step machine, whose ranks are Ray actors in one process group.

    driver                                   rank 0 .. rank n-1
      step     batch, once, by object store ->  own sequences, summed gradients -> results, which must be equal
      save     directory                    ->  every rank its own files
      restore  stage ->  all have read it?  ->  commit ->  all have it in force
      vote     directive ->  objections, if any
      export   path ->  parameter by parameter to rank 0, which writes the file

Every call has a deadline. A rank that dies, fails or is late makes the group useless, because the others wait for it in a
collective: all of them are killed, `LearnerLost` says which rank and what it was doing, and so does every later call. The
run goes on with a new group, from the newest checkpoint.

A restore that broke while it was put in force, in the middle of a run, leaves a decision that nobody can answer for. The
file `poison` then says so, and no group starts while it is there: a person looks, and removes it.
"""

import itertools
import json
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from controlplane.agent import Directive
from controlplane.contract.rundir import write_atomic
from trainer.checkpoint.shards import StoredShards
from trainer.checkpoint.store import CheckpointError
from trainer.cluster.learner_worker import LOOPBACK, LearnerWorker, Taken
from trainer.cluster.learners import LearnerLost, Limits, Poisoned
from trainer.learn import LearnResult
from trainer.learn.conversion import shard
from trainer.recipe import Recipe
from trainer.types import ScoredGroup

R = TypeVar("R")
GRACE = 15.0
"""Seconds that the other ranks get to say something after one has failed: the first to fail is often not the cause."""
PULSE = 5.0
"""Seconds within which a rank that is alive says so, whatever it computes."""


class LearnerGroup:
    """Implements `Learner`. One thread at a time."""

    def __init__(
        self, recipe: Recipe, start: Path, *, gpus: int, checkpoints: Path, poison: Path, limits: Limits | None = None
    ) -> None:
        """`gpus` of each rank, 0 or 1; ranks, cores and placement are those of the recipe. Paths must mean the same on
        every machine.

        Raises:
            Poisoned: the file `poison` is there.
            LearnerLost: not all ranks could be started in time.
        """
        if poison.exists():
            raise Poisoned(
                f"a restore broke while it was put in force: {json.loads(poison.read_text())['reason']}. Compare the last "
                f"decision in control.jsonl with the newest checkpoint, from which the run goes on; then remove {poison}"
            )
        self.base_lr = recipe.optimizer.lr
        self._limits, self._poison, self._checkpoints = limits or Limits(), poison, checkpoints
        self._ranks = recipe.cluster.learners.ranks
        self._lost: LearnerLost | None = None
        self._actors: list[Any] = []
        self._names, self._forgotten = itertools.count(), list[str]()
        self._staged: object = None
        self._resumed = False
        self._placement: Any = None
        self._start(recipe, start, gpus)

    # Learner

    def step(self, step: int, groups: Sequence[ScoredGroup], tunables: Mapping[str, float]) -> LearnResult:
        """Take a step on all ranks; the batch goes to each machine once.

        Raises:
            LearnerLost: see the top; also when the ranks do not say the same about the step.
        """
        self._staged, self._resumed = None, True
        batch = ray.put(list(groups))
        doing, began = f"step {step}", time.monotonic()
        taken: list[Taken] = self._each("step", step, batch, dict(tunables), self.base_lr, doing=doing)
        for rank, other in enumerate(taken):
            if repr(other) != repr(taken[0]):  # NaN equals itself here
                raise self._lose(rank, doing, began, f"says something else than rank 0 ({other} and {taken[0]})")
        return taken[0].result

    def state_dict(self) -> dict[str, Any]:
        """The state in force, which stays where it is."""
        return {"shards": _InForce(self), "base_lr": self.base_lr}

    def stage(self, state: Mapping[str, Any]) -> None:
        """Every rank reads a state into host memory. Until `load_state_dict` nothing has changed.

        Raises:
            CheckpointError: a rank could not.
        """
        shards = state["shards"] if "shards" in state else state["model"]
        if self._staged is shards:
            return
        self._staged = None
        with self._source(state) as source:
            self._unless_refused("stage", source, doing="reading a state")
        self._staged = shards

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a state in force on every rank, bit for bit.

        Raises:
            CheckpointError: a rank cannot read it; nothing has changed.
            LearnerLost: a rank was lost; in the middle of a run that poisons it (see the top).
        """
        self.stage(state)
        self._staged = None
        try:
            self._each("commit", doing="putting a state in force")
        except LearnerLost as error:
            if self._resumed:
                write_atomic(self._poison, json.dumps({"reason": str(error), "at": time.time()}) + "\n", durable=True)
            raise
        self.base_lr, self._resumed = state["base_lr"], True

    # What else the driver wants of the ranks

    def export(self, path: Path) -> str:
        """Write the weights into a file as generators take them (trainer/sync/files.py); its SHA-256.

        Raises:
            OSError: rank 0 could not write it.
        """
        digest, refusal = self._each("export", path, doing="exporting weights")[0]
        if refusal:
            raise OSError(f"learner rank 0 could not write the weights: {refusal}")
        return str(digest)

    def vote(self, directive: Directive) -> str:
        """What stands in the way of a directive, on any rank; for `Agent(check=...)`, so that it is carried out by all or
        by none."""
        objections = self._each("consider", directive, doing="voting", seconds=self._limits.vote)
        return next((f"learner rank {rank}: {said}" for rank, said in enumerate(objections) if said), "")

    def used(self) -> list[list[Taken]]:
        """Of every rank, its last steps and what was in force in each."""
        return self._each("used", doing="telling its steps", seconds=self._limits.vote)

    def apply(self, function: Callable[..., R], *args: Any, doing: str) -> list[R]:
        """Call `function(learner, *args)` on every rank at once, where `learner` is its `ShardedLearner`."""
        return self._each("apply", function, args, doing=doing)

    @property
    def processes(self) -> list[tuple[str, int]]:
        """Address of its machine and process id, of every rank."""
        return self._each("where", doing="telling where it is", seconds=self._limits.vote)

    def close(self) -> None:
        """End the processes. May be called twice."""
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        self._actors = []
        if self._placement is not None:
            remove_placement_group(self._placement)
            self._placement = None

    # For the handles below

    def keep(self) -> "_Kept":
        """A copy of the state in force in the memory of the ranks, as long as somebody names it."""
        forgotten, self._forgotten = self._forgotten, []
        kept = _Kept(self, f"copy-{next(self._names)}")
        weakref.finalize(kept, self._forgotten_in_time, kept.name)
        self._each("keep", kept.name, forgotten, doing="copying its state")
        return kept

    def write(self, directory: Path, name: str | None) -> None:
        """Every rank writes its files.

        Raises:
            CheckpointError: a rank could not.
        """
        self._unless_refused("write", directory, name, doing="writing a checkpoint")

    def _forgotten_in_time(self, name: str) -> None:
        self._forgotten.append(name)

    # Calls

    def _start(self, recipe: Recipe, start: Path, gpus: int) -> None:
        spec, began, doing = recipe.cluster.learners, time.monotonic(), "starting"
        bundle = {"CPU": spec.cpus, **({"GPU": gpus} if gpus else {})}
        self._placement = placement_group([bundle] * self._ranks, strategy=spec.placement)
        try:
            ray.get(self._placement.ready(), timeout=self._limits.start)
        except (GetTimeoutError, RayError) as error:
            raise self._lose(0, doing, began, "found no devices, or not with this placement,") from error
        actors: Any = ray.remote  # its types do not know of concurrency groups
        kind = actors(concurrency_groups={"pulse": 1}, max_restarts=0, max_task_retries=0)(_Rank)
        for rank in range(self._ranks):
            where = PlacementGroupSchedulingStrategy(self._placement, placement_group_bundle_index=rank)
            actor = kind.options(num_cpus=spec.cpus, num_gpus=gpus, scheduling_strategy=where)
            device = "cuda" if gpus else "cpu"
            self._actors.append(actor.remote(rank, self._ranks, recipe, start, device, self._checkpoints))
        places = self._each("where", doing=doing, seconds=self._limits.start)
        addresses = [address for address, _ in places]
        host = LOOPBACK if len(set(addresses)) == 1 else addresses[0]
        [port] = self._gather({self._actors[0].listen.remote(host): 0}, doing, self._limits.vote)
        self._each("join", host, port, self._limits.work, addresses, doing=doing, seconds=self._limits.start)

    @contextmanager
    def _source(self, state: Mapping[str, Any]) -> Iterator[Path | str]:
        """What a rank can stage. The state of a learner of one process is written as shards first."""
        shards = state.get("shards")
        if shards is not None:
            yield shards.path if isinstance(shards, StoredShards) else shards.name
            return
        with TemporaryDirectory(dir=self._checkpoints, prefix=".sharding-", ignore_cleanup_errors=True) as directory:
            shard(state, Path(directory))
            yield Path(directory)

    def _unless_refused(self, method: str, *args: Any, doing: str) -> None:
        refusals = self._each(method, *args, doing=doing)
        for rank, refusal in enumerate(refusals):
            if refusal:
                raise CheckpointError(f"learner rank {rank}: {refusal}")

    def _each(self, method: str, *args: Any, doing: str, seconds: float | None = None) -> list[Any]:
        """What every rank returns from a method."""
        if self._lost is not None:
            raise self._lost
        calls = {getattr(actor, method).remote(*args): rank for rank, actor in enumerate(self._actors)}
        return self._gather(calls, doing, seconds or self._limits.work)

    def _gather(self, calls: dict[Any, int], doing: str, seconds: float) -> list[Any]:
        began, waiting = time.monotonic(), dict(calls)
        answers: dict[int, Any] = {}
        failures: dict[int, str] = {}
        deadline = began + seconds
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            rank = waiting.pop(ready[0])
            try:
                answers[rank] = ray.get(ready[0])
            except RayActorError as error:
                raise self._lose(rank, doing, began, "died") from error
            except RayTaskError as error:
                failures[rank] = _last_line(error)
                deadline = min(deadline, time.monotonic() + GRACE)
        if failures:
            rank = min(failures)
            raise self._lose(rank, doing, began, f"failed ({failures[rank]})")
        if waiting:
            raise self._lose(self._silent(list(waiting.values())), doing, began, "was not done")
        return [answers[rank] for rank in calls.values()]

    def _silent(self, ranks: Sequence[int]) -> int:
        """Which of the ranks that are late does not even say that it is alive; the first of them where all do."""
        pulses = {self._actors[rank].pulse.remote(): rank for rank in ranks}
        ready, silent = ray.wait(list(pulses), num_returns=len(pulses), timeout=PULSE)
        dead = [pulses[pulse] for pulse in ready if not _answers(pulse)]
        return min([*dead, *(pulses[pulse] for pulse in silent)] or ranks)

    def _lose(self, rank: int, doing: str, began: float, what: str) -> LearnerLost:
        self._lost = LearnerLost(rank, doing, time.monotonic() - began, what)
        self.close()
        return self._lost


class _Rank(LearnerWorker):
    """The process of one rank; a pulse is answered in a thread of its own."""

    def where(self) -> tuple[str, int]:
        address: str = ray.util.get_node_ip_address()
        return address, os.getpid()

    @ray.method(concurrency_group="pulse")  # type: ignore[untyped-decorator]
    def pulse(self) -> bool:
        return True


@dataclass(frozen=True)
class _InForce:
    """Implements `Shards`: the state that goes on changing."""

    group: LearnerGroup

    def write(self, directory: Path) -> None:
        self.group.write(directory, None)

    def copied(self) -> "_Kept":
        return self.group.keep()


@dataclass(frozen=True, eq=False)
class _Kept:
    """Implements `Shards`: a copy in the memory of the ranks, which goes when nobody has this any more."""

    group: LearnerGroup
    name: str

    def write(self, directory: Path) -> None:
        self.group.write(directory, self.name)

    def copied(self) -> "_Kept":
        return self


def _answers(pulse: Any) -> bool:
    try:
        return bool(ray.get(pulse))
    except RayError:
        return False


def _last_line(error: RayTaskError) -> str:
    return str(error).strip().splitlines()[-1]
