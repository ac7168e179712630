"""Built-in signals: what one look adds to the look before, as readings with their step.

Counters are differenced, so a reading covers exactly the steps between two looks and carries its number of samples.
Nothing is imputed: a signal that cannot be read in this look has no reading.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan

from controlplane.contract.documents import Health, Observed
from controlplane.policy.signals import SignalSpec
from controlplane.snapshot import Snapshot, series_id

SERIES: frozenset[str] = frozenset(
    {
        "rl_trainer_global_step",
        "rl_trainer_branch",
        "rl_trainer_planned_steps",
        "rl_trainer_lineage_compute_gpu_seconds",
        "rl_trainer_last_step_timestamp_seconds",
        "rl_trainer_incarnation_info",
        "rl_rollout_samples_total",
        "rl_rollout_truncated_total",
        "rl_rollout_groups_total",
        "rl_rollout_length_tokens_sum",
        "rl_rollout_length_tokens_count",
        "rl_rollout_staleness_steps_max",
        "rl_trainer_nonfinite_total",
        "rl_trainer_steps_total",
        "rl_trainer_loss",
        "rl_trainer_grad_norm",
        "rl_trainer_entropy_nats",
        "rl_trainer_sampler_mismatch_kl_nats",
        "rl_trainer_effective_sample_ratio",
        "rl_trainer_clipped_token_ratio",
        "rl_trainer_gradient_noise_scale_prompts",
        "rl_trainer_learning_rate",
        "rl_trainer_utilization_ratio",
        "rl_gpu_utilization_ratio",
        "rl_checkpoint_last_success_timestamp_seconds",
        "rl_eval_pass_ratio",
        "rl_eval_prompts",
        "rl_eval_last_step",
        "rl_eval_branch",
        "rl_eval_compute_gpu_seconds",
    }
)
"""Metric names that the controller reads."""

_GAUGES = {
    "loss": "rl_trainer_loss",
    "grad_norm": "rl_trainer_grad_norm",
    "entropy": "rl_trainer_entropy_nats",
    "mismatch_kl": "rl_trainer_sampler_mismatch_kl_nats",
    "effective_samples": "rl_trainer_effective_sample_ratio",
    "staleness": "rl_rollout_staleness_steps_max",
}
_PASSED = series_id("rl_rollout_samples_total", {"outcome": "pass"})
_FAILED = series_id("rl_rollout_samples_total", {"outcome": "fail"})
_TRUNCATED = series_id("rl_rollout_truncated_total", {"reason": "length"})
_MIXED = series_id("rl_rollout_groups_total", {"signal": "mixed"})
_CLIPPED = series_id("rl_trainer_clipped_token_ratio", {"bound": "high"})
_BUSY = series_id("rl_trainer_utilization_ratio", {"role": "process"})


LOST = 1000.0
"""Noise scale, in batches, that stands for all larger ones."""


@dataclass(frozen=True)
class Reading:
    """Value of one signal over the steps up to `step`, with what is known about it."""

    step: int
    value: float
    n: float = nan
    """Samples behind a proportion, else NaN."""
    group_size: float = nan
    """Samples that share a prompt, where that is known."""
    drift: float = 0.0
    """Change per step that the forecast expects; 0 without a forecast."""
    expected: float = nan
    """What the forecast before it said of this value, and how sure it was."""
    expected_sd: float = nan


@dataclass(frozen=True)
class Totals:
    """A snapshot prepared for differences: sums by metric name, made once per look."""

    snapshot: Snapshot
    sums: Mapping[str, float]
    incarnation: str | None
    counts: Mapping[str, int]

    @classmethod
    def of(cls, snapshot: Snapshot) -> "Totals":
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        incarnation = None
        for key, value in snapshot.metrics.items():
            name = key.partition("{")[0]
            sums[name] = sums.get(name, 0.0) + value
            counts[name] = counts.get(name, 0) + 1
            if name == "rl_trainer_incarnation_info":
                incarnation = key
        return cls(snapshot, sums, incarnation, counts)

    def process(self) -> tuple[str | None, float | None]:
        """What two looks must share to be comparable: a process, and a branch."""
        return self.incarnation, self.snapshot.metrics.get("rl_trainer_branch")


def readings(before: Snapshot | None, now: Snapshot) -> dict[str, Reading]:
    """Signals that `now` adds to `before`; empty when no step was finished in between."""
    return {} if before is None else difference(Totals.of(before), Totals.of(now))


def difference(before: Totals, now: Totals) -> dict[str, Reading]:
    """As `readings`, of looks already prepared.

    A restarted process (another incarnation) or a rollback in between makes the differences meaningless, so such a look
    only becomes the base of the next one.
    """
    step = now.snapshot.metrics.get("rl_trainer_global_step")
    if step is None or not isfinite(step) or before.process() != now.process():
        return {}
    steps = _steps(before, now)
    if steps <= 0:
        return {}
    at = int(step)
    found = _proportions(before, now, at)
    for signal, name in _GAUGES.items():
        value = now.sums.get(name)
        if value is not None:
            found[signal] = Reading(at, value)
    if (busy := _utilization(now)) is not None:
        found["utilization"] = Reading(at, busy)
    found |= _ages(now, at) | _batch(before, now, at, steps)
    if (nonfinite := _nonfinite(before.snapshot.metrics, now.snapshot.metrics)) is not None:
        found["nonfinite_steps"] = Reading(at, nonfinite, steps)
    return found


def _batch(before: Totals, now: Totals, at: int, steps: float) -> dict[str, Reading]:
    """Whether the batch is large enough, and how often its tokens were clipped; only what was measured."""
    found: dict[str, Reading] = {}
    clipped, scale = (
        now.snapshot.metrics.get(_CLIPPED, nan),
        now.sums.get("rl_trainer_gradient_noise_scale_prompts", nan),
    )
    if isfinite(clipped):
        found["clipped"] = Reading(at, clipped)
    mixed = (now.snapshot.metrics.get(_MIXED, nan) - before.snapshot.metrics.get(_MIXED, nan)) / steps
    if scale > 0 and mixed > 0:  # an infinite scale is a gradient lost in its noise
        found["batch_noise"] = Reading(at, min(scale / mixed, LOST))
    return found


def queried(signals: Mapping[str, SignalSpec], now: Snapshot, step: int) -> dict[str, Reading]:
    """Readings of the signals that have a query of their own; those without data are missing."""
    return {
        name: Reading(step, now.signals[name], spec.n or nan, spec.group_size or nan)
        for name, spec in signals.items()
        if spec.query is not None and name in now.signals
    }


def _steps(before: Totals, now: Totals) -> float:
    old, new = before.sums.get("rl_trainer_steps_total"), now.sums.get("rl_trainer_steps_total")
    return new - old if old is not None and new is not None else 0.0


def _proportions(before: Totals, now: Totals, step: int) -> dict[str, Reading]:
    found: dict[str, Reading] = {}
    old, new = before.snapshot.metrics, now.snapshot.metrics
    groups = _increase(before.sums, now.sums, "rl_rollout_groups_total")

    def proportion(signal: str, part: float | None, whole: float | None, group_size: float = nan) -> None:
        if part is not None and whole is not None and whole > 0:
            found[signal] = Reading(step, part / whole, whole, group_size)

    passed, failed = _increase(old, new, _PASSED), _increase(old, new, _FAILED)
    verified = passed + failed if passed is not None and failed is not None else None
    alike = verified / groups if verified and groups else nan
    proportion("pass_rate", passed, verified, alike)
    proportion("truncation", _increase(old, new, _TRUNCATED), verified, alike)
    mixed = _increase(old, new, _MIXED)
    proportion("zero_variance", groups - mixed if groups is not None and mixed is not None else None, groups, 1.0)
    tokens = _increase(before.sums, now.sums, "rl_rollout_length_tokens_sum")
    completions = _increase(before.sums, now.sums, "rl_rollout_length_tokens_count")
    if tokens is not None and completions:
        found["gen_length"] = Reading(step, tokens / completions)
    return found


def _utilization(now: Totals) -> float | None:
    """The GPUs' where they are exported, the process's own account elsewhere."""
    gpus = now.counts.get("rl_gpu_utilization_ratio", 0)
    return now.sums["rl_gpu_utilization_ratio"] / gpus if gpus else now.snapshot.metrics.get(_BUSY)


def _ages(now: Totals, step: int) -> dict[str, Reading]:
    found: dict[str, Reading] = {}
    written = now.snapshot.metrics.get("rl_checkpoint_last_success_timestamp_seconds")
    if written is not None and isfinite(written) and now.snapshot.sampled_at is not None:
        found["checkpoint_age"] = Reading(step, max(0.0, now.snapshot.sampled_at - written))
    good = _newest_good(now.snapshot.observed)
    if good is not None:
        found["good_checkpoint_age"] = Reading(step, max(0, step - good))
    return found


def _newest_good(observed: Observed | None) -> int | None:
    if observed is None:
        return None
    return max((c.step for c in observed.checkpoints if c.health is Health.good), default=None)


def _nonfinite(before: Mapping[str, float], now: Mapping[str, float]) -> float | None:
    # One bad step counts under each of its quantities, so the largest count is the number of steps, and the sum is not.
    quantities = [key for key in now if key.startswith("rl_trainer_nonfinite_total{") and key in before]
    return max(now[key] - before[key] for key in quantities) if quantities else None


def _increase(before: Mapping[str, float], now: Mapping[str, float], key: str) -> float | None:
    old, new = before.get(key), now.get(key)
    return new - old if old is not None and new is not None and new >= old else None
