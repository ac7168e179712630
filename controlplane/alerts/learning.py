"""Alerts on learning: is the run worth less, or is it coming apart?"""

from controlplane.alerts.limits import Limits
from controlplane.alerts.model import FIRES, SILENT, Alert, Story, grown, held

STEP = 'rl_trainer_global_step{run="r1"}'


def learning(limits: Limits) -> tuple[Alert, ...]:
    """Loss, entropy, pass rate, forecast."""
    return (
        _pass_ratio(limits),
        *_spikes(),
        _nonfinite(),
        _entropy(limits),
        _mismatch(limits),
        _no_signal(limits),
        _forecast(),
    )


def _pass_ratio(limits: Limits) -> Alert:
    window = 'rl_rollout_window_pass_ratio{run="r1",window="100"}'
    return Alert(
        "RLPassRatioLow",
        "warning",
        "learning",
        f'rl_rollout_window_pass_ratio{{window="100"}} < {limits.pass_rate:g} and on (run) rl_trainer_global_step >= 100',
        "Pass rate of the last 100 steps is low",
        f"Run {{{{ $labels.run }}}} passed {{{{ $value | humanizePercentage }}}} of its completions over the last 100 steps; "
        f"the limit is {limits.pass_rate:.0%}.",
        "The trainer closes a window of 100 steps by itself and shows the share of completions that passed in it, so this number "
        "changes once in 100 steps. A low value early in a run is normal: hard prompts, a small model, a good curriculum all give it. "
        "It is a warning because a fixed limit knows nothing of the task; whether the run will reach its target is what "
        "RLForecastShortfall says.",
        "A policy with a detector on `pass_rate` sees the same drop step by step, usually long before this window closes. It "
        "needs a second sign (gradient norm, truncation, groups without signal) before it rolls anything back.",
        (
            "Look at the pass rate on the Learning dashboard: did it fall, or was it always there?",
            "If it fell: look for the decision of the controller at that time, and for RLGradNormSpikes or RLTruncationHigh beside it.",
            "If it was always there: compare with the forecast. Within its band this alert says nothing new; set the limit in the policy.",
        ),
        wait="2m",
        keep="5m",
        signal="pass_rate",
        stories=(
            Story(
                "a closed window below the limit fires after two minutes and the next good window resolves it",
                {
                    window: held(
                        (limits.pass_rate + 0.1, 10), (limits.pass_rate - 0.1, 20), (limits.pass_rate + 0.1, 30)
                    ),
                    STEP: held((100, 10), (200, 20), (300, 30)),
                },
                {9: SILENT, 11: SILENT, 13: ({"window": "100"},), 29: ({"window": "100"},), 45: SILENT},
            ),
            Story(
                "warm-up: before 100 steps nothing is judged",
                {window: held((0.1, 40)), STEP: held((60, 40))},
                {30: SILENT},
            ),
        ),
    )


def _spikes() -> tuple[Alert, ...]:
    loss, grad = 'rl_trainer_loss_spikes_total{run="r1"}', 'rl_trainer_grad_norm_spikes_total{run="r1"}'
    return (
        Alert(
            "RLLossSpike",
            "warning",
            "learning",
            "increase(rl_trainer_loss_spikes_total[5m]) > 0",
            "Loss spiked",
            "Run {{ $labels.run }} had a step whose loss failed the spike test within the last 5 minutes.",
            "The trainer judges the loss of every step against its own recent past and counts what stands out. Prometheus could "
            "not: it looks every 15 seconds, and a step may be shorter or longer than that. One spike alone is common and harmless.",
            "Nothing on a spike alone. A spike that stays shows in the gradient norm and the pass rate, which it does act on.",
            (
                "One spike: nothing. Look whether the pass rate moved in the steps after it.",
                "Several within the hour: look at the learning rate and at the prompts of those steps (ledger.jsonl names them).",
            ),
            keep="10m",
            signal="loss",
            stories=(
                Story(
                    "one spike fires at once, stays ten minutes and goes",
                    {loss: held((0, 10), (1, 50))},
                    {9: SILENT, 11: FIRES, 20: FIRES, 40: SILENT},
                ),
            ),
        ),
        Alert(
            "RLGradNormSpikes",
            "warning",
            "learning",
            "increase(rl_trainer_grad_norm_spikes_total[10m]) >= 2",
            "Gradient norm spikes repeatedly",
            "Run {{ $labels.run }} had {{ $value | humanize }} steps with a spiking gradient norm within 10 minutes.",
            "The trainer judges the gradient norm of every step before clipping. One spike is a bad batch; several are how a "
            "learning rate that is too high, or a sampler that drifted away from the learner, shows first.",
            "One of the two keys of a rollback: with a falling pass rate it goes back to the last checkpoint proved good.",
            (
                "Look at the pass rate. If it holds, wait.",
                "Look at importance ratio and mismatch on the Learning dashboard: both high points at stale or wrong weights in the sampler.",
                "If the controller only advises, decide on its advice; if it is away, lower the learning rate.",
            ),
            keep="5m",
            signal="grad_norm",
            stories=(
                Story(
                    "one spike is silent, two fire, quiet resolves",
                    {grad: held((0, 10), (1, 15), (2, 1), (3, 1), (4, 40))},
                    {12: SILENT, 28: FIRES, 50: SILENT},
                ),
            ),
        ),
    )


