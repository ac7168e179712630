"""Checkpoints and the ways back: save, resume, rollback.

    rollback:  find target -> every rank reads it -> write the state of the new branch -> put it in force -> mark bad

A rollback is a resume from a checkpoint that it writes first. Until that checkpoint is on disk nothing has changed, and
a rollback that cannot write it, or whose target a learner rank cannot read, is refused; from then on a crash resumes on the new branch. So it happens whole or not at
all, and going on after one is going on after a restart: what was in flight is generated again.

`replay` decides the data (curriculum.py has the table). With `same`, and the target still in memory with what was in
flight, that is put back too: the run then repeats bit for bit what followed the target. From the disk it does what a
fresh process does that resumes from the target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.contract.documents import Target
from trainer.checkpoint.keeper import Keeper
from trainer.checkpoint.ring import Snapshot, SnapshotRing
from trainer.checkpoint.store import Checkpoint, CheckpointError, Content
from trainer.rollout.collector import Rename
from trainer.rollout.curriculum import Replay
from trainer.session import Session
from trainer.state import RunState
from trainer.types import Item, Version


@dataclass(frozen=True)
class Rollback:
    """What a rollback has done; every field is in its event."""

    from_step: int
    target: str
    """Name of the checkpoint."""
    checkpoint: str
    """Name of that of the new branch."""
    digest: str
    source: str
    """memory or disk."""
    data: Replay
    skipped: Sequence[Item]
    """Prompts trained since the target that stay consumed."""
    abandoned: Sequence[int]
    """Steps of the checkpoints that are bad now."""
    dropped_groups: int
    """Groups that were in flight or ready, and are generated again."""


class Savepoints:
    """Takes the whole state out of the session and puts it back. Weights still have to be published afterwards, under
    the version that the state names."""

    def __init__(self, session: Session, keeper: Keeper, ring: SnapshotRing, replay: Replay) -> None:
        self.ring = ring
        self.saved_step = -1
        """Step of the newest checkpoint of this process; -1 before there is one."""
        self._session, self._keeper, self._replay = session, keeper, replay

    def save(self) -> Checkpoint | None:
        """A checkpoint of what is in force; None when the disk refused it (reported; nothing has changed)."""
        content = self._content()
        saved = self._keeper.save(self._session.state, content)
        if saved is not None:
            self._keep(saved, content)
            self._keeper.settle(self._session.state.forks)
        return saved

    def snapshot(self) -> Snapshot:
        """What is in force and in flight, in memory alone: to come back to it, or to fork from it."""
        return Snapshot.of("", self._content(), self._session.collector.flight())

    def resume(self) -> Checkpoint | None:
        """Restore the newest checkpoint that can be trusted; None when there is none and the run is new."""
        found = self._keeper.newest()
        if found is None:
            return None
        checkpoint, content = found
        self._restore(content)
        self.saved_step = checkpoint.step
        state = self._session.state
        state.version = Version(state.branch, state.version.n + 1)
        self._keeper.settle(state.forks)
        return checkpoint

    def rollback(self, target: Target, values: Mapping[str, float]) -> Rollback:
        """Go back to a good checkpoint on a new branch, with `values` among the tunables.

        Raises:
            CheckpointError: the target is gone, not good or damaged, or the new branch cannot be written. Nothing has
                changed then.
        """
        session, left = self._session, self._session.state
        checkpoint = self._keeper.find(target)
        snapshot = self.ring.get(checkpoint.digest)
        content = snapshot.content() if snapshot else self._keeper.load(checkpoint)
        state, renamed = _branched(RunState.parse(content.values["run"]), left)
        branched, skipped = session.curriculum.rewound(content.values["curriculum"], self._replay, state.branch)
        tunables = {**session.tunables, **values}
        session.learner.stage(content.tensors)
        content = Content(content.tensors, _values(state, content.values["base_lr"], branched, tunables))
        saved = self._keeper.save(state, content)
        if saved is None:
            raise CheckpointError("the checkpoint of the new branch could not be written")
        dropped = session.collector.flush()
        self._restore(content)
        session.tunables.update(values)
        session.poisoned = False
        if snapshot and snapshot.flight and self._replay == "same":
            session.collector.restore(snapshot.flight, renamed)
        self._keep(saved, self._content())  # as it is in force now: shards read from a disk have no copy in memory yet
        bad = self._keeper.settle(state.forks)
        return Rollback(
            from_step=left.step,
            target=checkpoint.path.name,
            checkpoint=saved.path.name,
            digest=saved.digest,
            source="memory" if snapshot else "disk",
            data=self._replay,
            skipped=skipped,
            abandoned=bad,
            dropped_groups=dropped,
        )

    def fork(self, snapshot: Snapshot, version: Version) -> None:
        """Go on from a snapshot with what was in flight then, under a version that was never used. Any number of times:
        forks that share a snapshot share every random number until their tunables part. Nothing is written."""
        session = self._session
        session.collector.flush()
        self._restore(snapshot.content())
        if snapshot.flight:
            session.collector.restore(snapshot.flight, Rename(session.state.version, version))
        session.state.version = version

    def _content(self) -> Content:
        session = self._session
        learner = dict(session.learner.state_dict())
        base_lr = learner.pop("base_lr")
        return Content(learner, _values(session.state, base_lr, session.curriculum.state_dict(), session.tunables))

    def _keep(self, saved: Checkpoint, content: Content) -> None:
        self.saved_step = saved.step
        if self.ring.size:
            self.ring.put(Snapshot.of(saved.digest, content, self._session.collector.flight()))

    def _restore(self, content: Content) -> None:
        """Learner, curriculum and run state, as saved; what was in flight is issued again."""
        session = self._session
        session.learner.load_state_dict({**content.tensors, "base_lr": content.values["base_lr"]})
        session.curriculum.load_state_dict(content.values["curriculum"])
        session.state = RunState.parse(content.values["run"])


def _branched(state: RunState, left: RunState) -> tuple[RunState, Rename]:
    """The target's state on a branch of its own, under a version that was never used; and how old versions are called
    there: as far behind the new one as they were behind the target's."""
    source, branch = state.version, left.branch + 1
    state.version = Version(branch, left.version.n + 1)
    state.forks = {**left.forks, branch: state.step}
    return state, Rename(source, state.version)


def _values(
    state: RunState, base_lr: float, curriculum: Mapping[str, Any], tunables: Mapping[str, float]
) -> dict[str, Any]:
    return {"run": state.dump(), "base_lr": base_lr, "curriculum": dict(curriculum), "tunables": dict(tunables)}
