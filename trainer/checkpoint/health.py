"""When a checkpoint has proven good. Pure.

    fresh --(good_after_steps healthy steps and a passing evaluation, both after it)--> good
    fresh, good --(a rollback went behind it)--> bad

A checkpoint is proven by the steps after it: weights that look fine at the moment of saving may already be on their way
down. Training batches are compared with those just before the checkpoint (the curriculum moves them over time), held-out
evaluations with the best one on this lineage: a run that has collapsed is steady too, and must not prove itself good.
What comes later can fail to prove a checkpoint, but only a rollback declares it bad.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

WINDOW = 10
"""Steps averaged into the reference pass rate. One batch of 16 prompts has a standard error near 0.07; ten have 0.02."""
SIGMAS = 4.0
"""Tolerance of one step, in standard errors of its batch. 4: hardly ever by chance, while a real collapse is 5 or more."""
SPREAD = 0.3
"""Standard deviation of the pass rate between prompts; 0.5 would be the largest possible, mixed tasks show about 0.3."""
EVALUATION_SIGMAS = 3.0
"""Tolerance of the evaluation, in standard errors of the difference of two evaluations on the same prompts."""


class HealthSpec(BaseModel):
    """What proves a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    good_after_steps: int = Field(default=20, ge=1)
    """Consecutive healthy optimizer steps after the checkpoint."""


@dataclass(frozen=True)
class StepHealth:
    """What one step says about the checkpoints before it."""

    pass_ratio: float
    prompts: int
    skipped: str


@dataclass(frozen=True)
class Score:
    """A held-out evaluation at a step."""

    step: int
    pass_ratio: float
    prompts: int


@dataclass(frozen=True)
class Trial:
    """What is known about one fresh checkpoint."""

    step: int
    reference: float
    """Mean pass rate of the training batches up to the checkpoint; NaN at the start of a run."""
    baseline: Score | None
    """Best evaluation on the lineage up to the checkpoint."""
    healthy_steps: int = 0
    evaluated: bool = False

    def after_step(self, step: StepHealth) -> "Trial":
        """One more step; an unhealthy one starts the count again."""
        streak = self.healthy_steps + 1 if healthy(step, self.reference) else 0
        return Trial(self.step, self.reference, self.baseline, streak, self.evaluated)

    def after_evaluation(self, score: Score) -> "Trial":
        """A new evaluation; only the latest one after the checkpoint counts."""
        if score.step <= self.step:
            return self
        return Trial(self.step, self.reference, self.baseline, self.healthy_steps, passes(score, self.baseline))

    def proven(self, spec: HealthSpec) -> bool:
        """Whether the checkpoint is good now."""
        return self.evaluated and self.healthy_steps >= spec.good_after_steps


def healthy(step: StepHealth, reference: float) -> bool:
    """Finite, and the pass rate not far below what it was. A batch without signal is judged by its pass rate too: it
    may be all right or all wrong."""
    if step.skipped == "nonfinite" or not math.isfinite(step.pass_ratio):
        return False
    if math.isnan(reference):
        return True
    return step.pass_ratio >= reference - SIGMAS * SPREAD / math.sqrt(step.prompts)


def passes(score: Score, baseline: Score | None) -> bool:
    """Whether an evaluation is finite and within tolerance of the best one before."""
    if not math.isfinite(score.pass_ratio):
        return False
    if baseline is None:
        return True
    error = SPREAD * math.sqrt(1 / score.prompts + 1 / baseline.prompts)
    return score.pass_ratio >= baseline.pass_ratio - EVALUATION_SIGMAS * error


def reference(pass_ratios: Sequence[float]) -> float:
    """Reference pass rate from the batches up to a checkpoint, newest last; NaN when there are none."""
    window = [ratio for ratio in pass_ratios[-WINDOW:] if math.isfinite(ratio)]
    return sum(window) / len(window) if window else math.nan
