"""Every metric that trainer and controller export, as data. Exporter, dashboards, alert rules, docs and tests read this list.

Names follow the Prometheus rules: base units, `_total` on counters, `_ratio` between 0 and 1. `labels` gives each label its
possible values; every combination exists at 0 from the start, because `increase()` cannot see a counter that is born
at 1. A label with no listed values (`()`) is open: its series appear when they are first known. Prometheus knows time,
not steps, so whatever must be judged per step (spikes, non-finite values, step windows) is judged in the process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from controlplane.contract.documents import Phase

Kind = Literal["counter", "gauge", "histogram", "info", "state"]
Source = Literal["trainer", "controller", "exporter"]
"""Who writes it: the trainer's agent, the controller, or the part of the agent that reads the GPUs (or DCGM in its place)."""

TOKENS = (
    64,
    128,
    256,
    512,
    1024,
    2048,
    4096,
    8192,
    12288,
    15000,
    16384,
    20480,
    24576,
    32768,
    49152,
    65536,
    131072,
)
"""Bucket bounds in tokens. 15,000 is a bound because a bucket quantile is exact only there; the run's limit is added."""
STEP_SECONDS = (0.5, 2, 10, 30, 60, 300, 1200)
ROLLOUT_SECONDS = (30, 120, 600, 3600)
PROMPT_TOKENS = (512, 2048, 8192)
SYNC_SECONDS = (0.5, 5, 30)
CHECKPOINT_SECONDS = (30, 300)
REWARD = (-1, 0, 0.25, 0.5, 0.75, 1)
STALENESS = (0, 1, 2, 4, 8)
"""Each bound is a series for every run, for good: there are as many as somebody reads."""


@dataclass(frozen=True)
class Metric:
    """One metric family. `name` is what a query uses: counters end in `_total`."""

    name: str
    kind: Kind
    help: str
    unit: str = ""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    source: Source = "trainer"

    @property
    def samples(self) -> tuple[str, ...]:
        """The names that a query can use."""
        if self.kind == "histogram":
            suffixes = ("_bucket",) if min(self.buckets) < 0 else ("_bucket", "_sum", "_count")
            return tuple(self.name + suffix for suffix in suffixes)
        return (self.name,)


def _metric(
    name: str, kind: Kind, help: str, unit: str = "", buckets: tuple[float, ...] = (), /, **labels: tuple[str, ...]
) -> Metric:
    return Metric(name, kind, help, unit, labels, buckets=buckets)


PHASES = tuple(phase.value for phase in Phase)
POOLS = ("generator", "learner", "evaluator")
QUANTITIES = ("loss", "grad", "logprob", "reward", "advantage")
QUANTILES = ("0.05", "0.1", "0.5", "0.9", "0.95")

