"""Rollout buffer with bounded staleness: slot accounting by group, versions checked where they are used.

    waiting --admit--> inflight --finish--> ready --take--> held --release--> (slot free again)
       ^                  |                   |
       +------ drop (error) or requeue (stale) +

A slot is occupied from admission until the weights trained on it are published. How many there are, when a group may be
admitted and when a batch may be taken is the admission policy's (admission.py). Whatever the policy: at `take` the oldest
version of every group is checked against the learner's, and a group that is too old, or of another branch, is dropped
and its prompt requeued.

To drop as little as possible (a dropped straggler is a long one, so dropping is biased by length) both policies let the
learner wait when going on would age out a group. Waiting ends because running completions are bounded in length and
admission is bounded by capacity. Shrinking k or the batch never deadlocks: nothing is admitted until the occupied slots
fit again, and what is there is used or dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from trainer.rollout.admission import Admission, Load, Pipeline
from trainer.types import Group, Item, ScoredGroup, Version

Rename = Callable[[Version], Version]


@dataclass(frozen=True)
class _Running:
    item: Item
    since: Version
    """Learner's version at admission: never newer than any token of the group."""


@dataclass(frozen=True)
class _Ready:
    scored: ScoredGroup
    since: Version
    oldest: Version


@dataclass(frozen=True)
class Taken:
    """A batch for the learner, and the groups that were too old (their prompts are to be requeued)."""

    batch: tuple[ScoredGroup, ...]
    stale: tuple[ScoredGroup, ...]


@dataclass(frozen=True)
class BufferState:
    """Everything in a buffer, for a snapshot."""

    running: Mapping[int, _Running]
    ready: tuple[_Ready, ...]


class RolloutBuffer:
    """Counts groups, never completions. Single-threaded: the step machine is its only user."""

    def __init__(self, admission: Admission | None = None) -> None:
        self._admission = admission or Pipeline()
        self._running: dict[int, _Running] = {}
        self._ready: list[_Ready] = []
        self._held = 0

    @property
    def occupied(self) -> int:
        """Slots in use: in flight, ready and held."""
        return len(self._running) + len(self._ready) + self._held

    def free(self, now: Version, max_staleness: int, prompts_per_step: int) -> int:
        """Groups that may be admitted now; 0 while a shrunken capacity is still overfull."""
        return self._admission.free(self._load(self._ready, now, max_staleness, prompts_per_step))

    def admit(self, request_id: int, item: Item, now: Version) -> None:
        """A group was submitted to the generator while the learner was at `now`."""
        self._running[request_id] = _Running(item, now)

    def item(self, request_id: int) -> Item:
        """The prompt behind a request in flight."""
        return self._running[request_id].item

    def finish(self, request_id: int, scored: ScoredGroup) -> None:
        """A group came back verified."""
        self._ready.append(_Ready(scored, self._running.pop(request_id).since, scored.group.oldest))

    def drop(self, request_id: int) -> Item:
        """A group came back without verdicts: its slot is free and its prompt is to be requeued."""
        return self._running.pop(request_id).item

    def serves(self, now: Version, max_staleness: int, prompts_per_step: int) -> bool:
        """Whether `take` at version `now` would hand over a batch."""
        fresh, _ = self._sift(now, self._admission.bound(max_staleness))
        fresh.sort(key=lambda entry: entry.since)
        return self._admission.serves(self._load(fresh, now, max_staleness, prompts_per_step))

    def take(self, now: Version, max_staleness: int, prompts_per_step: int) -> Taken | None:
        """The next batch of `prompts_per_step` groups, oldest first, or None: too few are ready, or it pays to wait.

        Every completion in the batch has its oldest version within the policy's bound of `now` and of the same branch.
        """
        fresh, stale = self._sift(now, self._admission.bound(max_staleness))
        fresh.sort(key=lambda entry: (entry.since, entry.scored.item))
        self._ready = fresh
        batch: list[_Ready] = []
        if self._admission.serves(self._load(fresh, now, max_staleness, prompts_per_step)):
            batch, self._ready = fresh[:prompts_per_step], fresh[prompts_per_step:]
            self._held += len(batch)
        if not batch and not stale:
            return None
        return Taken(tuple(entry.scored for entry in batch), tuple(entry.scored for entry in stale))

    def release(self) -> None:
        """The weights trained on the held groups are published (or the step was skipped): their slots are free."""
        self._held = 0

    def flush(self) -> tuple[Sequence[Item], Sequence[ScoredGroup]]:
        """Forget everything (rollback, shutdown); returns the prompts in flight, and the groups that were ready."""
        running, ready = [running.item for running in self._running.values()], [entry.scored for entry in self._ready]
        self._running.clear()
        self._ready.clear()
        self._held = 0
        return running, ready

    def counts(self, now: Version, max_staleness: int, prompts_per_step: int) -> Mapping[str, int]:
        """Groups by state, and the capacity in force."""
        return {
            "waiting": self.free(now, max_staleness, prompts_per_step),
            "inflight": len(self._running),
            "ready": len(self._ready),
            "held": self._held,
            "capacity": self._admission.capacity(max_staleness, prompts_per_step),
        }

    def snapshot(self) -> BufferState:
        """What is in flight and ready between two steps."""
        return BufferState(dict(self._running), tuple(self._ready))

    def restore(self, state: BufferState, rename: Rename) -> None:
        """Hold what a snapshot held, under other names for its versions."""
        self._running = {i: replace(running, since=rename(running.since)) for i, running in state.running.items()}
        self._ready = [
            _Ready(
                replace(entry.scored, group=renamed(entry.scored.group, rename)),
                rename(entry.since),
                rename(entry.oldest),
            )
            for entry in state.ready
        ]
        self._held = 0

    def _load(self, ready: Sequence[_Ready], now: Version, k: int, batch: int) -> Load:
        running = [running.since.n for running in self._running.values()]
        return Load(now.n, running, [entry.since.n for entry in ready], self._held, k, batch)

    def _sift(self, now: Version, bound: int) -> tuple[list[_Ready], list[_Ready]]:
        fresh: list[_Ready] = []
        stale: list[_Ready] = []
        for entry in self._ready:
            (fresh if staleness(entry.oldest, now) <= bound else stale).append(entry)
        return fresh, stale


def staleness(oldest: Version, now: Version) -> int:
    """Steps between two versions of one branch; across branches effectively infinite."""
    return now.n - oldest.n if oldest.branch == now.branch else 2**31


def renamed(group: Group, rename: Rename) -> Group:
    """The group with other names for the versions that sampled it."""
    completions = tuple(
        replace(completion, spans=tuple(replace(span, version=rename(span.version)) for span in completion.spans))
        for completion in group.completions
    )
    return replace(group, completions=completions)
