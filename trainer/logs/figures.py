"""What a report comes to as numbers with names, grouped as trackers show them. NaN is left out: not measured. Pure."""

import math
from collections.abc import Mapping

from controlplane.contract.reports import EvalReport, StepReport

Figures = dict[str, float]

_TRAIN = (
    "loss", "grad_norm", "lr", "entropy", "mismatch_kl", "ratio_mean", "ratio_max", "clipped_ratio", "clipped_low_ratio",
    "effective_sample_ratio", "advantage_std", "noise_scale_prompts", "masked_ratio", "trained_tokens", "seconds",
    "weight_sync_seconds",
)  # fmt: skip
_EVAL = ("pass_ratio", "pass_ratio_stderr", "mean_length", "truncated_ratio", "seconds")


def of_step(report: StepReport) -> Figures:
    """One step; ratios are over its completions."""
    rollouts, n = report.rollouts, len(report.rollouts.lengths)
    figures: dict[str, float] = {"step": report.step, "branch": report.branch, "compute": report.compute}
    figures |= {f"train/{name}": getattr(report, name) for name in _TRAIN}
    figures["train/skipped"] = bool(report.skipped)
    if n:
        figures |= {
            "rollout/pass_ratio": rollouts.passed / max(1, rollouts.passed + rollouts.failed),
            "rollout/reward": sum(rollouts.rewards) / n,
            "rollout/length": sum(rollouts.lengths) / n,
            "rollout/truncated_ratio": rollouts.truncated / n,
            "rollout/interrupted_ratio": rollouts.interrupted / n,
            "rollout/staleness": sum(rollouts.staleness) / n,
            "rollout/staleness_max": max(rollouts.staleness, default=0),
            "rollout/generated_tokens": rollouts.generated_tokens,
        }
    groups = sum(rollouts.groups.values())
    if groups:
        figures["rollout/mixed_groups_ratio"] = rollouts.groups.get("mixed", 0) / groups
    figures["rollout/dropped_groups"] = sum(rollouts.dropped_groups.values())
    figures |= {f"phase_seconds/{name}": value for name, value in report.phase_seconds.items()}
    figures |= {f"buffer/{name}": value for name, value in report.buffer.items()}
    figures |= {f"tunable/{name}": value for name, value in report.tunables.items()}
    return _measured(figures)


def of_evaluation(report: EvalReport) -> Figures:
    """One held-out set."""
    group = f"eval/{report.dataset}"
    figures: dict[str, float] = {"step": report.step, "branch": report.branch, "compute": report.compute}
    figures |= {f"{group}/{name}": getattr(report, name) for name in _EVAL}
    figures |= {f"{group}/pass_at_{j}": value for j, value in {**report.pass_at, report.k: report.pass_at_k}.items()}
    return _measured(figures)


def _measured(figures: Mapping[str, float]) -> Figures:
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}
