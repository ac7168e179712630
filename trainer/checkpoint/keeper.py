"""Checkpoints over the life of a run: writes them, follows their trials, declares them good, goes back to one."""

import time
from collections.abc import Callable
from contextlib import suppress

from controlplane.contract.documents import CheckpointState, Health, Target
from controlplane.contract.reports import CheckpointReport
from trainer.checkpoint.health import HealthSpec, Score, StepHealth, Trial, reference
from trainer.checkpoint.store import Checkpoint, CheckpointError, CheckpointStore, Content, Forks
from trainer.state import RunState


class Keeper:
    """One per process. A restart begins the trials of fresh checkpoints again: the steps that proved them may be gone."""

    def __init__(
        self, store: CheckpointStore, spec: HealthSpec, keep: int, report: Callable[[CheckpointReport], None]
    ) -> None:
        self._store = store
        self._spec = spec
        self._keep = keep
        self._report = report
        self._trials: dict[str, tuple[Checkpoint, Trial]] = {}
        self._states: tuple[CheckpointState, ...] = ()
        self._refresh()

    @property
    def states(self) -> tuple[CheckpointState, ...]:
        """What is on disk, as the observed document shows it."""
        return self._states

    def save(self, state: RunState, content: Content) -> Checkpoint | None:
        """Write a checkpoint of this state; None when the disk refused it (reported, and the run goes on).

        `settle` is due afterwards.
        """
        started = time.perf_counter()
        trial = Trial(state.step, reference(state.window), state.best)
        score = state.latest.pass_ratio if state.latest and state.latest.step == state.step else None
        try:
            checkpoint = self._store.save(state.step, state.branch, state.version.n, content, trial, score)
        except CheckpointError as error:
            stage = "verify" if error.__cause__ is None else "write"
            self._report(CheckpointReport(state.step, time.perf_counter() - started, 0, failed_stage=stage))
            return None
        self._report(CheckpointReport(state.step, time.perf_counter() - started, checkpoint.size_bytes))
        return checkpoint

    def after_step(self, step: StepHealth) -> None:
        """A step of the current branch has ended."""
        self._advance(lambda trial: trial.after_step(step))

    def after_evaluation(self, score: Score) -> None:
        """An evaluation of the current branch has ended."""
        self._advance(lambda trial: trial.after_evaluation(score))

    def newest(self) -> tuple[Checkpoint, Content] | None:
        """What to resume from, checked; None when there is nothing."""
        checkpoint = self._store.newest()
        return None if checkpoint is None else (checkpoint, self._store.load(checkpoint))

    def find(self, target: Target) -> Checkpoint:
        """The checkpoint that a rollback names.

        Raises:
            CheckpointError: it is gone or not good.
        """
        for checkpoint in self._store.all():
            if checkpoint.step == target.step and checkpoint.digest == target.digest:
                if self._store.health(checkpoint)[0] is not Health.good:
                    raise CheckpointError(f"{checkpoint.path.name} has not been proven good")
                return checkpoint
        raise CheckpointError(f"no checkpoint of step {target.step} has digest {target.digest[:12]}")

    def load(self, checkpoint: Checkpoint) -> Content:
        """What it holds.

        Raises:
            CheckpointError: its files do not match its digest.
        """
        return self._store.load(checkpoint)

    def settle(self, forks: Forks) -> list[int]:
        """What follows from a new checkpoint or a new branch: those that a branch went behind are bad, what is too many
        goes, `best.json` follows. Returns the steps of those newly bad. Safe to repeat."""
        marked = self._store.mark_abandoned(forks)
        with suppress(OSError):  # the next checkpoint tries again
            self._store.prune(self._keep)
            self._store.point_at_best()
        self._refresh()
        return [checkpoint.step for checkpoint in marked]

    def _advance(self, move: Callable[[Trial], Trial]) -> None:
        proven = False
        for name, (checkpoint, trial) in list(self._trials.items()):
            trial = move(trial)
            self._trials[name] = (checkpoint, trial)
            if trial.proven(self._spec):
                with suppress(OSError):  # the next step tries again
                    self._store.mark(checkpoint, Health.good, trial)
                    proven = True
        if proven:
            self._refresh()

    def _refresh(self) -> None:
        """Read the health of everything on disk; trials already under way go on."""
        fresh: dict[str, tuple[Checkpoint, Trial]] = {}
        for checkpoint in self._store.all():
            health, trial = self._store.health(checkpoint)
            if health is Health.fresh and trial is not None:
                name = checkpoint.path.name
                fresh[name] = self._trials.get(name, (checkpoint, trial))
        self._trials = fresh
        self._states = self._store.states()