def _nonfinite() -> Alert:
    counter = 'rl_trainer_nonfinite_total{run="r1",quantity="loss"}'
    return Alert(
        "RLNonFiniteStep",
        "critical",
        "learning",
        "increase(rl_trainer_nonfinite_total[10m]) > 0",
        "A step had NaN or infinite values",
        "Run {{ $labels.run }} had a non-finite {{ $labels.quantity }} within the last 10 minutes.",
        "The trainer looks for NaN and infinity in loss, gradient, log-probabilities, rewards and advantages at every step, skips "
        "the update, and counts. A NaN in a gauge would not do: no comparison in PromQL is true of it, and here NaN means only "
        "that nothing was measured in that step.",
        "The step was not published to the sampler and no checkpoint was taken of it. A streak is rolled back on this key alone.",
        (
            "Has the controller rolled back? Then look that the run goes on, and read its verdict.",
            "If the values are still non-finite: stop the run, start from the last good checkpoint with a lower learning rate.",
            "`reward` or `advantage` non-finite: the fault is in the verifier, not in the learner.",
        ),
        signal="nonfinite_steps",
        stories=(
            Story(
                "a non-finite step fires at once and resolves ten minutes later",
                {counter: held((0, 10), (1, 50))},
                {9: SILENT, 11: ({"quantity": "loss"},), 25: SILENT},
            ),
        ),
    )


def _entropy(limits: Limits) -> Alert:
    entropy = 'rl_trainer_entropy_nats{run="r1"}'
    return Alert(
        "RLEntropyCollapse",
        "warning",
        "learning",
        f"rl_trainer_entropy_nats < {limits.entropy:g} or rl_trainer_entropy_nats < 0.2 * (rl_trainer_entropy_nats offset 1h)",
        "Token entropy has collapsed",
        "Run {{ $labels.run }} has a token entropy of {{ $value | humanize }} nats.",
        "The policy has become nearly certain of every token: completions of one prompt are alike, groups give no gradient, and "
        "learning ends. It fires at a floor, or at a fifth of what the entropy was an hour ago.",
        "It sees the consequence, groups without signal, as a sign of a breaking run.",
        (
            "Look at RLNoSignalGroupsHigh and the pass rate: an easy task that is solved looks the same and is fine.",
            "If pass rate falls with it: raise the temperature or lower the learning rate; a rollback alone meets the same end.",
        ),
        wait="10m",
        signal="entropy",
        stories=(
            Story(
                "the floor",
                {entropy: held((0.3, 15), (limits.entropy / 2, 30), (0.3, 30))},
                {14: SILENT, 20: SILENT, 27: FIRES, 60: SILENT},
            ),
            Story(
                "a fifth of an hour ago, above the floor",
                {entropy: held((1.0, 70), (0.15, 60))},
                {65: SILENT, 75: SILENT, 85: FIRES},
            ),
        ),
    )


