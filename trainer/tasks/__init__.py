"""Tasks: where prompts come from and who judges the completions."""

from collections.abc import Sequence
from typing import Literal, Protocol

from trainer.types import Prompt, Verdict

Split = Literal["train", "held_out"]


class Task(Protocol):
    """A verifiable task. Prompts are the same for the same seed, and the splits never share a prompt."""

    name: str

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """All prompts of a split; the index is the ordinal."""
        ...

    def verify(self, prompt: Prompt, completion: str, finished: bool) -> Verdict:
        """Judge the decoded completion; `finished` says whether the model ended it by itself."""
        ...
