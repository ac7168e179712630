"""From prompts to a batch: admit -> generate -> verify -> buffer -> take. One turn never blocks for long.

    curriculum --issue--> buffer.admit + generator.submit --poll--> verification --> buffer.finish --take--> batch
         ^                                                               |                             |
         +------------------------ requeue (error, stale, rollback) -----+-----------------------------+

Every request carries the seed `request_seed(run seed, salt, epoch, ordinal)`, so that what is sampled for a prompt does
not depend on what ran before or beside it. A prompt whose verifier raises is issued again; after `TRIES` times the
completions without a verdict count as failed, so that no prompt comes back for ever.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from controlplane.contract.documents import Phase
from trainer.model import Tokenizer
from trainer.rollout.admission import Admission
from trainer.rollout.buffer import BufferState, RolloutBuffer, renamed
from trainer.rollout.curriculum import Curriculum
from trainer.rollout.generator import Generator
from trainer.rollout.penalty import penalised
from trainer.rollout.seeds import request_seed
from trainer.rollout.verification import Verification, Verified
from trainer.settings import LengthPenalty
from trainer.stopwatch import Stopwatch
from trainer.tasks import Task
from trainer.types import Group, GroupRequest, Item, Sampling, ScoredGroup, Verdict, Version

TRIES = 3
"""Times that a prompt is generated before its completions without a verdict count as failed."""
FAILED = Verdict(-1.0, False)
PATIENCE = 0.05
"""Seconds that a turn waits for a verdict when nothing is left to generate; a signal is heard in between."""


@runtime_checkable
class Snapshots(Protocol):
    """A generator that can be put back to where it was in the middle of its completions."""

    def snapshot(self) -> Any:
        """A copy of everything in flight that nothing changes any more."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Go on from a snapshot, whatever was in flight before. It may be used any number of times."""
        ...


class Requests(tuple[GroupRequest, ...]):
    """Groups under way without their tokens, as the generator of a snapshot: any generator can begin them again."""


@dataclass(frozen=True)
class Rename:
    """Versions of one branch as seen from another: `source` is called `target`, and those before lie as far behind.
    Those after `source` are what was sampled since under names of their own, where both are the same branch."""

    source: Version
    target: Version

    def __call__(self, version: Version) -> Version:
        if version.branch != self.source.branch or version.n > self.source.n:
            return version
        return Version(self.target.branch, version.n + self.target.n - self.source.n)


@dataclass(frozen=True)
class Flight:
    """Everything between curriculum and learner at one moment between two steps."""

    pending: tuple[Item, ...]
    buffer: BufferState
    factors: Mapping[int, float]
    unverified: tuple[Group, ...]
    tries: Mapping[Item, int]
    generator: Any
    renames: tuple[Rename, ...]


