"""Reports of the trainer -> metrics. Every family of `contract.metrics.TRAINER` is set here and nowhere else.

Amounts in a report are those since the last report, so counters add them up; gauges hold the last reading, NaN included
("not measured in this step").
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from controlplane.agent.exposition import Store
from controlplane.agent.stepjudge import PASS_WINDOW, StepJudge
from controlplane.contract.documents import AckState, CheckpointState, Health, Phase
from controlplane.contract.metrics import TRAINER, Metric
from controlplane.contract.reports import CheckpointReport, EvalReport, RolloutStats, StepReport
from controlplane.contract.rundir import RunInfo


def trainer_metrics(token_limit: int | None) -> tuple[Metric, ...]:
    """`TRAINER` with the run's own token limit among the length buckets, since quantiles are exact only at bounds.

    No completion is longer than the limit, so bounds above it say nothing and are left out; 15,000 stays, rules name it.
    """
    if token_limit is None:
        return TRAINER
    return tuple(
        replace(metric, buckets=tuple(sorted({15000, token_limit, *(b for b in metric.buckets if b < token_limit)})))
        if metric.name == "rl_rollout_length_tokens"
        else metric
        for metric in TRAINER
    )


class Exporter:
    """Writes reports into a store. `clock` gives Unix seconds."""

    def __init__(self, store: Store, info: RunInfo, incarnation: str, clock: Callable[[], float]) -> None:
        self._store, self._clock, self._judge = store, clock, StepJudge()
        facts = info.model_dump(include={"name", "run_uid", "algorithm", "model", "framework", "config_hash"})
        store.info("rl_run_info", **facts)
        store.info("rl_trainer_incarnation_info", incarnation=incarnation)
        store.set("rl_run_created_timestamp_seconds", info.created_at)
        store.set("rl_trainer_start_timestamp_seconds", clock())
        store.set("rl_trainer_planned_steps", info.planned_steps)
        self.phase(Phase.idle)

    def phase(self, phase: Phase) -> None:
        """What the trainer is doing."""
        self._store.state("rl_trainer_state", phase.value)

    def step(self, report: StepReport) -> None:
        """One optimiser step. A scrape sees all of it or nothing."""
        with self._store.update():
            self._progress(report)
            self._learning(report)
            self._rollouts(report.rollouts)
            self._pipeline(report)
            self._judged(report)

    def _progress(self, report: StepReport) -> None:
        store = self._store
        store.set("rl_trainer_branch", report.branch)
        store.set("rl_trainer_global_step", report.step)
        store.inc("rl_trainer_steps_total")
        store.set("rl_trainer_last_step_timestamp_seconds", self._clock())
        store.observe_many("rl_trainer_step_seconds", (report.seconds,))
        for phase, seconds in report.phase_seconds.items():
            store.inc("rl_trainer_phase_seconds_total", seconds, phase=phase)
        for pool, seconds in report.device_seconds.items():
            store.inc("rl_trainer_compute_gpu_seconds_total", seconds, pool=pool)
        store.set("rl_trainer_lineage_compute_gpu_seconds", report.compute)

    def _learning(self, report: StepReport) -> None:
        store = self._store
        store.set("rl_trainer_loss", report.loss, component="total")
        store.set("rl_trainer_grad_norm", report.grad_norm)
        store.set("rl_trainer_gradient_noise_scale_prompts", report.noise_scale_prompts)
        store.inc("rl_trainer_grad_clipped_steps_total", report.grad_clipped)
        if report.skipped:
            store.inc("rl_trainer_skipped_steps_total", reason=report.skipped)
        store.set("rl_trainer_entropy_nats", report.entropy)
        store.set("rl_trainer_sampler_mismatch_kl_nats", report.mismatch_kl, estimator="k3")
        store.set("rl_trainer_importance_ratio", report.ratio_mean, stat="mean")
        store.set("rl_trainer_importance_ratio", report.ratio_max, stat="max")
        store.set("rl_trainer_clipped_token_ratio", report.clipped_ratio, bound="high")
        store.set("rl_trainer_clipped_token_ratio", report.clipped_low_ratio, bound="low")
        store.set("rl_trainer_masked_token_ratio", report.masked_ratio, reason="forced")
        store.set("rl_trainer_effective_sample_ratio", report.effective_sample_ratio)
        store.set("rl_trainer_advantage_stddev", report.advantage_std)
        store.inc("rl_trainer_trained_tokens_total", report.trained_tokens)
        store.set("rl_trainer_learning_rate", report.lr)

    def _rollouts(self, rollouts: RolloutStats) -> None:
        store, verified = self._store, rollouts.passed + rollouts.failed
        for outcome, number in (("pass", rollouts.passed), ("fail", rollouts.failed), ("error", rollouts.errored)):
            store.inc("rl_rollout_samples_total", number, outcome=outcome)
        store.set("rl_rollout_pass_ratio", rollouts.passed / verified if verified else math.nan)
        for signal, number in rollouts.groups.items():
            store.inc("rl_rollout_groups_total", number, signal=signal)
        for reason, number in rollouts.dropped_groups.items():
            store.inc("rl_rollout_dropped_groups_total", number, reason=reason)
        store.observe_many("rl_rollout_reward", rollouts.rewards)
        store.observe_many("rl_rollout_length_tokens", rollouts.lengths)
        store.observe_many("rl_rollout_prompt_tokens", rollouts.prompt_lengths)
        store.observe_many("rl_rollout_seconds", rollouts.seconds)
        store.observe_many("rl_rollout_staleness_steps", rollouts.staleness)
        store.set("rl_rollout_staleness_steps_max", max(rollouts.staleness, default=math.nan))
        store.inc("rl_rollout_truncated_total", rollouts.truncated, reason="length")
        store.inc("rl_rollout_interrupted_total", rollouts.interrupted)
        store.inc("rl_rollout_tokens_total", rollouts.prompt_tokens, kind="prompt")
        store.inc("rl_rollout_tokens_total", rollouts.generated_tokens, kind="generated")
        store.inc("rl_rollout_tokens_total", rollouts.discarded_tokens, kind="discarded")

    def _pipeline(self, report: StepReport) -> None:
        store = self._store
        store.set("rl_rollout_inflight", report.inflight)
        for state, number in report.buffer.items():
            if state == "capacity":
                store.set("rl_buffer_capacity_groups", number)
            else:
                store.set("rl_buffer_groups", number, state=state)
        store.set("rl_sampler_weights_version", report.weights_version)
        store.observe_many("rl_weight_sync_seconds", (report.weight_sync_seconds,))
        for role, share in report.utilization.items():
            store.set("rl_trainer_utilization_ratio", share, role=role)

    def _judged(self, report: StepReport) -> None:
        store, verdict = self._store, self._judge.judge(report)
        store.inc("rl_trainer_loss_spikes_total", verdict.loss_spike)
        store.inc("rl_trainer_grad_norm_spikes_total", verdict.grad_norm_spike)
        for quantity in verdict.nonfinite:
            store.inc("rl_trainer_nonfinite_total", quantity=quantity)
        if verdict.window_pass_ratio is not None:
            store.set("rl_rollout_window_pass_ratio", verdict.window_pass_ratio, window=str(PASS_WINDOW))

    def evaluation(self, report: EvalReport) -> None:
        """One held-out evaluation."""
        store, dataset, k = self._store, report.dataset, str(report.k)
        with store.update():
            store.set("rl_eval_pass_ratio", report.pass_ratio, dataset=dataset, k=k)
            for j, share in {**report.pass_at, report.k: report.pass_at_k}.items():
                store.set("rl_eval_pass_at_k_ratio", share, dataset=dataset, k=str(j))
            store.set("rl_eval_pass_stderr_ratio", report.pass_ratio_stderr, dataset=dataset, k=k)
            store.set("rl_eval_prompts", report.prompts, dataset=dataset)
            store.set("rl_eval_last_step", report.step, dataset=dataset)
            store.set("rl_eval_branch", report.branch, dataset=dataset)
            store.set("rl_eval_compute_gpu_seconds", report.compute, dataset=dataset)
            store.set("rl_eval_length_tokens", report.mean_length, dataset=dataset)
            store.set("rl_eval_truncated_ratio", report.truncated_ratio, dataset=dataset)

    def checkpoint(self, report: CheckpointReport) -> None:
        """One attempt to write a checkpoint."""
        store = self._store
        with store.update():
            store.observe_many("rl_checkpoint_seconds", (report.seconds,))
            if report.failed_stage:
                store.inc("rl_checkpoint_failures_total", stage=report.failed_stage)
                return
            store.set("rl_checkpoint_last_success_timestamp_seconds", self._clock())
            store.set("rl_checkpoint_last_step", report.step)
            store.set("rl_checkpoint_size_bytes", report.size_bytes)

    def retained(self, checkpoints: Iterable[CheckpointState]) -> None:
        """Checkpoints on disk."""
        numbers = Counter(checkpoint.health for checkpoint in checkpoints)
        with self._store.update():
            for health in Health:
                self._store.set("rl_checkpoint_retained", numbers[health], health=health.value)

    def tunables(self, values: Mapping[str, float]) -> None:
        """Tunables in force. `StepReport.tunables` are those of a batch that may be older, so they are not shown."""
        for name, value in values.items():
            self._store.set("rl_trainer_hyperparameter", value, name=name)

    def changed(self, names: Iterable[str], source: str) -> None:
        """Tunables that got a new value, and from whom."""
        self._store.inc("rl_trainer_hyperparameter_changes_total", len(tuple(names)), source=source)

    def answered(self, state: AckState, generation: int, rolled_back: bool) -> None:
        """What became of a control document, and the generation in force now."""
        with self._store.update():
            if state is not AckState.accepted:
                self._store.inc("rl_trainer_control_messages_total", state=state.value)
            self._store.set("rl_trainer_control_generation", generation)
            self._store.inc("rl_trainer_rollbacks_total", rolled_back, reason="controller")
