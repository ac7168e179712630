"""Counters and gauges of a run as values, without an exporter: what a scrape would have shown after each step.

For runs that exist only as numbers, recorded or simulated. The names are those of `contract.metrics`; a quantity that
a step does not have is left as it was (gauges) or not counted (counters), and one that the run never had is missing.
"""

from math import isfinite, nan
from typing import NamedTuple

from controlplane.contract.documents import Observed
from controlplane.snapshot import Snapshot, series_id


class Tally(NamedTuple):
    """One optimiser step as the trainer reports it. NaN: not measured in this run."""

    step: int
    samples: float = nan
    pass_rate: float = nan
    truncation: float = nan
    gen_length: float = nan
    zero_variance: float = nan
    groups: float = nan
    loss: float = nan
    grad_norm: float = nan
    entropy: float = nan
    mismatch_kl: float = nan
    effective_samples: float = nan
    staleness: float = nan
    utilization: float = nan
    lr: float = nan
    compute: float = nan
    nonfinite: bool = False
    """Loss and gradient were not finite; their gauges then show NaN, as the exporter does."""


class Evaluation(NamedTuple):
    """One held-out evaluation."""

    step: int
    pass_rate: float
    compute: float
    prompts: float = 256
    k: int = 4


_PASS = series_id("rl_rollout_samples_total", {"outcome": "pass"})
_FAIL = series_id("rl_rollout_samples_total", {"outcome": "fail"})
_TRUNCATED = series_id("rl_rollout_truncated_total", {"reason": "length"})
_MIXED = series_id("rl_rollout_groups_total", {"signal": "mixed"})
_FLAT = series_id("rl_rollout_groups_total", {"signal": "all_fail"})
_NONFINITE = tuple(series_id("rl_trainer_nonfinite_total", {"quantity": each}) for each in ("loss", "grad"))
_LOSS = series_id("rl_trainer_loss", {"component": "total"})
_MISMATCH = series_id("rl_trainer_sampler_mismatch_kl_nats", {"estimator": "k3"})
_UTILIZATION = series_id("rl_trainer_utilization_ratio", {"role": "process"})


class Meter:
    """The series of one run. `incarnation` starts all counters at zero, as a new process does."""

    def __init__(self, incarnation: str, planned_steps: int, dataset: str = "held_out") -> None:
        self._dataset, self._planned = dataset, planned_steps
        self._values: dict[str, float] = {}
        self.incarnation(incarnation)

    def incarnation(self, uuid: str, step: int = 0, branch: int = 0) -> None:
        """A process starts."""
        self._values = {
            series_id("rl_trainer_incarnation_info", {"uuid": uuid}): 1.0,
            "rl_trainer_planned_steps": float(self._planned),
            "rl_trainer_global_step": float(step),
            "rl_trainer_branch": float(branch),
            "rl_trainer_steps_total": 0.0,
            **dict.fromkeys(_NONFINITE, 0.0),
        }

    def restored(self, step: int, branch: int, compute: float) -> None:
        """The trainer went back to `step`."""
        self._values["rl_trainer_global_step"] = float(step)
        self._values["rl_trainer_branch"] = float(branch)
        self._values["rl_trainer_lineage_compute_gpu_seconds"] = compute

    def step(self, tally: Tally, at: float) -> None:
        """A step ended at unix time `at`."""
        values = self._values
        values["rl_trainer_global_step"] = float(tally.step)
        values["rl_trainer_steps_total"] += 1.0
        values["rl_trainer_last_step_timestamp_seconds"] = at
        self._count(tally)
        for name, value in (
            ("rl_trainer_entropy_nats", tally.entropy),
            (_MISMATCH, tally.mismatch_kl),
            ("rl_trainer_effective_sample_ratio", tally.effective_samples),
            ("rl_rollout_staleness_steps_max", tally.staleness),
            ("rl_trainer_learning_rate", tally.lr),
            (_UTILIZATION, tally.utilization),
            ("rl_trainer_lineage_compute_gpu_seconds", tally.compute),
        ):
            if isfinite(value):
                values[name] = value
        # A step without an update has no loss: the gauge says so, or the last one would be read again.
        for name, value in ((_LOSS, tally.loss), ("rl_trainer_grad_norm", tally.grad_norm)):
            if isfinite(value) or name in values or tally.nonfinite:
                values[name] = value
        for name in _NONFINITE:
            values[name] += tally.nonfinite

    def evaluation(self, result: Evaluation, branch: int) -> None:
        """A held-out evaluation of the weights of `branch`."""
        only, both = {"dataset": self._dataset}, {"dataset": self._dataset, "k": str(result.k)}
        self._values |= {
            series_id("rl_eval_pass_ratio", both): result.pass_rate,
            series_id("rl_eval_prompts", only): result.prompts,
            series_id("rl_eval_last_step", only): float(result.step),
            series_id("rl_eval_branch", only): float(branch),
            series_id("rl_eval_compute_gpu_seconds", only): result.compute,
        }

    def checkpoint(self, step: int, at: float) -> None:
        """A checkpoint was written and verified at unix time `at`."""
        self._values["rl_checkpoint_last_step"] = float(step)
        self._values["rl_checkpoint_last_success_timestamp_seconds"] = at

    def snapshot(self, at: float, sampled_at: float, observed: Observed) -> Snapshot:
        """What a look at unix time `at` finds."""
        # Everything here was made by us; validating it anew at each of millions of looks would only cost time.
        return Snapshot.model_construct(
            at=at, sampled_at=sampled_at, metrics=dict(self._values), observed=observed, errors=()
        )

    def _count(self, tally: Tally) -> None:
        n = tally.samples
        if isfinite(n) and isfinite(tally.pass_rate):
            self._add(_PASS, n * tally.pass_rate)
            self._add(_FAIL, n * (1.0 - tally.pass_rate))
            if isfinite(tally.truncation):
                self._add(_TRUNCATED, n * tally.truncation)
        if isfinite(n) and isfinite(tally.gen_length):
            self._add("rl_rollout_length_tokens_sum", n * tally.gen_length)
            self._add("rl_rollout_length_tokens_count", n)
        if isfinite(tally.groups) and isfinite(tally.zero_variance):
            self._add(_FLAT, tally.groups * tally.zero_variance)
            self._add(_MIXED, tally.groups * (1.0 - tally.zero_variance))

    def _add(self, name: str, amount: float) -> None:
        self._values[name] = self._values.get(name, 0.0) + amount
