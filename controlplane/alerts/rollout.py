"""Alerts on rollouts: length, truncation, staleness, verifier."""

from controlplane.alerts.limits import Limits
from controlplane.alerts.model import FIRES, SILENT, Alert, Story, grown, held

COUNT = 'rl_rollout_length_tokens_count{run="r1"}'


def rollout(limits: Limits) -> tuple[Alert, ...]:
    """What the sampler makes and the verifier judges."""
    return (_length(limits), _truncation(limits), _lag(), _verifier())


def _length(limits: Limits) -> Alert:
    tokens = 'rl_rollout_length_tokens_sum{run="r1"}'
    short, long = 128 * limits.gen_length * 0.5, 128 * limits.gen_length * 1.3
    return Alert(
        "RLGenerationLengthHigh",
        "warning",
        "rollout",
        f"run:rl_rollout_length_tokens:mean10m > {limits.gen_length:g}",
        "Completions are long",
        "Run {{ $labels.run }}: completions are {{ $value | humanize }} tokens long on average; "
        f"the limit is {limits.gen_length:g}.",
        "Mean length over ten minutes. Length is time and memory, and a run whose answers only grow is often rewarded for length "
        "and not for being right. With a token limit below the threshold this alert cannot fire: RLTruncationHigh is then the one.",
        "A policy may shorten by `max_new_tokens`, `thinking_budget` or `length_penalty`, as far as its autonomy goes.",
        (
            "Does the pass rate rise with the length? Then it is paid for; watch the step time.",
            "If not: shorten, by the controller's advice or by hand, and look for the verifier rewarding length.",
        ),
        wait="5m",
        keep="10m",
        signal="gen_length",
        stories=(
            Story(
                "a mean above the limit for longer than a window fires and shorter answers resolve it",
                {tokens: grown((short, 20), (long, 30), (short, 50)), COUNT: grown((128, 100))},
                {19: SILENT, 22: SILENT, 40: FIRES, 90: SILENT},
            ),
        ),
    )


def _truncation(limits: Limits) -> Alert:
    cut = 'rl_rollout_truncated_total{run="r1",reason="length"}'
    few, many = 128 * limits.truncation * 0.3, 128 * min(0.9, limits.truncation * 3)
    return Alert(
        "RLTruncationHigh",
        "warning",
        "rollout",
        f"run:rl_rollout_truncated_per_length_tokens_count:ratio_rate10m > {limits.truncation:g}",
        "Many completions are cut by the length limit",
        "Run {{ $labels.run }}: {{ $value | humanizePercentage }} of the completions hit the length limit; "
        f"the limit is {limits.truncation:.0%}.",
        "A completion that was cut gets no reward for what it had not yet said. Above some share the run learns from noise and "
        "goes unstable; it is one of the first signs of a collapse, where the model forgets how to end. Only completions whose "
        "finish reason is `length` count here, not those that were aborted.",
        "One of the keys of a rollback when the pass rate falls with it; alone it is a matter of length control.",
        (
            "Did it jump or creep? A jump with a falling pass rate is a collapse: see what the controller decided.",
            "A creep: raise the limit, lower the thinking budget, or penalise length.",
            "Review the run's stability: RLGradNormSpikes, RLEntropyCollapse, importance ratios.",
        ),
        wait="5m",
        keep="10m",
        signal="truncation",
        stories=(
            Story(
                "a share above the limit fires after window and wait, and resolves",
                {cut: grown((few, 20), (many, 30), (few, 50)), COUNT: grown((128, 100))},
                {19: SILENT, 22: SILENT, 35: FIRES, 90: SILENT},
            ),
            Story(
                "a run that makes no completions divides by nothing",
                {cut: held((5, 60)), COUNT: held((100, 60))},
                {50: SILENT},
            ),
        ),
    )


def _lag() -> Alert:
    lag = 'rl_rollout_staleness_steps_max{run="r1"}'
    bound = 'rl_trainer_hyperparameter{run="r1",name="max_staleness"}'
    return Alert(
        "RLOffPolicyLagHigh",
        "warning",
        "rollout",
        'rl_rollout_staleness_steps_max > on (run) group_left () rl_trainer_hyperparameter{name="max_staleness"}',
        "Samples are staler than the run allows",
        "Run {{ $labels.run }} trained on a sample that was {{ $value | humanize }} steps old, above its own `max_staleness`.",
        "The buffer admits nothing older than `max_staleness`, so our trainer cannot do this; a foreign trainer, or one whose bound "
        "was lowered a moment ago, can. Importance ratios of stale samples spread and the loss clips most of them.",
        "It may lower `max_staleness`, never repair a buffer that ignores it.",
        (
            "Was `max_staleness` lowered just now? Then it passes within a few steps.",
            "Otherwise the trainer breaks its own bound: this is a bug; save a checkpoint and report it.",
        ),
        wait="5m",
        keep="10m",
        signal="staleness",
        stories=(
            Story(
                "the bound of the run is the threshold",
                {lag: held((8, 20), (12, 20), (8, 30)), bound: held((8, 70))},
                {19: SILENT, 22: SILENT, 30: FIRES, 65: SILENT},
            ),
        ),
    )


def _verifier() -> Alert:
    error, passed = (
        'rl_rollout_samples_total{run="r1",outcome="error"}',
        'rl_rollout_samples_total{run="r1",outcome="pass"}',
    )
    return Alert(
        "RLVerifierErrorsHigh",
        "warning",
        "rollout",
        "run:rl_rollout_samples_error_per_samples:ratio_rate15m > 0.05",
        "The verifier fails often",
        "Run {{ $labels.run }}: {{ $value | humanizePercentage }} of the completions could not be judged.",
        "A completion that the verifier could not judge is left out. If errors depend on what was written (long, odd, "
        "unterminated), the run learns to avoid or to provoke them.",
        "Nothing: it cannot know whether a reward is right.",
        (
            "Read the trainer's log: a sandbox that is out of memory or time, a service that is away?",
            "Look whether errors and length go together on the Rollouts dashboard.",
        ),
        wait="10m",
        stories=(
            Story(
                "a tenth of the completions for long enough fires, repaired it resolves",
                {error: grown((0, 20), (15, 40), (0, 50)), passed: grown((100, 110))},
                {19: SILENT, 25: SILENT, 50: FIRES, 105: SILENT},
            ),
        ),
    )
