"""Faults that a script puts into a simulated run. Each fires once, when its step is first reached."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "lr",
    "nan",
    "collapse",
    "truncation",
    "length",
    "entropy",
    "hacking",
    "stall",
    "metric_loss",
    "clock_jump",
    "restart",
    "stale_checkpoint",
]


@dataclass(frozen=True)
class Fault:
    """From `at_step` on, for `steps` executed steps; a rollback leaves it behind, as it would a bad stretch of data."""

    kind: Kind
    at_step: int
    steps: int = 1
    factor: float = 1.0
    """Strength; each constructor below says in what."""
    seconds: float = 0.0
    """Extra wall time of the step (stall), time without metrics (metric_loss), jump of the clock (clock_jump)."""


def lr_fault(at_step: int, factor: float, steps: int = 20) -> Fault:
    """The learning rate is multiplied by `factor`; above the cliff the skill collapses within about five steps."""
    return Fault("lr", at_step, steps=steps, factor=factor)


def nan(at_step: int, steps: int = 1) -> Fault:
    """Loss and gradient are not finite; the trainer skips the update, as it must."""
    return Fault("nan", at_step, steps=steps)


def slow_collapse(at_step: int, speed: float, steps: int = 1000) -> Fault:
    """Sampler and learner drift apart: the mismatch grows by `speed` e-folds a step, gradient norm and damage follow."""
    return Fault("collapse", at_step, steps=steps, factor=speed)


def truncation_explosion(at_step: int, speed: float, steps: int = 1000) -> Fault:
    """Completions grow into the limit: the truncated share rises logistically, by `speed` e-folds of its odds a step."""
    return Fault("truncation", at_step, steps=steps, factor=speed)


def length_explosion(at_step: int, speed: float, steps: int = 60) -> Fault:
    """Completions grow by `speed` e-folds a step, below a limit so far away that few are cut."""
    return Fault("length", at_step, steps=steps, factor=speed)


def entropy_collapse(at_step: int, speed: float, steps: int = 200) -> Fault:
    """Token entropy falls by `speed` e-folds a step; groups become alike and learning slows down."""
    return Fault("entropy", at_step, steps=steps, factor=speed)


def reward_hacking(at_step: int, speed: float, steps: int = 1000) -> Fault:
    """The policy finds a hole in the verifier: the training pass ratio nears 1 by `speed` a step, held-out accuracy falls."""
    return Fault("hacking", at_step, steps=steps, factor=speed)


def stall(at_step: int, seconds: float) -> Fault:
    """One step hangs that long, in virtual seconds: a generator that does not answer."""
    return Fault("stall", at_step, seconds=seconds)


def metric_loss(at_step: int, seconds: float) -> Fault:
    """The metrics cannot be read for so long; the run goes on."""
    return Fault("metric_loss", at_step, seconds=seconds)


def clock_jump(at_step: int, seconds: float) -> Fault:
    """The clock of the controller's machine jumps, forwards or back, and stays there."""
    return Fault("clock_jump", at_step, seconds=seconds)


def restart(at_step: int) -> Fault:
    """The trainer's process dies and a new one goes on from the newest checkpoint."""
    return Fault("restart", at_step)


def stale_checkpoint(at_step: int, steps: int = 1000) -> Fault:
    """Checkpoints can no longer be written."""
    return Fault("stale_checkpoint", at_step, steps=steps)
