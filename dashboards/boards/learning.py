"""Learning: what the optimiser sees, and whether it can be trusted."""

from dashboards.boards import common
from dashboards.boards.common import BLUE, LIGHT, PURPLE, SOFT
from dashboards.frame import Board
from dashboards.layout import Row
from dashboards.panel import BAD, NEUTRAL, PALE, WARN, Json, Limit, Look, graph
from dashboards.query import Query, gauge, increase, per, rate
from dashboards.thresholds import Limits


def learning(limits: Limits) -> Board:
    """For the engineer who asks why the curve bends."""
    value = Row("What is it worth?", [
        (common.pass_rate(limits), 12, 9), (_held_out(limits), 12, 9),
    ])  # fmt: skip
    update = Row("Is the update sound?", [
        (_loss(), 8, 8), (common.gradient(), 8, 8), (_clipped_steps(), 8, 8),
        (common.entropy(limits), 8, 8), (_mismatch(limits), 8, 8), (_learning_rate(), 8, 8),
    ])  # fmt: skip
    signal = Row("Is there a signal in the data?", [
        (_groups(limits), 8, 8), (_advantage(), 8, 8), (_masked(), 8, 8),
    ])  # fmt: skip
    offpolicy = Row("How far off policy?", [
        (_importance(), 8, 8), (_cut(), 8, 8), (_effective(limits), 8, 8),
    ])  # fmt: skip
    batch = Row("Is the batch large enough?", [(_noise(), 12, 8), (_windows(limits), 12, 8)], collapsed=True)
    return Board(
        "learning", "RL run: learning", "Loss, gradient, entropy, mismatch, groups: is the update sound and is there a signal?",
        [value, update, signal, offpolicy, batch],
    )  # fmt: skip


def _held_out(limits: Limits) -> Json:
    mean = gauge("rl_eval_pass_ratio", by="run, dataset, k")
    error = gauge("rl_eval_pass_stderr_ratio", by="run, dataset, k")
    return graph(
        "Held-out evaluations",
        "Mean pass rate over the prompts of each held-out set, with two standard errors around it, and the share of prompts solved at least once.",
        Query(f"{mean} + 2 * {error}", "{{dataset}} high"),
        Query(mean, "{{dataset}}"),
        Query(f"{mean} - 2 * {error}", "{{dataset}} low"),
        Query(gauge("rl_eval_pass_at_k_ratio", by="run, dataset, k", k="~[^1]|..+"), "{{dataset}} pass@{{k}}"),
        unit="percentunit", low=0, high=1, limit=limits.of("eval_pass_rate"),
        looks=[
            Look(".* (high|low)", SOFT, width=1, steps=True), Look("held_out", BLUE, width=3, steps=True),
            Look(".*pass@.*", LIGHT, width=1, steps=True),
        ],
        no_data="no evaluation yet",
    )  # fmt: skip


def _loss() -> Json:
    return graph(
        "Loss",
        "Loss of the last step. Its level means little in policy-gradient training; its jumps do. Red: steps that failed the spike test, "
        "judged at every step in the process and summed over the window (right axis).",
        Query(gauge("rl_trainer_loss", by="run, component"), "{{component}}"),
        Query(increase("rl_trainer_loss_spikes_total"), "spikes"),
        unit="short", looks=[Look("total", BLUE), Look("spikes", BAD, width=1, right=True, fill=30, unit="none", top=1)],
    )  # fmt: skip


def _clipped_steps() -> Json:
    steps = rate("rl_trainer_steps_total")
    return graph(
        "Steps with a defect",
        "Share of steps whose gradient was clipped, whose gradient norm failed the spike test, or whose update was left out. Clipping is normal; "
        "the others are not.",
        Query(per(rate("rl_trainer_grad_clipped_steps_total"), steps), "gradient clipped"),
        Query(per(rate("rl_trainer_grad_norm_spikes_total"), steps), "gradient spike"),
        Query(per(rate("rl_trainer_skipped_steps_total"), steps), "update left out"),
        unit="percentunit", low=0, high=1,
        looks=[Look("gradient clipped", PALE), Look("gradient spike", WARN), Look("update left out", BAD)], no_data="no step yet",
    )  # fmt: skip


def _mismatch(limits: Limits) -> Json:
    return graph(
        "Sampler against learner",
        "Mean per-token KL between what the sampler said a token's probability was and what the learner computes, staleness included. "
        "If it grows without more staleness, numbers differ between the two, and the rewards belong to another policy.",
        Query(gauge("rl_trainer_sampler_mismatch_kl_nats", by="run, estimator"), "{{estimator}}"),
        unit="suffix: nats", limit=limits.of("mismatch_kl"), looks=[Look("k3", BLUE)],
    )  # fmt: skip


