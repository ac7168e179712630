"""Verdicts of finished groups: in line for a quick task, in threads for a slow one, while generation goes on.

A verifier that raises has no opinion: its exception stands where the verdict would be. `finished` hands groups over in
the order in which they were submitted among those that are done, so that threads do not decide the order of anything
that is ready at the same time.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from trainer.evaluate import judge
from trainer.model import Tokenizer
from trainer.tasks import Task
from trainer.types import Completion, Group, Prompt, Verdict

Outcome = Verdict | Exception


@dataclass(frozen=True)
class Verified:
    """A group and what its verifier said, or raised, about each completion."""

    group: Group
    outcomes: tuple[Outcome, ...]

    @property
    def errors(self) -> int:
        """Completions without a verdict."""
        return sum(isinstance(outcome, Exception) for outcome in self.outcomes)


_Pending = tuple[Group, Sequence[Future[Outcome]]]


class Verification:
    """`task.workers` threads; none where that is 0. Close it when the run ends."""

    def __init__(self, task: Task, tokenizer: Tokenizer) -> None:
        self._task = task
        self._tokenizer = tokenizer
        self._pool = ThreadPoolExecutor(task.workers, "verify") if task.workers else None
        self._pending: list[_Pending] = []
        self._done: list[Verified] = []

    @property
    def groups(self) -> tuple[Group, ...]:
        """Groups that were submitted and not handed over yet."""
        return (*(verified.group for verified in self._done), *(group for group, _ in self._pending))

    def submit(self, group: Group) -> None:
        """Verify every completion of a group."""
        prompt = group.request.prompt
        if self._pool is None:
            self._done.append(Verified(group, tuple(self._verify(prompt, c) for c in group.completions)))
        else:
            self._pending.append((group, [self._pool.submit(self._verify, prompt, c) for c in group.completions]))

    def finished(self, patience: float = 0.0) -> list[Verified]:
        """Groups whose verdicts are there; if there are none, waits up to `patience` seconds for the oldest."""
        if patience and self._pending and not self._done and not any(map(_complete, self._pending)):
            wait(self._pending[0][1], patience)
        done, self._done = self._done, []
        done += [
            Verified(group, tuple(f.result() for f in futures)) for group, futures in filter(_complete, self._pending)
        ]
        handed = {verified.group.request.id for verified in done}
        self._pending = [entry for entry in self._pending if entry[0].request.id not in handed]
        return done

    def forget(self) -> None:
        """Nobody wants the verdicts any more."""
        for _, futures in self._pending:
            for future in futures:
                future.cancel()
        self._pending, self._done = [], []

    def close(self) -> None:
        """Join the threads; what they have not begun is left out."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _verify(self, prompt: Prompt, completion: Completion) -> Outcome:
        try:
            return judge(self._task, self._tokenizer, prompt, completion)
        except Exception as error:
            logging.getLogger(__name__).warning("prompt %d: the verifier failed: %r", prompt.ordinal, error)
            return error


def _complete(pending: _Pending) -> bool:
    return all(future.done() for future in pending[1])
