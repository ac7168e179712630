"""Tasks: where prompts come from and who judges the completions."""

from collections.abc import Sequence
from typing import Protocol

from trainer.types import Prompt, Verdict


class Task(Protocol):
    """A verifiable task. Prompts are the same for the same seed, and the splits never share a prompt."""

    name: str
    held_out: tuple[str, ...]
    """Names of the held-out sets; the first is the main one."""
    workers: int
    """Threads that `verify` may be called from at once; 0: it is quick and called in line."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """All prompts of "train" or of a held-out set; the index is the ordinal."""
        ...

    def verify(self, prompt: Prompt, completion: str, finished: bool) -> Verdict:
        """Judge the decoded completion; `finished` says whether the model ended it by itself."""
        ...
