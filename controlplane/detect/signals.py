"""Built-in signals: what one look adds to the look before, as readings with their step.

Counters are differenced, so a reading covers exactly the steps between two looks and carries its number of samples.
Nothing is imputed: a signal that cannot be read in this look has no reading.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan

from controlplane.snapshot import Snapshot, series_id, total

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
        "rl_trainer_learning_rate",
        "rl_trainer_utilization_ratio",
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


@dataclass(frozen=True)
class Reading:
    """Value of one signal over the steps up to `step`. `n` is the number of samples behind a proportion, else NaN."""

    step: int
    value: float
    n: float = nan


def readings(before: Snapshot | None, now: Snapshot) -> dict[str, Reading]:
    """Signals that `now` adds to `before`; empty when no step was finished in between.

    A restarted process (another incarnation) or a rollback in between makes the differences meaningless, so such a look
    only becomes the base of the next one.
    """
    step = now.metrics.get("rl_trainer_global_step")
    if before is None or step is None or step != step or not _comparable(before, now):
        return {}
    old_steps, new_steps = total(before.metrics, "rl_trainer_steps_total"), total(now.metrics, "rl_trainer_steps_total")
    if old_steps is None or new_steps is None or new_steps <= old_steps:
        return {}
    at = int(step)
    found = _proportions(before.metrics, now.metrics, at)
    for signal, name in _GAUGES.items():
        value = total(now.metrics, name)
        if value is not None:
            found[signal] = Reading(at, value)
    utilization = now.metrics.get(series_id("rl_trainer_utilization_ratio", {"role": "process"}))
    if utilization is not None:
        found["utilization"] = Reading(at, utilization)
    # One bad step counts under each of its quantities, so the largest count is the number of steps, and the sum is not.
    quantities = [key for key in now.metrics if key.startswith("rl_trainer_nonfinite_total{") and key in before.metrics]
    if quantities:
        nonfinite = max(now.metrics[key] - before.metrics[key] for key in quantities)
        found["nonfinite_steps"] = Reading(at, nonfinite, new_steps - old_steps)
    return found


def _comparable(before: Snapshot, now: Snapshot) -> bool:
    def process(snapshot: Snapshot) -> tuple[str | None, float | None]:
        incarnation = next((key for key in snapshot.metrics if key.startswith("rl_trainer_incarnation_info")), None)
        return incarnation, snapshot.metrics.get("rl_trainer_branch")

    return process(before) == process(now)


def _proportions(before: Mapping[str, float], now: Mapping[str, float], step: int) -> dict[str, Reading]:
    found: dict[str, Reading] = {}

    def proportion(signal: str, part: float | None, whole: float | None) -> None:
        if part is not None and whole is not None and whole > 0:
            found[signal] = Reading(step, part / whole, whole)

    passed = _increase(before, now, "rl_rollout_samples_total", outcome="pass")
    failed = _increase(before, now, "rl_rollout_samples_total", outcome="fail")
    verified = passed + failed if passed is not None and failed is not None else None
    proportion("pass_rate", passed, verified)
    proportion("truncation", _increase(before, now, "rl_rollout_truncated_total", reason="length"), verified)
    groups = _increase(before, now, "rl_rollout_groups_total")
    mixed = _increase(before, now, "rl_rollout_groups_total", signal="mixed")
    proportion("zero_variance", groups - mixed if groups is not None and mixed is not None else None, groups)
    tokens = _increase(before, now, "rl_rollout_length_tokens_sum")
    completions = _increase(before, now, "rl_rollout_length_tokens_count")
    if tokens is not None and completions:
        found["gen_length"] = Reading(step, tokens / completions)
    return found


def _increase(before: Mapping[str, float], now: Mapping[str, float], name: str, **labels: str) -> float | None:
    if labels:
        key = series_id(name, labels)
        old, new = before.get(key), now.get(key)
    else:
        old, new = total(before, name), total(now, name)
    return new - old if old is not None and new is not None and new >= old else None
