"""Learning: advantages, losses, FP32 head and the optimizer step. Here: what the step machine needs of a learner."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trainer.types import ScoredGroup


@dataclass(frozen=True)
class LearnResult:
    """What one step did. NaN where a skipped step measured nothing. Ratios of tokens are over those that carry loss."""

    skipped: str = ""
    nonfinite: tuple[str, ...] = ()
    lr: float = math.nan
    loss: float = math.nan
    grad_norm: float = math.nan
    grad_clipped: bool = False
    entropy: float = math.nan
    """Mean entropy of the learner's distribution, nats."""
    mismatch_kl: float = math.nan
    """k3 estimate of KL(generator || learner), nats per token."""
    ratio_mean: float = math.nan
    ratio_max: float = math.nan
    clipped_ratio: float = math.nan
    """Share of tokens whose gradient the upper bound of the importance ratio changed."""
    clipped_low_ratio: float = math.nan
    """The same for the lower bound."""
    effective_sample_ratio: float = math.nan
    """Effective sample size of the importance ratios over their number."""
    advantage_std: float = math.nan
    """Standard deviation of the centred rewards over the effective batch, before any normalisation."""
    noise_scale_prompts: float = math.nan
    """Gradient noise scale over the last steps, in prompts with signal (noise_scale.py)."""
    trained_tokens: int = 0


class Learner(Protocol):
    """The state that training changes and a rollback brings back, and the one step that changes it."""

    base_lr: float
    """Learning rate of the schedule, before `lr_scale`."""

    def step(self, step: int, groups: Sequence[ScoredGroup], tunables: Mapping[str, float]) -> LearnResult:
        """Train optimizer step `step` (1, 2, ...) on a batch. A step that is skipped changes nothing."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on bit-exactly."""
        ...

    def stage(self, state: Mapping[str, Any]) -> None:
        """Whatever of `load_state_dict` may fail; changes nothing.

        Raises:
            CheckpointError: the state cannot be read, or not by this learner.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a state in force; it is staged first unless it is already."""
        ...
