"""Faults that a script puts into a simulated run. Each fires once, when its step is first reached."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Fault:
    """From `at_step` on, for `steps` executed steps; a rollback leaves it behind, as it would a bad stretch of data."""

    kind: Literal["lr", "nan", "stall"]
    at_step: int
    steps: int = 1
    factor: float = 1.0
    """Factor on the learning rate (kind lr)."""
    seconds: float = 0.0
    """Extra wall time of the step (kind stall)."""


def lr_fault(at_step: int, factor: float, steps: int = 20) -> Fault:
    """The learning rate is multiplied by `factor`; above the cliff the skill collapses within about five steps."""
    return Fault("lr", at_step, steps=steps, factor=factor)


def nan(at_step: int, steps: int = 1) -> Fault:
    """Loss and gradient are not finite; the trainer skips the update, as it must."""
    return Fault("nan", at_step, steps=steps)


def stall(at_step: int, seconds: float) -> Fault:
    """One step hangs that long, in virtual seconds."""
    return Fault("stall", at_step, seconds=seconds)
