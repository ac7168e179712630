"""Rollouts: what the model writes, how long, how fresh, and whether the verifier can be trusted."""

from dashboards.boards import common
from dashboards.boards.common import BLUE, LIGHT, PURPLE, YELLOW
from dashboards.frame import Board
from dashboards.layout import Row
from dashboards.panel import BAD, NEUTRAL, PALE, WARN, Json, Look, graph, heat
from dashboards.query import Query, gauge, mean, per, quantile, rate
from dashboards.thresholds import Limits


def rollouts(limits: Limits) -> Board:
    """For questions about length, truncation, staleness, verifier and speed."""
    length = Row("How long do the answers get?", [
        (_length_map(), 12, 9), (_length(limits), 12, 9),
        (common.truncation(limits), 8, 8), (_interrupted(), 8, 8), (_tokens(), 8, 8),
    ])  # fmt: skip
    judged = Row("How are they judged?", [
        (_outcomes(), 8, 8), (_reward_map(), 8, 8), (_dropped(), 8, 8),
    ])  # fmt: skip
    fresh = Row("How fresh are they?", [
        (_staleness_map(), 8, 8), (_staleness(), 8, 8), (_buffer(), 8, 8),
    ])  # fmt: skip
    speed = Row("How fast are they made?", [
        (_seconds(), 8, 8), (_inflight(), 8, 8), (_prompts(), 8, 8),
    ])  # fmt: skip
    return Board(
        "rollouts", "RL run: rollouts", "Length, truncation, verifier, staleness, speed: what reaches the learner?",
        [length, judged, fresh, speed],
    )  # fmt: skip


def _map(title: str, description: str, name: str, unit: str) -> Json:
    expr = rate(f"{name}_bucket", by="le")
    return heat(title, description, Query(expr, "{{le}}", heatmap=True), unit, no_data="no completion yet")


def _length_map() -> Json:
    return _map(
        "Lengths",
        "How many completions of each length, over time; darker is more. A second cloud at the upper edge is truncation before the share shows it.",
        "rl_rollout_length_tokens", "short",
    )  # fmt: skip


def _length(limits: Limits) -> Json:
    return graph(
        "Length of a completion",
        "Mean, median and 95th percentile of the generated tokens. Quantiles come from buckets, so they are exact only at bucket bounds; the "
        "mean is exact.",
        Query(quantile(0.95, "rl_rollout_length_tokens"), "p95"),
        Query(mean("rl_rollout_length_tokens"), "mean"),
        Query(quantile(0.5, "rl_rollout_length_tokens"), "median"),
        unit="suffix: tok", low=0, limit=limits.of("gen_length"),
        looks=[Look("p95", PURPLE, width=1), Look("mean", BLUE, width=3), Look("median", LIGHT, width=1)], no_data="no completion yet",
    )  # fmt: skip


def _interrupted() -> Json:
    return graph(
        "Thinking closed by force",
        "Share of completions whose thinking was closed by the length control so that an answer could still be given. Their forced tokens "
        "carry no loss.",
        Query(per(rate("rl_rollout_interrupted_total"), rate("rl_rollout_length_tokens_count")), "interrupted"),
        unit="percentunit", low=0, looks=[Look("interrupted", BLUE)], no_data="no completion yet",
    )  # fmt: skip


def _tokens() -> Json:
    return graph(
        "Tokens through the sampler", "Tokens per second, by kind. Discarded: generated, then not used (stale, error, rollback).",
        Query(rate("rl_rollout_tokens_total", by="run, kind"), "{{kind}}"), unit="suffix: tok/s", low=0,
        looks=[Look("generated", BLUE), Look("prompt", LIGHT), Look("discarded", WARN)], no_data="no completion yet",
    )  # fmt: skip


def _outcomes() -> Json:
    total = rate("rl_rollout_samples_total")
    return graph(
        "Outcomes", "Completions by what the verifier said. Error is the verifier's own failure: such rewards cannot be trusted.",
        *[Query(per(rate("rl_rollout_samples_total", outcome=name), total), name) for name in ("pass", "fail", "error")],
        unit="percentunit", low=0, high=1, stack=True,
        looks=[Look("pass", BLUE), Look("fail", PALE), Look("error", BAD)], no_data="no completion judged yet",
    )  # fmt: skip


def _reward_map() -> Json:
    return _map(
        "Rewards", "How many completions got which reward, penalties included. Two clouds far apart: right and wrong answers.",
        "rl_rollout_reward", "short",
    )  # fmt: skip


def _dropped() -> Json:
    return graph(
        "Groups that never reached the learner", "Prompt groups per second that were made for nothing, by reason.",
        Query(rate("rl_rollout_dropped_groups_total", by="run, reason"), "{{reason}}"), unit="suffix: groups/s", low=0,
        looks=[Look("stale", YELLOW), Look("error", BAD), Look("rollback", PURPLE)],
    )  # fmt: skip


def _staleness_map() -> Json:
    return _map(
        "Staleness", "Optimiser steps between the oldest weights in a completion and the learner, when it is used.",
        "rl_rollout_staleness_steps", "none",
    )  # fmt: skip


def _staleness() -> Json:
    return graph(
        "Oldest in the batch", "Largest staleness in the last batch, and the bound in force (dashed). It never lies above the bound.",
        Query(gauge("rl_rollout_staleness_steps_max"), "oldest"),
        Query(gauge("rl_trainer_hyperparameter", name="max_staleness"), "bound"),
        unit="suffix: steps", low=0, looks=[Look("oldest", BLUE, steps=True), Look("bound", BAD, width=1, dashed=True, steps=True)],
    )  # fmt: skip


def _buffer() -> Json:
    return graph(
        "Rollout buffer", "Prompt groups in the buffer by state, and how many the staleness bound admits now (dashed).",
        Query(gauge("rl_buffer_groups", by="run, state"), "{{state}}"),
        Query(gauge("rl_buffer_capacity_groups"), "admitted"),
        unit="suffix: groups", low=0,
        looks=[Look("inflight", BLUE), Look("ready", LIGHT), Look("waiting", PALE), Look("held", PURPLE), Look("admitted", NEUTRAL, width=1, dashed=True)],
    )  # fmt: skip


def _seconds() -> Json:
    return graph(
        "Time of a completion", "From admission to the last token. A p95 far above the median means that a few long answers hold up a step.",
        Query(quantile(0.95, "rl_rollout_seconds"), "p95"), Query(quantile(0.5, "rl_rollout_seconds"), "median"),
        unit="s", low=0, looks=[Look("p95", PURPLE), Look("median", BLUE)], no_data="no completion yet",
    )  # fmt: skip


def _inflight() -> Json:
    return graph(
        "In the making", "Completions being generated now.",
        Query(gauge("rl_rollout_inflight"), "in flight"), unit="none", low=0, looks=[Look("in flight", BLUE)],
    )  # fmt: skip


def _prompts() -> Json:
    return graph(
        "Length of a prompt", "Median and 95th percentile of the prompt tokens. A change here is a change of the data.",
        Query(quantile(0.95, "rl_rollout_prompt_tokens"), "p95"), Query(quantile(0.5, "rl_rollout_prompt_tokens"), "median"),
        unit="suffix: tok", low=0, looks=[Look("p95", PURPLE), Look("median", BLUE)], no_data="no completion yet",
    )  # fmt: skip
