"""What is said about a step: the StepReport for the agent and the line for steps.jsonl. Pure."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from controlplane.contract.reports import EvalReport, RolloutStats, StepReport
from trainer.evaluate import EvalResult
from trainer.learn import LearnResult
from trainer.rollout.buffer import staleness
from trainer.state import RunState
from trainer.types import ScoredGroup, Version


def rollout_stats(
    batch: Sequence[ScoredGroup], now: Version, dropped: Mapping[str, int], discarded_tokens: int
) -> RolloutStats:
    """Everything about the completions of a batch, used by a learner at version `now`."""
    pairs = [(scored, c, v) for scored in batch for c, v in zip(scored.group.completions, scored.verdicts, strict=True)]
    signals = [scored.signal for scored in batch]
    return RolloutStats(
        rewards=tuple(verdict.reward for _, _, verdict in pairs),
        passed=sum(verdict.passed for _, _, verdict in pairs),
        failed=sum(not verdict.passed for _, _, verdict in pairs),
        lengths=tuple(len(completion.tokens) for _, completion, _ in pairs),
        prompt_lengths=tuple(len(scored.group.request.prompt.tokens) for scored, _, _ in pairs),
        staleness=tuple(staleness(completion.oldest, now) for _, completion, _ in pairs),
        seconds=tuple(completion.seconds for _, completion, _ in pairs),
        truncated=sum(completion.finish == "length" for _, completion, _ in pairs),
        interrupted=sum(completion.interrupted for _, completion, _ in pairs),
        groups={signal: signals.count(signal) for signal in ("mixed", "all_pass", "all_fail")},
        dropped_groups=dict(dropped),
        generated_tokens=sum(len(completion.tokens) for _, completion, _ in pairs),
        prompt_tokens=sum(len(scored.group.request.prompt.tokens) for scored in batch),
        discarded_tokens=discarded_tokens,
    )


def masked_ratio(batch: Sequence[ScoredGroup]) -> float:
    """Share of generated tokens that were forced and carry no loss."""
    masks = [completion.loss_mask for scored in batch for completion in scored.group.completions]
    return 1.0 - sum(map(sum, masks)) / sum(map(len, masks))


def learn_fields(result: LearnResult) -> dict[str, Any]:
    """The fields of a StepReport that the learner knows; both use the same names."""
    return {name: getattr(result, name) for name in LearnResult.__dataclass_fields__}


def eval_report(result: EvalResult, state: RunState, seconds: float) -> EvalReport:
    """What the agent is told about one held-out set; `seconds` is the wall time of its evaluation."""
    return EvalReport(
        dataset=result.dataset,
        step=state.step,
        branch=state.branch,
        compute=state.compute,
        prompts=result.prompts,
        k=result.k,
        pass_ratio=result.pass_ratio,
        pass_at_k=result.pass_at_k,
        mean_length=result.mean_length,
        truncated_ratio=result.truncated_ratio,
        seconds=seconds,
        pass_ratio_stderr=result.pass_ratio_stderr,
        pass_at=result.pass_at,
    )


def eval_line(report: EvalReport, account: Mapping[str, Any], time: float) -> dict[str, Any]:
    """One line of evals.jsonl. `account` is what the weights have cost so far."""
    line = {**vars(report), "pass_at": {str(j): value for j, value in report.pass_at.items()}}
    return {**{key: finite(value) for key, value in line.items()}, "account": dict(account), "time": time}


def step_line(report: StepReport, epoch: int, time: float, process: float) -> dict[str, Any]:
    """One line of steps.jsonl. Null where a skipped step measured nothing (JSON has no NaN)."""
    rollouts = report.rollouts
    n = rollouts.passed + rollouts.failed
    line: dict[str, Any] = {
        "step": report.step,
        "branch": report.branch,
        "time": time,
        "epoch": epoch,
        "pass_ratio": rollouts.passed / n,
        "n": n,
        "loss": report.loss,
        "grad_norm": report.grad_norm,
        "noise_scale_prompts": report.noise_scale_prompts,
        "lr": report.lr,
        "lr_scale": report.tunables["lr_scale"],
        "truncated": rollouts.truncated / n,
        "interrupted": rollouts.interrupted / n,
        "mean_length": sum(rollouts.lengths) / n,
        "entropy": report.entropy,
        "mismatch_kl": report.mismatch_kl,
        "ratio_mean": report.ratio_mean,
        "ratio_max": report.ratio_max,
        "clipped_ratio": report.clipped_ratio,
        "clipped_low_ratio": report.clipped_low_ratio,
        "effective_sample_ratio": report.effective_sample_ratio,
        "zero_variance": 1.0 - rollouts.groups["mixed"] / sum(rollouts.groups.values()),
        "staleness_mean": sum(rollouts.staleness) / n,
        "staleness_max": max(rollouts.staleness),
        "staleness": {str(steps): count for steps, count in sorted(Counter(rollouts.staleness).items())},
        "dropped": dict(rollouts.dropped_groups),
        "weights_version": report.weights_version,
        "seconds": report.seconds,
        "phase_seconds": dict(report.phase_seconds),
        "compute": report.compute,
        "utilization": process,
        "skipped": report.skipped,
        "tunables": dict(report.tunables),
    }
    return {key: finite(value) for key, value in line.items()}


def finite(value: Any) -> Any:
    """The value, or None for NaN and infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
