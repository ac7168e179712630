"""The `task` section of a recipe: one class per task. Light on purpose: a recipe is read without loading a task."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from trainer.tasks.arithmetic import ArithmeticSpec

__all__ = ["ArithmeticSpec", "CodeSpec", "MathSpec", "PromptFile", "TaskSpec"]

WORKERS = min(4, os.cpu_count() or 1)
SetName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=63)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PromptFile(_Part):
    """A file or directory of prompts (docs/tasks.md lists the shapes)."""

    path: Path
    """JSON lines, Parquet, a dataset saved by `save_to_disk`, or a snapshot directory; nothing is downloaded."""
    split: str | None = None
    """Which split of a directory that holds several."""
    columns: dict[str, str] = {}
    """Field (prompt, answer, tests, id, difficulty) to column, where the usual names do not fit."""
    first: int | None = Field(default=None, ge=1)
    """Prompts read, from the start; null: all."""


class _FromFiles(_Part):
    """What tasks on files share."""

    train: PromptFile
    held_out: dict[SetName, PromptFile] = Field(min_length=1)
    """Held-out sets by name; the first one is the main one. None of their prompts may be in `train`."""
    template: str
    """Text around the problem; `{prompt}` stands for it."""
    chat: bool = False
    """Wrap that as a user message with the tokenizer's chat template."""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """A longer prompt is an error: prepare the data, or raise this."""
    workers: int = Field(default=WORKERS, ge=1)
    """Completions verified at once, each in a process of its own."""

    @field_validator("held_out")
    @classmethod
    def _not_train(cls, held_out: dict[str, PromptFile]) -> dict[str, PromptFile]:
        if "train" in held_out:
            raise ValueError("train is the name of the training prompts; call the held-out set something else")
        return held_out

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, template: str) -> str:
        if "{prompt}" not in template:
            raise ValueError("must contain {prompt}")
        return template


class MathSpec(_FromFiles):
    """Problems with an exact answer, in `<answer>` or `\\boxed{}` after the thinking."""

    kind: Literal["math"] = "math"
    template: str = (
        "{prompt}\n\nThink step by step between <think> and </think>, then give only the final answer between "
        "<answer> and </answer>.\n"
    )
    time_limit_s: int = Field(default=5, ge=1, le=600)
    """Processor time for one comparison; past it the answer is wrong."""
    memory_mib: int = Field(default=2048, ge=512)
    """Address space of one comparison."""


class CodeSpec(_FromFiles):
    """Problems with unit tests; the last fenced Python block after the thinking is run in a sandbox."""

    kind: Literal["code"] = "code"
    template: str = "{prompt}\n\nThink step by step between <think> and </think>, then give the whole program in one ```python block.\n"
    time_limit_s: int = Field(default=6, ge=1, le=600)
    """Processor time for one test."""
    total_limit_s: int = Field(default=60, ge=1, le=3600)
    """Wall time for all tests of one completion."""
    memory_mib: int = Field(default=1024, ge=64)
    """Address space of the program; `workers` of them may run at once."""

    @model_validator(mode="after")
    def _ordered(self) -> "CodeSpec":
        if self.total_limit_s < self.time_limit_s:
            raise ValueError("total_limit_s must be at least time_limit_s")
        return self


def _kind(data: Any) -> str:
    kind = data.get("kind", "arithmetic") if isinstance(data, dict) else getattr(data, "kind", "arithmetic")
    return str(kind)


TaskSpec = Annotated[
    Annotated[ArithmeticSpec, Tag("arithmetic")] | Annotated[MathSpec, Tag("math")] | Annotated[CodeSpec, Tag("code")],
    Discriminator(_kind),
]
"""`kind` tells which; without it, arithmetic."""
