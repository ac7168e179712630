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

from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

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
class _Since:
    """Groups by the learner's version at their admission; a version without groups has no entry."""

    running: Counter[int] = field(default_factory=Counter)
    ready: Counter[int] = field(default_factory=Counter)

    def gone(self, groups: Counter[int], since: Version) -> None:
        """One group less."""
        groups[since.n] -= 1
        if not groups[since.n]:
            del groups[since.n]


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
        """In the order in which they are taken."""
        self._since = _Since()
        self._held = 0

    @property
    def occupied(self) -> int:
        """Slots in use: in flight, ready and held."""
        return len(self._running) + len(self._ready) + self._held

    def free(self, now: Version, max_staleness: int, prompts_per_step: int) -> int:
        """Groups that may be admitted now; 0 while a shrunken capacity is still overfull."""
        return self._admission.free(self._load(self._since.ready, now, max_staleness, prompts_per_step))

    def admit(self, request_id: int, item: Item, now: Version) -> None:
        """A group was submitted to the generator while the learner was at `now`."""
        self._running[request_id] = _Running(item, now)
        self._since.running[now.n] += 1

    def item(self, request_id: int) -> Item:
        """The prompt behind a request in flight."""
        return self._running[request_id].item

    def finish(self, request_id: int, scored: ScoredGroup) -> None:
        """A group came back verified."""
        since = self._left(request_id).since
        insort(self._ready, _Ready(scored, since, scored.group.oldest), key=_order)
        self._since.ready[since.n] += 1

    def drop(self, request_id: int) -> Item:
        """A group came back without verdicts: its slot is free and its prompt is to be requeued."""
        return self._left(request_id).item

    def serves(self, now: Version, max_staleness: int, prompts_per_step: int) -> bool:
        """Whether `take` at version `now` would hand over a batch."""
        ready = self._since.ready
        if stale := self._stale(now, self._admission.bound(max_staleness)):
            ready = ready - Counter(entry.since.n for entry in stale)
        return self._admission.serves(self._load(ready, now, max_staleness, prompts_per_step))

    def take(self, now: Version, max_staleness: int, prompts_per_step: int) -> Taken | None:
        """The next batch of `prompts_per_step` groups, oldest first, or None: too few are ready, or it pays to wait.

        Every completion in the batch has its oldest version within the policy's bound of `now` and of the same branch.
        """
        bound = self._admission.bound(max_staleness)
        stale = self._stale(now, bound)
        self._remove(stale)
        batch: list[_Ready] = []
        if self._admission.serves(self._load(self._since.ready, now, max_staleness, prompts_per_step)):
            batch = self._ready[:prompts_per_step]
            late = [
                entry for entry in batch if staleness(entry.oldest, now) > bound
            ]  # none: but nothing is taken on trust
            self._remove(late or batch)
            stale, batch = [*stale, *late], [] if late else batch
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
        self._since = _Since()
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
        ready = (
            _Ready(
                replace(entry.scored, group=renamed(entry.scored.group, rename)),
                rename(entry.since),
                rename(entry.oldest),
            )
            for entry in state.ready
        )
        self._ready = sorted(ready, key=_order)
        self._since = _Since(
            Counter(running.since.n for running in self._running.values()),
            Counter(entry.since.n for entry in self._ready),
        )
        self._held = 0

    def _load(self, ready: Mapping[int, int], now: Version, k: int, batch: int) -> Load:
        return Load(now.n, self._since.running, ready, self._held, k, batch)

    def _left(self, request_id: int) -> _Running:
        """A group is no longer in flight."""
        running = self._running.pop(request_id)
        self._since.gone(self._since.running, running.since)
        return running

    def _stale(self, now: Version, bound: int) -> list[_Ready]:
        """Ready groups that are too old. No token is older than its group's admission, so they are among the first."""
        suspects = takewhile(lambda entry: staleness(entry.since, now) > bound, self._ready)
        return [entry for entry in suspects if staleness(entry.oldest, now) > bound]

    def _remove(self, entries: Sequence[_Ready]) -> None:
        """Ready groups that are not ready any more; all of them are among the first."""
        if not entries:
            return
        gone = {id(entry) for entry in entries}
        last = bisect_right(self._ready, _order(entries[-1]), key=_order)
        self._ready[:last] = [entry for entry in self._ready[:last] if id(entry) not in gone]
        for entry in entries:
            self._since.gone(self._since.ready, entry.since)


def _order(entry: _Ready) -> tuple[Version, Item]:
    """Oldest first; of the same age in the order of the prompts."""
    return entry.since, entry.scored.item


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
