"""What a trainer tells its agent: one report per optimiser step, evaluation and checkpoint.

Plain frozen dataclasses, so that an adapter for another trainer can fill what it has and leave the rest at its default.
NaN means "not measured in this step" and never "zero".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan


@dataclass(frozen=True)
class RolloutStats:
    """Everything about the completions of one batch, before any filter. Lists hold one entry per completion."""

    rewards: tuple[float, ...] = ()
    passed: int = 0
    failed: int = 0
    errored: int = 0
    lengths: tuple[int, ...] = ()
    """Generated tokens, forced ones included."""
    prompt_lengths: tuple[int, ...] = ()
    staleness: tuple[int, ...] = ()
    """Optimiser steps between the oldest weights in the completion and the learner, at use."""
    seconds: tuple[float, ...] = ()
    """Wall time from admission to the last token."""
    truncated: int = 0
    """Completions whose finish reason is `length`; nothing else counts."""
    interrupted: int = 0
    """Completions whose thinking was closed by force."""
    groups: Mapping[str, int] = field(default_factory=dict)
    """Prompt groups by signal: mixed, all_pass, all_fail."""
    dropped_groups: Mapping[str, int] = field(default_factory=dict)
    """Groups that never reached the learner since the last report, by reason: stale, error, rollback."""
    generated_tokens: int = 0
    prompt_tokens: int = 0
    discarded_tokens: int = 0


@dataclass(frozen=True)
class StepReport:
    """One optimiser step, at its boundary. Times in seconds, compute in device-seconds."""

    step: int
    branch: int
    seconds: float
    phase_seconds: Mapping[str, float]
    """Wall seconds since the last report by `Phase` value; their sum is the wall time."""
    compute: float
    """Device-seconds behind the weights in force (lineage)."""
    device_seconds: Mapping[str, float]
    """Device-seconds spent since the last report, by pool (generator, learner, evaluator)."""
    rollouts: RolloutStats
    loss: float = nan
    grad_norm: float = nan
    """Global gradient norm before clipping."""
    grad_clipped: bool = False
    skipped: str = ""
    """Why no update was applied: nonfinite, no_signal (all groups alike), or empty when one was."""
    nonfinite: tuple[str, ...] = ()
    """Quantities that were NaN or infinite: loss, grad, logprob, reward, advantage."""
    entropy: float = nan
    mismatch_kl: float = nan
    """Mean per-token KL between generator and learner (k3 estimator), nats."""
    ratio_mean: float = nan
    ratio_max: float = nan
    clipped_ratio: float = nan
    """Share of tokens whose ratio was cut at the upper bound."""
    clipped_low_ratio: float = nan
    """Share of tokens whose ratio was cut at the lower bound; NaN where the loss has none."""
    masked_ratio: float = nan
    """Share of generated tokens that carry no loss because they were forced."""
    effective_sample_ratio: float = nan
    advantage_std: float = nan
    noise_scale_prompts: float = nan
    """Gradient noise scale, in prompts with signal: batches far below it are mostly noise."""
    trained_tokens: int = 0
    lr: float = nan
    tunables: Mapping[str, float] = field(default_factory=dict)
    """Tunables used for this very batch."""
    weights_version: int = 0
    weight_sync_seconds: float = nan
    buffer: Mapping[str, int] = field(default_factory=dict)
    """Groups by state: waiting, inflight, ready, held; and `capacity`."""
    inflight: int = 0
    """Completions being generated."""
    utilization: Mapping[str, float] = field(default_factory=dict)
    """Device use since the last report, 0 to 1, by role (process, generator, learner)."""


@dataclass(frozen=True)
class EvalReport:
    """One held-out evaluation: mean@k over a fixed set of prompts."""

    dataset: str
    step: int
    branch: int
    compute: float
    prompts: int
    k: int
    pass_ratio: float
    """Mean over prompts of the share of passing completions."""
    pass_at_k: float
    """Share of prompts with at least one passing completion."""
    mean_length: float
    truncated_ratio: float
    seconds: float
    pass_ratio_stderr: float = nan
    """Standard error of `pass_ratio` over prompts."""
    pass_at: Mapping[int, float] = field(default_factory=dict)
    """pass@j for some j up to k, unbiased."""


@dataclass(frozen=True)
class CheckpointReport:
    """One attempt to write a checkpoint; `failed_stage` is write or verify, empty when it succeeded."""

    step: int
    seconds: float
    size_bytes: int
    failed_stage: str = ""
