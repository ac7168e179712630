"""Which column of a log is which signal: patterns for the names that trainers use, most certain first. Pure.

Known by name: ours, TRL and HF Trainer, verl, OpenRLHF, prime-rl, tinker, and the common words. Whatever is guessed is
said in a note; a caller who knows better names the column.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from controlplane.recorded.table import Column

_RIGHT = r"(?:correct|correctness|accuracy|acc|solved|success|success_rate|pass_rate|pass_ratio)"
SIGNALS: Mapping[str, tuple[str, ...]] = {
    "pass_rate": (
        "pass_ratio",
        "pass_rate",
        "accuracy",
        "train_accuracy",
        r"(?:env/|rollout/)?(?:all/)?" + _RIGHT + r"(?:/mean)?",
        r"rewards/[^/]*(?:correct|accuracy)[^/]*(?:/mean)?",
        "critic/score/mean",
        "reward",
        "reward/mean",
        "reward/all/mean",
        "mean_reward",
        "reward_mean",
        "train_reward",
        "critic/rewards/mean",
        "env/all/reward/total",
        r"rewards/[^/]*(?:/mean)?",
        "score",
        "score/mean",
        "episode_return",
        "return",
        "returns/mean",
    ),
    "eval_pass_rate": (
        "eval_pass_ratio",
        r"eval(?:uation)?[/_](?:.*[/_])?" + _RIGHT + r"(?:/mean)?(?:@\d+)?",
        r"val-core/.*/(?:acc|reward|score)/mean@\d+",
        r"(?:val|test|valid|validation)[/_](?:.*[/_])?" + _RIGHT + r"(?:/mean)?",
        r"(?:val|test)/(?:test_)?score/.*",
        r"eval[/_](?:em|exact_match)",
        r"eval/[^/]+/(?:avg@\d+|pass@1)",
        "eval_reward",
        "eval/reward(?:/mean)?",
        "eval_f1",
    ),
    "truncation": (
        "truncated",
        "truncation",
        r"completions/clipped_ratio",
        r"response_length/clip_ratio",
        r"(?:.*[/_])?truncated?_(?:ratio|rate|frac)",
        r"is_truncated(?:/(?:all/)?mean)?",
        r"truncation_(?:ratio|rate)",
        r"(?:.*/)?stop_reason/length",
    ),
    "gen_length": (
        "mean_length",
        "completions/mean_length",
        "completion_length",
        "response_length/mean",
        "response_length",
        "avg_gen_tokens",
        "env/all/ac_tokens_per_turn",
        r"(?:seq_len|completion_len|output_len|decode_len)(?:/(?:all/)?mean)?",
        r"(?:mean|avg)_(?:gen|completion|response|output)_(?:length|tokens|len)",
        "total_length",
    ),
    "grad_norm": ("grad_norm", r"(?:actor|optim|policy|train)/grad_norm", r"(?:.*/)?grad(?:ient)?_norm(?:/mean)?"),
    "loss": ("loss", "loss/mean", "train_loss", r"(?:actor|policy|optim)/(?:pg_)?loss", "policy_loss", "actor/loss"),
    "entropy": (
        "entropy",
        r"(?:actor|policy|optim|train)/entropy(?:/mean|_loss)?",
        "entropy/(?:all/)?mean",
        "entropy_loss",
        "policy_entropy",
    ),
    "mismatch_kl": (
        "mismatch_kl",
        "mismatch_kl/(?:all/)?mean",
        r"rollout_corr/(?:k3_)?kl",
        r"optim/kl_sample_train_v2",
        r"optim/kl_sample_train_v1",
        r"sampling/sampling_logp_difference/mean",
        r"training/rollout_probs_diff_mean",
    ),
    "effective_samples": ("effective_sample_ratio", r"rollout_corr/(?:rollout_is_)?eff(?:ective)?_sample_size", "ess"),
    "zero_variance": (
        "zero_variance",
        "frac_reward_zero_std",
        r"(?:.*/)?zero_variance(?:_ratio|_frac)?",
    ),
    "utilization": ("utilization", r"(?:gpu|process)_util(?:ization)?"),
    "staleness": ("staleness_max", r"(?:.*/)?(?:max_)?(?:staleness|off_policy_level)(?:/max)?"),
    "lr": ("lr", "learning_rate", r"(?:actor|optim|lr)/(?:lr|learning_rate)"),
    "seconds": ("seconds", "step_time", "time/total", "time/step", "timing_s/step", "perf/time_per_step"),
    "clock": ("time", "timestamp", "_timestamp", "wall_time", "created_at"),
    "mixed": (r"(?:.*/)?by_group/frac_mixed",),
    "truncated_count": ("truncated_count", "num_truncated"),
    "n": ("n", "rollout_count", "num_samples", "batch_samples"),
    "nonfinite": ("nonfinite",),
}
"""Signal -> patterns of column names. mixed, truncated_count and n only serve to make others."""

PROPORTIONS = frozenset(
    {"pass_rate", "eval_pass_rate", "truncation", "zero_variance", "effective_samples", "utilization"}
)
STEP = ("step", "global_step", "training/global_step", "_step", "train_step", "iteration", "batch", "progress/batch")
COMPUTE: tuple[tuple[str, bool, str], ...] = (
    ("compute", False, "device-seconds"),
    ("gpu_hours", False, "GPU-hours"),
    ("gpu_seconds", False, "GPU-seconds"),
    ("seconds", True, "seconds"),
    ("time/total", True, "seconds"),
    ("timing_s/step", True, "seconds"),
    ("step_time", True, "seconds"),
    ("_runtime", False, "seconds"),
    ("num_tokens", False, "tokens"),
    ("num_input_tokens_seen", False, "tokens"),
    ("perf/total_num_tokens", True, "tokens"),
    ("env/all/total_ac_tokens", True, "tokens"),
    ("env_step", False, "environment steps"),
)
"""(column, whether each row holds only its own share, unit), most wanted first."""


def plain(name: str) -> str:
    """A column name without what exports add: run names ("my-run - train/loss"), case, a leading "train/"."""
    name = name.rpartition(" - ")[2].strip().lower().replace(".", "/").replace(" ", "_")
    return re.sub(r"^(?:train|training|metrics)/(?!global_step|rollout_probs)", "", name)


def find(signal: str, names: Sequence[str]) -> str | None:
    """The column of a signal; None if no name looks like it. Ties go to the first column of the file."""
    for pattern in SIGNALS[signal]:
        for name in names:
            if re.fullmatch(pattern, plain(name)):
                return name
    return None


def to_unit(values: Column) -> tuple[Column, tuple[float, float]]:
    """A reward on [0, 1], and the range it came from: [0, 1], [-1, 1], [0, b] or [-b, b] with b of 1, 2 or 5 times a power of ten."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    bound = next(b for e in range(13) for b in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if max(high, -low) <= b)
    bottom = -bound if low < 0 else 0.0
    return (values - bottom) / (bound - bottom), (bottom, bound)


def granularity(values: Column, most: int = 4096) -> int | None:
    """The smallest N for which all values are k/N to their five or so printed digits; None if there is none up to `most`.

    A power of ten is taken for the number of printed decimals and not for N.
    """
    finite = np.unique(values[np.isfinite(values)])
    if len(finite) < 5:
        return None
    for n in range(2, most + 1):
        # By chance alone five values would lie so close for one N in 10^8.
        if np.abs(finite * n - np.round(finite * n)).max() <= max(2e-6 * n, 1e-4):
            return None if n in (10, 100, 1000) else n
    return None
