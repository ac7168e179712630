"""From the `task` section of a recipe to the task."""

from typing import Any

from trainer.tasks import Task
from trainer.tasks.specs import ArithmeticSpec, CodeSpec, MathSpec


def make_task(spec: ArithmeticSpec | MathSpec | CodeSpec, tokenizer: Any) -> Task:
    """The task with its prompts read and tokenized.

    Raises:
        DataError: its files do not make one.
        SandboxError: a code task, and unknown code cannot be run safely on this machine.
    """
    # Imported late: a task is loaded with what it needs only when it is used.
    if isinstance(spec, MathSpec):
        from trainer.tasks.mathematics import Mathematics

        return Mathematics(spec, tokenizer)
    if isinstance(spec, CodeSpec):
        from trainer.tasks.code import Code

        return Code(spec, tokenizer)
    from trainer.tasks.arithmetic import Arithmetic

    return Arithmetic(spec, tokenizer)
