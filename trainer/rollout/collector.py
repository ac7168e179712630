"""From prompts to a batch: admit -> generate -> verify -> buffer -> take. One turn never blocks.

curriculum --issue--> buffer.admit + generator.submit --poll--> judge --> buffer.finish --take--> batch
     ^                                                                        |
     +----------------------------- requeue (stale, rollback) ---------------+
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from controlplane.contract.documents import Phase
from trainer.evaluate import judge
from trainer.model import Tokenizer
from trainer.rollout.buffer import RolloutBuffer
from trainer.rollout.curriculum import Curriculum
from trainer.rollout.generator import Generator
from trainer.stopwatch import Stopwatch
from trainer.tasks import Task
from trainer.types import Group, GroupRequest, Sampling, ScoredGroup, Version


class Collector:
    """Owns everything between the curriculum and the learner. Keeps no state that a checkpoint needs: what is in
    flight when the process ends was issued and not done, and is issued again."""

    def __init__(
        self,
        generator: Generator,
        curriculum: Curriculum,
        task: Task,
        tokenizer: Tokenizer,
        samples: int,
        watch: Stopwatch,
    ) -> None:
        self.buffer = RolloutBuffer()
        self.dropped: Counter[str] = Counter()
        self.discarded_tokens = 0
        self._generator = generator
        self._curriculum = curriculum
        self._task = task
        self._tokenizer = tokenizer
        self._prompts = task.prompts("train")
        self._samples = samples
        self._watch = watch
        self._next_id = 0

    def turn(self, now: Version, tunables: Mapping[str, float]) -> Sequence[ScoredGroup]:
        """A batch if one is ready for the learner at version `now`; else one token step, and nothing."""
        k, size = int(tunables["max_staleness"]), int(tunables["prompts_per_step"])
        taken = self.buffer.take(now, k, size)
        if taken is not None:
            self.dropped["stale"] += len(taken.stale)
            self._curriculum.requeue(taken.stale)
            if taken.batch:
                return taken.batch
        self._watch.switch(Phase.generating)
        self._admit(now, tunables, k, size)
        groups = self._generator.poll()
        if groups:
            self._watch.switch(Phase.verifying)
            for group in groups:
                self.buffer.finish(group.request.id, self._score(group))
        return ()

    def flush(self) -> int:
        """Throw away everything between curriculum and learner; the prompts are issued again. Returns the groups lost."""
        items = self.buffer.flush()
        self.discarded_tokens += self._generator.abort()
        self._curriculum.requeue(items)
        self.dropped["rollback"] += len(items)
        return len(items)

    @property
    def inflight(self) -> int:
        """Completions being generated."""
        return self._generator.inflight

    def forget_counts(self) -> None:
        """The counts since the last report have been reported."""
        self.dropped.clear()
        self.discarded_tokens = 0

    def _admit(self, now: Version, tunables: Mapping[str, float], k: int, size: int) -> None:
        sampling = Sampling(
            temperature=tunables["temperature"],
            max_new_tokens=int(tunables["max_new_tokens"]),
            thinking_budget=int(tunables["thinking_budget"]),
        )
        while self._generator.room >= self._samples and self.buffer.free(k, size) > 0:
            item = self._curriculum.issue()
            request = GroupRequest(self._next_id, self._prompts[item.ordinal], self._samples, sampling)
            self._next_id += 1
            self.buffer.admit(request.id, item, now)
            self._generator.submit(request)

    def _score(self, group: Group) -> ScoredGroup:
        verdicts = tuple(judge(self._task, self._tokenizer, group.request.prompt, c) for c in group.completions)
        return ScoredGroup(self.buffer.item(group.request.id), group, verdicts)
