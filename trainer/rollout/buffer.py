"""Rollout buffer with bounded staleness: slot accounting by group, versions checked where they are used.

    waiting --admit--> inflight --finish--> ready --take--> held --release--> (slot free again)
       ^                                      |
       +----------- requeue (stale) ----------+

Capacity is (k+1) * prompts_per_step groups, from the tunables in force; a slot is occupied from admission until the
weights trained on it are published, so at most k steps of work lie between a group and the learner. `waiting` is the
free capacity. At `take` the oldest version of every group is checked against the learner's: older than k steps, or of
another branch, means dropped and its prompt requeued.

To drop as little as possible (a dropped straggler is a long one, so dropping is biased by length) the learner waits
when going on would age out a group: remaining groups, oldest first, must still fit into the coming batches before
their deadlines. Waiting ends because running completions are bounded in length and admission is bounded by capacity.
Shrinking k or the batch never deadlocks: nothing is admitted until the occupied slots fit again, and what is there is
used or dropped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.types import Item, ScoredGroup, Version


@dataclass(frozen=True)
class _Running:
    item: Item
    since: Version
    """Learner's version at admission: never newer than any token of the group."""


@dataclass(frozen=True)
class _Ready:
    scored: ScoredGroup
    since: Version


@dataclass(frozen=True)
class Taken:
    """A batch for the learner, and the prompts whose groups were too old (to be requeued)."""

    batch: tuple[ScoredGroup, ...]
    stale: tuple[Item, ...]


class RolloutBuffer:
    """Counts groups, never completions. Single-threaded: the step machine is its only user."""

    def __init__(self) -> None:
        self._running: dict[int, _Running] = {}
        self._ready: list[_Ready] = []
        self._held = 0

    def capacity(self, max_staleness: int, prompts_per_step: int) -> int:
        """Groups that may exist at once."""
        return (max_staleness + 1) * prompts_per_step

    @property
    def occupied(self) -> int:
        """Slots in use: in flight, ready and held."""
        return len(self._running) + len(self._ready) + self._held

    def free(self, max_staleness: int, prompts_per_step: int) -> int:
        """Groups that may be admitted now; 0 while a shrunken capacity is still overfull."""
        return max(0, self.capacity(max_staleness, prompts_per_step) - self.occupied)

    def admit(self, request_id: int, item: Item, now: Version) -> None:
        """A group was submitted to the generator while the learner was at `now`."""
        self._running[request_id] = _Running(item, now)

    def item(self, request_id: int) -> Item:
        """The prompt behind a request in flight."""
        return self._running[request_id].item

    def finish(self, request_id: int, scored: ScoredGroup) -> None:
        """A group came back verified."""
        self._ready.append(_Ready(scored, self._running.pop(request_id).since))

    def take(self, now: Version, max_staleness: int, prompts_per_step: int) -> Taken | None:
        """The next batch of `prompts_per_step` groups, oldest first, or None: too few are ready, or it pays to wait.

        Every completion in the batch has its oldest version within `max_staleness` of `now` and of the same branch.
        """
        fresh, stale = self._sift(now, max_staleness)
        fresh.sort(key=lambda entry: (entry.since, entry.scored.item))
        enough = len(fresh) >= prompts_per_step
        if not enough or self._must_wait(fresh[prompts_per_step:], now, max_staleness, prompts_per_step):
            if not stale:
                return None
            self._ready = fresh
            return Taken((), tuple(entry.scored.item for entry in stale))
        batch = fresh[:prompts_per_step]
        self._ready = fresh[prompts_per_step:]
        self._held += len(batch)
        return Taken(tuple(entry.scored for entry in batch), tuple(entry.scored.item for entry in stale))

    def release(self) -> None:
        """The weights trained on the held groups are published (or the step was skipped): their slots are free."""
        self._held = 0

    def flush(self) -> Sequence[Item]:
        """Forget everything (rollback, shutdown); returns the prompts that were not trained."""
        items = [running.item for running in self._running.values()]
        items += [entry.scored.item for entry in self._ready]
        self._running.clear()
        self._ready.clear()
        self._held = 0
        return items

    def counts(self, max_staleness: int, prompts_per_step: int) -> Mapping[str, int]:
        """Groups by state, and the capacity in force."""
        return {
            "waiting": self.free(max_staleness, prompts_per_step),
            "inflight": len(self._running),
            "ready": len(self._ready),
            "held": self._held,
            "capacity": self.capacity(max_staleness, prompts_per_step),
        }

    def _sift(self, now: Version, k: int) -> tuple[list[_Ready], list[_Ready]]:
        fresh: list[_Ready] = []
        stale: list[_Ready] = []
        for entry in self._ready:
            (fresh if staleness(entry.scored.group.oldest, now) <= k else stale).append(entry)
        return fresh, stale

    def _must_wait(self, rest: Sequence[_Ready], now: Version, k: int, batch: int) -> bool:
        """Whether some remaining group would miss its last batch if this one were taken now (earliest deadline first)."""
        if not self._running:
            return False
        since = sorted([entry.since.n for entry in rest] + [running.since.n for running in self._running.values()])
        return any(start + k < now.n + 1 + position // batch for position, start in enumerate(since))


def staleness(oldest: Version, now: Version) -> int:
    """Steps between two versions of one branch; across branches effectively infinite."""
    return now.n - oldest.n if oldest.branch == now.branch else 2**31