TRAINER: tuple[Metric, ...] = (
    # The run and its steps
    _metric("rl_run_created_timestamp_seconds", "gauge", "Unix time at which the run was created.", "seconds"),
    _metric("rl_run_info", "info", "Static facts of the run: name, run_uid, algorithm, model, framework, versions, configuration hash."),
    _metric("rl_trainer_incarnation_info", "info", "UUID of this process start."),
    _metric("rl_trainer_start_timestamp_seconds", "gauge", "Unix time of this process start.", "seconds"),
    _metric("rl_trainer_branch", "gauge", "Branch of the run; raised by one at each rollback."),
    _metric("rl_trainer_global_step", "gauge", "Optimiser step of the weights in force; goes back at a rollback.", "steps"),
    _metric("rl_trainer_planned_steps", "gauge", "Step at which the run ends.", "steps"),
    _metric("rl_trainer_steps_total", "counter", "Optimiser steps finished by this process.", "steps"),
    _metric("rl_trainer_last_step_timestamp_seconds", "gauge", "Unix time at which the last optimiser step ended.", "seconds"),
    _metric("rl_trainer_state", "state", "What the trainer is doing.", state=PHASES),
    _metric("rl_trainer_step_seconds", "histogram", "Wall time of one optimiser step.", "seconds", STEP_SECONDS),
    _metric("rl_trainer_phase_seconds_total", "counter", "Wall time spent, by phase; the rates of all phases add up to one.", "seconds", phase=PHASES),
    _metric("rl_trainer_compute_gpu_seconds_total", "counter", "Device time spent (devices held x wall time), by pool.", "seconds", pool=POOLS),
    _metric("rl_trainer_lineage_compute_gpu_seconds", "gauge", "Device time behind the weights in force; a rollback takes it back.", "seconds"),
    # Learning
    _metric("rl_trainer_loss", "gauge", "Loss of the last step.", component=("total",)),
    _metric("rl_trainer_loss_spikes_total", "counter", "Steps whose loss failed the spike test, judged at every step in the process."),
    _metric("rl_trainer_grad_norm_spikes_total", "counter", "Steps whose gradient norm failed the spike test, judged at every step in the process."),
    _metric("rl_trainer_nonfinite_total", "counter", "Steps with a NaN or infinite value, by quantity.", quantity=QUANTITIES),
    _metric("rl_trainer_skipped_steps_total", "counter", "Steps whose update was not applied, by reason.", reason=("nonfinite", "no_signal")),
    _metric("rl_trainer_grad_norm", "gauge", "Global gradient norm before clipping; NaN in a step without an update."),
    _metric("rl_trainer_gradient_noise_scale_prompts", "gauge", "Gradient noise scale over the last 50 steps, in prompts with signal: batches far below it are mostly noise.", "prompts"),
    _metric("rl_trainer_grad_clipped_steps_total", "counter", "Steps whose gradient was clipped."),
    _metric("rl_trainer_entropy_nats", "gauge", "Mean token entropy of the policy.", "nats"),
    _metric("rl_trainer_sampler_mismatch_kl_nats", "gauge", "Mean per-token KL between sampler and learner, staleness included.", "nats", estimator=("k3",)),
    _metric("rl_trainer_importance_ratio", "gauge", "Importance ratio of the last step.", stat=("mean", "max")),
    _metric("rl_trainer_clipped_token_ratio", "gauge", "Share of tokens whose importance ratio was cut; NaN for a bound that the loss does not have.", "ratio", bound=("high", "low")),
    _metric("rl_trainer_masked_token_ratio", "gauge", "Share of generated tokens that carry no loss, by reason.", "ratio", reason=("forced",)),
    _metric("rl_trainer_effective_sample_ratio", "gauge", "Effective sample size of the importance weights over their number.", "ratio"),
    _metric("rl_trainer_advantage_stddev", "gauge", "Standard deviation of the advantages before normalisation."),
    _metric("rl_trainer_trained_tokens_total", "counter", "Tokens that went through the optimiser.", "tokens"),
    _metric("rl_trainer_learning_rate", "gauge", "Learning rate of the last step: schedule times lr_scale."),
    _metric("rl_trainer_hyperparameter", "gauge", "Tunable in force, in its own unit.", name=()),
    _metric("rl_trainer_hyperparameter_changes_total", "counter", "Changes of tunables, by who made them; which ones shows in rl_trainer_hyperparameter.", source=("controller", "lease", "user")),
    # Rollouts
    _metric("rl_rollout_samples_total", "counter", "Completions verified, by outcome.", outcome=("pass", "fail", "error")),
    _metric("rl_rollout_pass_ratio", "gauge", "Passed over passed and failed completions, last step.", "ratio"),
    _metric("rl_rollout_window_pass_ratio", "gauge", "The same over the last whole window of that many steps; changes only when a window closes.", "ratio", window=("100",)),
    _metric("rl_rollout_groups_total", "counter", "Prompt groups by signal; only mixed ones give a gradient.", signal=("mixed", "all_pass", "all_fail")),
    _metric("rl_rollout_dropped_groups_total", "counter", "Prompt groups that never reached the learner, by reason.", reason=("stale", "error", "rollback")),
    _metric("rl_rollout_reward", "histogram", "Reward of each completion.", "", REWARD),
    _metric("rl_rollout_length_tokens", "histogram", "Generated tokens of each completion.", "tokens", TOKENS),
    _metric("rl_rollout_prompt_tokens", "histogram", "Prompt tokens of each completion.", "tokens", PROMPT_TOKENS),
    _metric("rl_rollout_truncated_total", "counter", "Completions cut short by the length limit; by finish reason only.", reason=("length",)),
    _metric("rl_rollout_interrupted_total", "counter", "Completions whose thinking was closed by force."),
    _metric("rl_rollout_tokens_total", "counter", "Tokens through the sampler.", "tokens", kind=("prompt", "generated", "discarded")),
    _metric("rl_rollout_seconds", "histogram", "Wall time of one completion, admission to last token.", "seconds", ROLLOUT_SECONDS),
    _metric("rl_rollout_staleness_steps", "histogram", "Optimiser steps between the oldest weights in a completion and the learner, at use.", "steps", STALENESS),
    _metric("rl_rollout_staleness_steps_max", "gauge", "Largest staleness in the last batch.", "steps"),
    _metric("rl_rollout_inflight", "gauge", "Completions being generated."),
    _metric("rl_buffer_groups", "gauge", "Prompt groups in the rollout buffer, by state.", state=("waiting", "inflight", "ready", "held")),
    _metric("rl_buffer_capacity_groups", "gauge", "Groups that the staleness bound admits now."),
    _metric("rl_sampler_weights_version", "gauge", "Weights version that the sampler holds, within the branch.", "steps"),
    _metric("rl_weight_sync_seconds", "histogram", "Wall time of one weight transfer to the sampler.", "seconds", SYNC_SECONDS),
    # Held-out evaluation
    _metric("rl_eval_pass_ratio", "gauge", "Held-out mean@k of the last evaluation.", "ratio", dataset=(), k=()),
    _metric("rl_eval_pass_at_k_ratio", "gauge", "Held-out share of prompts solved at least once in k; for some k up to the completions of a prompt.", "ratio", dataset=(), k=()),
    _metric("rl_eval_pass_stderr_ratio", "gauge", "Standard error of the held-out mean@k over prompts.", "ratio", dataset=(), k=()),
    _metric("rl_eval_prompts", "gauge", "Prompts of that evaluation.", dataset=()),
    _metric("rl_eval_last_step", "gauge", "Step of the last evaluation.", "steps", dataset=()),
    _metric("rl_eval_branch", "gauge", "Branch of the weights of the last evaluation; an older one than the run's is of an abandoned branch.", dataset=()),
    _metric("rl_eval_compute_gpu_seconds", "gauge", "Device time behind the weights of the last evaluation.", "seconds", dataset=()),
    _metric("rl_eval_length_tokens", "gauge", "Mean length in the last evaluation.", "tokens", dataset=()),
    _metric("rl_eval_truncated_ratio", "gauge", "Truncated share in the last evaluation.", "ratio", dataset=()),
    # Checkpoints and control
    _metric("rl_checkpoint_last_success_timestamp_seconds", "gauge", "Unix time of the last checkpoint written and verified.", "seconds"),
    _metric("rl_checkpoint_last_step", "gauge", "Step of that checkpoint.", "steps"),
    _metric("rl_checkpoint_seconds", "histogram", "Wall time of one checkpoint.", "seconds", CHECKPOINT_SECONDS),
    _metric("rl_checkpoint_size_bytes", "gauge", "Size of the last checkpoint.", "bytes"),
    _metric("rl_checkpoint_failures_total", "counter", "Checkpoints that failed, by stage.", stage=("write", "verify")),
    _metric("rl_checkpoint_retained", "gauge", "Checkpoints on disk, by health.", health=("fresh", "good", "bad")),
    _metric("rl_trainer_rollbacks_total", "counter", "Rollbacks carried out, by who asked.", reason=("controller",)),
    _metric("rl_trainer_control_generation", "gauge", "Generation of the control document in force."),
    _metric("rl_trainer_control_messages_total", "counter", "Control documents by what became of them.", state=("applied", "rejected", "expired", "reverted", "failed")),
    # Devices
    _metric("rl_trainer_utilization_ratio", "gauge", "Share of the held devices' time in use since the last step; CPU time on machines without a GPU.", "ratio", role=("process", "generator", "learner")),
)  # fmt: skip

