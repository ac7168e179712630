"""The `task` section of a recipe: one class per task. Light on purpose: a recipe is read without loading a task."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from trainer.tasks.arithmetic import ArithmeticSpec


def _kind(data: Any) -> str:
    kind = data.get("kind", "arithmetic") if isinstance(data, dict) else getattr(data, "kind", "arithmetic")
    return str(kind)


TaskSpec = Annotated[Annotated[ArithmeticSpec, Tag("arithmetic")], Discriminator(_kind)]
"""`kind` tells which; without it, arithmetic."""