def _mismatch(limits: Limits) -> Alert:
    mismatch = 'rl_trainer_sampler_mismatch_kl_nats{run="r1",estimator="k3"}'
    return Alert(
        "RLSamplerMismatchHigh",
        "warning",
        "learning",
        f'rl_trainer_sampler_mismatch_kl_nats{{estimator="k3"}} > {limits.mismatch_kl:g}',
        "Sampler and learner disagree",
        "Run {{ $labels.run }}: mean per-token KL between sampler and learner is {{ $value | humanize }} nats; "
        f"the limit is {limits.mismatch_kl:g}.",
        "The sampler gives other probabilities to its tokens than the learner does. A little comes from staleness and from "
        "different kernels. Much means other weights, another precision or a head that was not updated: the gradient is then "
        "of a policy that nobody runs.",
        "A policy may use it as the second key of a rollback. It never repairs the cause.",
        (
            "Is RLOffPolicyLagHigh firing too? Then staleness explains it; lower `max_staleness` or speed up the sampler.",
            "Compare `rl_sampler_weights_version` with the step: a sampler that stopped taking weights stands still.",
            "Check precision of the logits on both sides: FP32 head on both or on neither.",
        ),
        wait="5m",
        keep="10m",
        signal="mismatch_kl",
        stories=(
            Story(
                "five minutes above the limit fire; one reading does not",
                {mismatch: held((0.001, 5), (0.2, 1), (0.001, 9), (limits.mismatch_kl * 2, 20), (0.001, 30))},
                {6: SILENT, 14: SILENT, 21: ({"estimator": "k3"},), 60: SILENT},
            ),
        ),
    )


def _no_signal(limits: Limits) -> Alert:
    flat, mixed = (
        'rl_rollout_groups_total{run="r1",signal="all_pass"}',
        'rl_rollout_groups_total{run="r1",signal="mixed"}',
    )
    return Alert(
        "RLNoSignalGroupsHigh",
        "warning",
        "learning",
        f"run:rl_rollout_groups_flat_per_groups:ratio_rate15m > {limits.zero_variance:g}",
        "Most prompt groups give no gradient",
        "Run {{ $labels.run }}: {{ $value | humanizePercentage }} of the prompt groups passed or failed as a whole; "
        f"the limit is {limits.zero_variance:.0%}.",
        "A group whose completions all pass or all fail has no advantage and teaches nothing. Most of the sampling is then spent "
        "for nothing. All pass: the prompts are too easy now. All fail: they are too hard, or the run has collapsed.",
        "A sign of a breaking run, and one of the keys of a rollback when the pass rate falls with it.",
        (
            "Which of the two? The Rollouts dashboard shows all-pass and all-fail apart.",
            "All pass: the run has learnt these prompts; end it, or give harder ones.",
            "All fail after a fall of the pass rate: treat as a collapse; see what the controller decided.",
        ),
        wait="15m",
        signal="zero_variance",
        stories=(
            Story(
                "a quarter of an hour of flat groups fires, mixed ones resolve",
                {flat: grown((1, 20), (19, 40), (1, 40)), mixed: grown((19, 20), (1, 40), (19, 40))},
                {19: SILENT, 32: SILENT, 55: FIRES, 95: SILENT},
            ),
        ),
    )


def _forecast() -> Alert:
    q95 = 'rl_forecast_pass_ratio{run="r1",curve="held_out",q="0.95"}'
    target = 'rl_forecast_target_pass_ratio{run="r1"}'
    return Alert(
        "RLForecastShortfall",
        "warning",
        "forecast",
        'max by (run) (rl_forecast_pass_ratio{q="0.95"}) < on (run) max by (run) (rl_forecast_target_pass_ratio)',
        "The run will probably miss its target",
        "Run {{ $labels.run }}: even the upper end of the forecast, {{ $value | humanizePercentage }}, is below the target.",
        "The controller fits the law of compute and pass rate to the held-out evaluations and says where the run will end. Not "
        "even the value that it holds for reached with 5 % probability is the target. A refused forecast is NaN and never fires.",
        "It says so and gives advice on the budget. It changes nothing because of a forecast.",
        (
            "Look at the fit on the Controller dashboard: does the curve follow the points?",
            "If it does, decide now: another recipe, a larger model, or a lower target. More of the same compute does not help.",
        ),
        wait="30m",
        signal="",
        stories=(
            Story(
                "half an hour below the target fires, a better forecast resolves",
                {q95: held((0.95, 10), (0.85, 60), (0.95, 30)), target: held((0.9, 100))},
                {9: SILENT, 30: SILENT, 45: FIRES, 75: SILENT},
            ),
            Story(
                "a refused forecast says nothing",
                {q95: "NaN " * 60, target: held((0.9, 60))},
                {50: SILENT},
            ),
        ),
    )