class Collector:
    """Owns everything between the curriculum and the learner. Keeps no state that a checkpoint needs: what is in
    flight when the process ends was issued and not done, and is issued again."""

    def __init__(
        self,
        generator: Generator,
        curriculum: Curriculum,
        task: Task,
        tokenizer: Tokenizer,
        watch: Stopwatch,
        *,
        seed: int,
        samples: int,
        admission: Admission,
        penalty: LengthPenalty,
    ) -> None:
        self.buffer = RolloutBuffer(admission)
        self.dropped: Counter[str] = Counter()
        self.errored = 0
        """Completions without a verdict whose groups were given back, since the last report."""
        self.discarded_tokens = 0
        self._generator = generator
        self._curriculum = curriculum
        self._verification = Verification(task, tokenizer)
        self._prompts = task.prompts("train")
        self._watch = watch
        self._seed, self._samples, self._penalty = seed, samples, penalty
        self._factors: dict[int, float] = {}
        self._tries: Counter[Item] = Counter()
        self._renames: tuple[Rename, ...] = ()
        self._next_id = 0

    def turn(self, now: Version, tunables: Mapping[str, float]) -> Sequence[ScoredGroup]:
        """A batch if one is ready for the learner at version `now`; else one token step, and nothing."""
        k, size = int(tunables["max_staleness"]), int(tunables["prompts_per_step"])
        taken = self.buffer.take(now, k, size)
        if taken is not None:
            self._give_back("stale", [scored.item for scored in taken.stale], taken.stale)
            if taken.batch:
                return taken.batch
        self._generate(now, tunables, k, size)
        return ()

    def ahead(self, now: Version, tunables: Mapping[str, float]) -> None:
        """Generate until the learner, one version on, finds its next batch ready, or nothing more may be admitted.

        For the time in which the learner works on another core. Where it ends depends on no clock, so a run with it is as
        repeatable as one without.
        """
        k, size = int(tunables["max_staleness"]), int(tunables["prompts_per_step"])
        following = Version(now.branch, now.n + 1)
        while not self.buffer.serves(following, k, size):
            self._generate(now, tunables, k, size)
            if not self._generator.inflight and not self._verification.groups and not self.buffer.free(now, k, size):
                return

    def alongside(self, now: Version, tunables: Mapping[str, float], done: Callable[[], bool]) -> None:
        """Serve generators that go on by themselves, until the learner, which works elsewhere, is done. The phase stays."""
        k, size = int(tunables["max_staleness"]), int(tunables["prompts_per_step"])
        while not done():
            self._generate(now, tunables, k, size, lambda _: None)

    def _generate(
        self,
        now: Version,
        tunables: Mapping[str, float],
        k: int,
        size: int,
        enter: Callable[[Phase], None] | None = None,
    ) -> None:
        """Admit what fits, one token step, and verdicts."""
        enter = enter or self._watch.switch
        enter(Phase.generating)
        self._admit(now, tunables, self.buffer.free(now, k, size))
        groups = self._generator.poll()
        idle = not self._generator.inflight
        if groups or (idle and self._verification.groups):
            enter(Phase.verifying)
        for group in groups:
            for rename in self._renames:
                group = renamed(group, rename)
            self._verification.submit(group)
        for verified in self._verification.finished(PATIENCE if idle else 0.0):
            self._finish(verified)

    def flush(self) -> int:
        """Throw away everything between curriculum and learner; the prompts are issued again. Returns the groups lost."""
        unverified = self._verification.groups
        running, ready = self.buffer.flush()
        self.discarded_tokens += self._generator.abort() + sum(map(_tokens, unverified))
        self._verification.forget()
        self._factors.clear()
        self._tries.clear()
        self._renames = ()
        self._give_back("rollback", [*running, *(scored.item for scored in ready)], ready)
        return len(running) + len(ready)

    def flight(self) -> Flight | None:
        """What is in flight, for a snapshot in memory; None where the generator cannot tell."""
        if not isinstance(self._generator, Snapshots):
            return None
        return Flight(
            self._curriculum.pending,
            self.buffer.snapshot(),
            dict(self._factors),
            self._verification.groups,
            dict(self._tries),
            self._generator.snapshot(),
            self._renames,
        )

    def restore(self, flight: Flight, rename: Rename) -> None:
        """Put back what was in flight; the curriculum stands where it stood then, and nothing else is in flight.

        The weights that `rename` calls its target must be published before the next turn.
        """
        self._curriculum.pending = flight.pending
        self.buffer.restore(flight.buffer, rename)
        self._factors = dict(flight.factors)
        self._tries = Counter(flight.tries)
        self._put_back(flight.generator)
        self._renames = (*flight.renames, rename)
        self._next_id = max(self._next_id, *(request_id + 1 for request_id in (-1, *flight.factors)))
        for group in flight.unverified:
            self._verification.submit(renamed(group, rename))

    def _put_back(self, generator: Any) -> None:
        if not isinstance(generator, Requests):
            assert isinstance(self._generator, Snapshots)
            self._generator.restore(generator)
            return
        self._generator.abort()
        for request in generator:
            self._generator.submit(request)

    def close(self) -> None:
        """Join the threads that verify."""
        self._verification.close()

    @property
    def inflight(self) -> int:
        """Completions being generated."""
        return self._generator.inflight

    def forget_counts(self) -> None:
        """The counts since the last report have been reported."""
        self.dropped.clear()
        self.errored = 0
        self.discarded_tokens = 0

    def _admit(self, now: Version, tunables: Mapping[str, float], free: int) -> None:
        sampling = Sampling(
            temperature=tunables["temperature"],
            max_new_tokens=int(tunables["max_new_tokens"]),
            thinking_budget=int(tunables.get("thinking_budget", 0)),
        )
        for _ in range(min(free, self._generator.room // self._samples)):
            item = self._curriculum.issue()
            seed = request_seed(self._seed, self._curriculum.salt, *item)
            request = GroupRequest(self._next_id, self._prompts[item.ordinal], self._samples, sampling, seed)
            self._next_id += 1
            self._factors[request.id] = tunables.get("length_penalty", 0.0)
            self.buffer.admit(request.id, item, now)
            self._generator.submit(request)

    def _finish(self, verified: Verified) -> None:
        """Hand a verified group to the buffer, or give its prompt back."""
        group = verified.group
        item = self.buffer.item(group.request.id)
        factor = self._factors.pop(group.request.id)
        self._tries[item] += 1
        if verified.errors and self._tries[item] < TRIES:
            self.errored += verified.errors
            self.discarded_tokens += _tokens(group)
            self._give_back("error", [self.buffer.drop(group.request.id)])
            return
        del self._tries[item]
        verdicts = tuple(
            penalised(FAILED if isinstance(outcome, Exception) else outcome, len(c.tokens), factor, self._penalty)
            for outcome, c in zip(verified.outcomes, group.completions, strict=True)
        )
        self.buffer.finish(group.request.id, ScoredGroup(item, group, verdicts))

    def _give_back(self, reason: str, items: Sequence[Item], groups: Sequence[ScoredGroup] = ()) -> None:
        """Prompts that are to be issued again, and what was generated for them in vain."""
        self.discarded_tokens += sum(_tokens(scored.group) for scored in groups)
        self.dropped[reason] += len(items)
        self._curriculum.requeue(items)


def _tokens(group: Group) -> int:
    return sum(len(completion.tokens) for completion in group.completions)
