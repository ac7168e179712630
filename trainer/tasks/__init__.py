"""Tasks: where prompts come from and who judges the completions."""

from collections.abc import Sequence
from typing import Protocol

from trainer.types import Prompt, Verdict

TRAIN = "train"
"""The one split that is trained on; the others have the names in `Task.held_out`."""


class Task(Protocol):
    """A verifiable task. Prompts are the same for the same settings and files, and the splits never share a prompt."""

    name: str
    held_out: tuple[str, ...]
    """Names of the held-out sets; the first is the main one."""
    workers: int
    """Threads that verification is worth; 0: it takes microseconds and is done where it is asked for."""

    def prompts(self, split: str) -> Sequence[Prompt]:
        """All prompts of `train` or of a held-out set; the index is the ordinal."""
        ...

    def verify(self, prompt: Prompt, completion: str, finished: bool) -> Verdict:
        """Judge the decoded completion; `finished` says whether the model ended it by itself. May be called from
        `workers` threads at once, and never raises because of what a completion says."""
        ...