_GPU = {"node": (), "gpu": (), "role": ()}

GPU: tuple[Metric, ...] = (
    _metric("rl_gpu_utilization_ratio", "gauge", "Share of the sampling window in which a kernel ran (NVML, DCGM); communication kernels count.", "ratio", **_GPU),
    _metric("rl_gpu_tensor_active_ratio", "gauge", "Share of cycles in which the tensor pipes were active; from DCGM only.", "ratio", **_GPU),
    _metric("rl_gpu_memory_used_bytes", "gauge", "GPU memory in use.", "bytes", **_GPU),
    _metric("rl_gpu_memory_total_bytes", "gauge", "GPU memory there is.", "bytes", **_GPU),
    _metric("rl_gpu_power_watts", "gauge", "GPU power draw.", "watts", **_GPU),
    _metric("rl_gpu_temperature_celsius", "gauge", "GPU core temperature.", "celsius", **_GPU),
)  # fmt: skip

CONTROLLER: tuple[Metric, ...] = (
    _metric("rl_controller_mode", "state", "Highest autonomy that the policy in force allows.", state=("observe", "advise", "act", "hold")),
    _metric("rl_controller_start_timestamp_seconds", "gauge", "Unix time of this process start.", "seconds"),
    _metric("rl_controller_last_evaluation_timestamp_seconds", "gauge", "Unix time of the last evaluation of the policy.", "seconds"),
    _metric("rl_controller_evaluation_seconds", "histogram", "Wall time of one evaluation of the policy.", "seconds", (0.1,)),
    _metric("rl_controller_detector_active", "gauge", "1 while the detector is in alarm.", detector=()),
    _metric("rl_controller_detector_value", "gauge", "The statistic that the detector compares with its threshold.", detector=()),
    _metric("rl_controller_rule_active", "gauge", "1 while the trouble that a rule watches for lasts.", rule=()),
    _metric("rl_controller_rule_actions_remaining", "gauge", "Actions that the limits of the policy still leave to a rule.", rule=()),
    _metric("rl_controller_rule_cooldown_steps", "gauge", "Steps until a rule may act again; 0 when it may.", "steps", rule=()),
    _metric("rl_policy_threshold", "gauge", "Threshold in force of a detector.", detector=()),
    _metric("rl_policy_info", "info", "Name and hash of the policy in force."),
    _metric("rl_controller_decisions_total", "counter", "Decisions that somebody hears of, by rule, action and what became of them; looks that only hold are not counted.", rule=(), action=(), result=()),
    _metric("rl_controller_action_seconds", "histogram", "Time from a decision to the trainer's answer.", "seconds", (60, 600), action=()),
    _metric("rl_controller_verdicts_total", "counter", "Actions judged afterwards, by whether the pass rate returned to what it was.", helped=("true", "false")),
    _metric("rl_controller_notices_total", "counter", "Notices about decisions, by where to and what became of them; dropped ones found the queue full.", channel=("grafana", "webhook"), result=("sent", "failed", "dropped")),
    _metric("rl_controller_rollbacks_remaining", "gauge", "Rollbacks left in the budget of the policy."),
    _metric("rl_controller_source_errors_total", "counter", "Failed reads, by source.", origin=("metrics", "observed")),
    _metric("rl_controller_sample_age_seconds", "gauge", "Age of the newest sample that the last evaluation used.", "seconds"),
    _metric("rl_controller_blind_seconds", "gauge", "Time for which nothing usable could be read from the trainer; 0 when the last look was usable.", "seconds"),
    _metric("rl_fit_parameter", "gauge", "Parameter of the compute curve, by quantile.", curve=(), parameter=("A", "B", "C_mid", "R0"), q=("0.1", "0.5", "0.9")),
    _metric("rl_fit_points", "gauge", "Evaluations that the fit used.", curve=()),
    _metric("rl_forecast_pass_ratio", "gauge", "Forecast pass ratio at the end of the run, by quantile; NaN while the forecast is refused.", "ratio", curve=(), q=QUANTILES),
    _metric("rl_fit_last_success_timestamp_seconds", "gauge", "Unix time of the last forecast that was not refused.", "seconds", curve=()),
    _metric("rl_forecast_compute", "gauge", "Compute on the axis of the forecast (GPU-seconds or steps): of the newest evaluation, and at the end of the run.", curve=(), axis=("gpu_seconds", "step"), at=("now", "end")),
    _metric("rl_forecast_coverage_ratio", "gauge", "Share of this run's evaluations inside the interval of the given nominal level that was forecast just before them.", "ratio", curve=(), nominal=("0.8", "0.95")),
    _metric("rl_forecast_scored_evaluations", "gauge", "Evaluations that the coverage is counted over.", curve=()),
    _metric("rl_forecast_refused", "gauge", "1 while the forecaster refuses to name an end.", curve=()),
    _metric("rl_forecast_target_pass_ratio", "gauge", "Target of the policy.", "ratio"),
    _metric("rl_forecast_target_probability", "gauge", "Probability of reaching the target by the end of the run.", "ratio", curve=()),
)  # fmt: skip