def _learning_rate() -> Json:
    return graph(
        "Learning rate", "Schedule times `lr_scale`, as the last step used it; logarithmic.",
        Query(gauge("rl_trainer_learning_rate"), "learning rate"),
        unit="sci", log=True, steps=True, looks=[Look("learning rate", BLUE)],
    )  # fmt: skip


def _groups(limits: Limits) -> Json:
    total = rate("rl_rollout_groups_total")
    flat = limits.of("zero_variance")
    return graph(
        "Groups by signal",
        "All completions of one prompt form a group. Only mixed groups give a gradient: where all pass or all fail there is nothing to "
        "compare. When the mixed share shrinks, compute buys less and less.",
        # One query each, because the order of the queries is the order of the stack.
        *[Query(per(rate("rl_rollout_groups_total", signal=name), total), name) for name in ("mixed", "all_pass", "all_fail")],
        unit="percentunit", low=0, high=1, stack=True, limit=Limit(1 - flat.value, above=False) if flat else None,
        looks=[Look("mixed", BLUE), Look("all_pass", LIGHT), Look("all_fail", PALE)], no_data="no group yet",
    )  # fmt: skip


def _advantage() -> Json:
    return graph(
        "Spread of the advantages", "Standard deviation before normalisation. Near zero there is nothing to learn from.",
        Query(gauge("rl_trainer_advantage_stddev"), "standard deviation"), unit="short", low=0, looks=[Look("standard deviation", BLUE)],
    )  # fmt: skip


def _masked() -> Json:
    return graph(
        "Tokens without loss", "Share of generated tokens that carry no loss, by reason. Forced: written by the length control, not by the policy.",
        Query(gauge("rl_trainer_masked_token_ratio", by="run, reason"), "{{reason}}"), unit="percentunit", low=0,
        looks=[Look("forced", BLUE)],
    )  # fmt: skip


def _importance() -> Json:
    return graph(
        "Importance ratio",
        "Learner's probability of a token over the sampler's, last step. The mean belongs at one; the largest shows how far a token has moved.",
        Query(gauge("rl_trainer_importance_ratio", by="run, stat"), "{{stat}}"), unit="short", log=True,
        looks=[Look("mean", BLUE), Look("max", PURPLE, width=1)],
    )  # fmt: skip


def _cut() -> Json:
    return graph(
        "Tokens whose ratio was cut", "Share of tokens whose importance ratio hit the bound of the loss. A bound that the loss lacks has no line.",
        Query(gauge("rl_trainer_clipped_token_ratio", by="run, bound"), "{{bound}}"), unit="percentunit", low=0,
        looks=[Look("high", BLUE), Look("low", LIGHT)],
    )  # fmt: skip


def _effective(limits: Limits) -> Json:
    return graph(
        "Effective samples", "Effective sample size of the importance weights over their number. At a half, half of the batch is as good as missing.",
        Query(gauge("rl_trainer_effective_sample_ratio"), "effective share"), unit="percentunit", low=0, high=1,
        limit=limits.of("effective_samples"), looks=[Look("effective share", BLUE)],
    )  # fmt: skip


def _noise() -> Json:
    return graph(
        "Gradient noise scale",
        "Batch, in prompts that carry a signal, at which gradient and noise are alike, over the last 50 steps; and the prompts of a step now "
        "(dashed). Far below it most of a step is noise and a larger batch pays; far above it prompts are spent for little.",
        Query(gauge("rl_trainer_gradient_noise_scale_prompts"), "noise scale"),
        Query(gauge("rl_trainer_hyperparameter", name="prompts_per_step"), "prompts per step"),
        unit="suffix: prompts", low=0, looks=[Look("noise scale", BLUE), Look("prompts per step", NEUTRAL, width=1, dashed=True, steps=True)],
    )  # fmt: skip


def _windows(limits: Limits) -> Json:
    return graph(
        "Pass rate of whole windows",
        "Passed over judged completions of the last whole 100 steps; it changes when a window closes. This is the number that the alert "
        "RLPassRatioLow reads.",
        Query(gauge("rl_rollout_window_pass_ratio", by="run, window"), "last {{window}} steps"),
        unit="percentunit", low=0, high=1, steps=True, limit=limits.of("pass_rate"), looks=[Look("last .*", BLUE)],
        no_data="no window of 100 steps is complete",
    )  # fmt: skip