METRICS: tuple[Metric, ...] = (
    *TRAINER,
    *(replace(metric, source="exporter") for metric in GPU),
    *(replace(metric, source="controller") for metric in CONTROLLER),
)
"""The whole list, each family with who writes it."""

BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}

FOREIGN: Mapping[str, str] = {
    "up": "Prometheus: 1 while a target answers",
    "ALERTS": "Prometheus: alerts that are pending or firing",
    "scrape_duration_seconds": "Prometheus: time that a scrape took",
    "scrape_samples_scraped": "Prometheus: samples on a page",
    "DCGM_FI_DEV_GPU_UTIL": "dcgm-exporter: percent of time with a kernel running",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": "dcgm-exporter: share of cycles with active tensor pipes",
    "DCGM_FI_DEV_FB_USED": "dcgm-exporter: MiB of memory in use",
    "DCGM_FI_DEV_FB_FREE": "dcgm-exporter: MiB of memory free",
    "DCGM_FI_DEV_FB_RESERVED": "dcgm-exporter: MiB of memory that the driver keeps",
    "DCGM_FI_DEV_POWER_USAGE": "dcgm-exporter: watts",
    "DCGM_FI_DEV_GPU_TEMP": "dcgm-exporter: degrees Celsius",
    "vllm:num_requests_running": "vLLM: requests in the batch",
    "vllm:num_requests_waiting": "vLLM: requests that wait",
    "vllm:kv_cache_usage_perc": "vLLM: share of the key-value cache in use",
    "vllm:generation_tokens_total": "vLLM: tokens generated",
    "vllm:prompt_tokens_total": "vLLM: prompt tokens read",
    "vllm:request_success_total": "vLLM: requests ended, by reason",
}
"""Metrics of other programs that dashboards and rules may name, and what they are."""

SAMPLES: Mapping[str, Metric] = {name: metric for metric in METRICS for name in metric.samples}
"""Sample name, as a query uses it, to its family: `rl_trainer_step_seconds_bucket` to `rl_trainer_step_seconds`."""
