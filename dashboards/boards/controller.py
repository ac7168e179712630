"""Controller: what it looks at, how far that is from acting, what it decided, what it believes."""

from dashboards.boards import common
from dashboards.boards.common import BLUE, LIGHT, PURPLE, SOFT
from dashboards.frame import Board
from dashboards.layout import Row
from dashboards.panel import BAD, NEUTRAL, PALE, WARN, Json, Look, by_name, graph, table, tile, timeline
from dashboards.query import TOLD, Query, gauge, increase, quantile, rate, series
from dashboards.thresholds import Limits

DECISIONS = {"act": PURPLE, "advise": LIGHT, "waiting": WARN, "dropped": SOFT, "observe": PALE, "page": BAD}


def controller(limits: Limits) -> Board:
    """For the person who asks why it did, or did not, act."""
    now = Row("What may it do, and can it see?", [
        (common.mode(), 4, 4), (_policy(), 6, 4), (_last(), 3, 4), (_age(limits), 4, 4), (_errors(), 3, 4), (_verdicts(), 4, 4),
    ])  # fmt: skip
    judging = Row("What does it see?", [
        (_values(), 10, 9), (_closeness(), 14, 9),
        (common.alarms(), 12, 7), (_rules(), 12, 7),
    ])  # fmt: skip
    deciding = Row("What did it do?", [
        (_when(), 12, 8), (common.decisions(), 12, 8),
        (common.tunables(), 12, 9), (common.step_position(), 12, 9),
        (_remaining(), 6, 8), (_changes(), 6, 8), (_answer_time(), 6, 8), (_cost(), 6, 8),
    ])  # fmt: skip
    believing = Row("What does it believe?", [
        (common.forecast("Forecast of the end, as it narrows"), 12, 9), (_chance(), 6, 9), (_points(), 6, 9),
        (_fit("A", "Ceiling A", "percentunit", "Pass rate that the law tends to with unlimited compute."), 8, 8),
        (_fit("B", "Steepness B", "short", "How fast the run climbs; larger is faster."), 8, 8),
        (_fit("C_mid", "Midpoint C_mid", "short", "Compute at which half of the gain is reached, on the axis of the policy."), 8, 8),
    ])  # fmt: skip
    trusting = Row("Can its words be trusted, and do they arrive?", [
        (_coverage(), 8, 8), (_cooldown(), 8, 8), (_notices(), 8, 8),
    ], collapsed=True)  # fmt: skip
    return Board(
        "controller", "RL run: controller", "Rules, values against thresholds, decisions, settings in force, fit and forecast: why did it act?",
        [now, judging, deciding, believing, trusting],
    )  # fmt: skip


def _policy() -> Json:
    return tile(
        "Policy in force", "Name and hash of the policy. Another hash is another policy, comments aside.",
        Query(f"max by (name, hash) ({series('rl_policy_info')})", "{{name}} ({{hash}})", now=True), unit="none", text="name", line=False,
        no_data="no controller attached",
    )  # fmt: skip


def _last() -> Json:
    return tile(
        "Last look", "Time since the controller looked at the run. It looks every 15 seconds unless told otherwise.",
        Query(common.since("rl_controller_last_evaluation_timestamp_seconds")), unit="s", decimals=0, line=False, no_data="no controller attached",
    )  # fmt: skip


def _age(limits: Limits) -> Json:
    return tile(
        "Age of what it sees", "Age of the newest sample that the last look used. Past the limit of the policy it holds, and after a while tells a person.",
        Query(gauge("rl_controller_sample_age_seconds")), unit="s", decimals=1, limit=limits.freshness, no_data="no controller attached",
        nan="sees nothing",
    )  # fmt: skip


def _errors() -> Json:
    return common.stays_zero(
        "Failed reads", "Reads of metrics or of the observed document that failed in the time shown.", "rl_controller_source_errors_total"
    )  # fmt: skip


def _verdicts() -> Json:
    return tile(
        "Actions that helped", "Actions judged in the time shown by whether the pass rate returned to what it was before the trouble.",
        Query(f"round({increase('rl_controller_verdicts_total', window='$__range', helped='true')})", "helped"),
        Query(f"round({increase('rl_controller_verdicts_total', window='$__range', helped='false')})", "did not"),
        unit="none", line=False, text="value_and_name", no_data="no controller attached",
    )  # fmt: skip


def _values() -> Json:
    value, limit = gauge("rl_controller_detector_value", by="detector"), gauge("rl_policy_threshold", by="detector")
    active = gauge("rl_controller_detector_active", by="detector")
    alarm = by_name("Now")
    alarm["properties"] = [
        {"id": "mappings", "value": [{"type": "value", "options": {
            "0": {"text": "quiet", "color": NEUTRAL, "index": 0}, "1": {"text": "in alarm", "color": BAD, "index": 1}}}]},
        {"id": "custom.cellOptions", "value": {"type": "color-text"}},
    ]  # fmt: skip
    return table(
        "Values against thresholds",
        "The statistic of every detector now, and the threshold of the policy in force. What the statistic is depends on the kind: the signal "
        "itself (level), how unusual it is for this run (robust_z), a sum of small deviations (cusum), a count (nonfinite), seconds (stall).",
        Query(value, ref="V", table=True), Query(limit, ref="T", table=True), Query(active, ref="A", table=True),
        columns=[("detector", "Detector"), ("Value #V", "Value"), ("Value #T", "Threshold"), ("Value #A", "Now")],
        overrides=[alarm, by_name("(Value|Threshold)", decimals=2)], sort=("Detector", False), no_data="no controller attached",
    )  # fmt: skip


def _closeness() -> Json:
    share = f"{gauge('rl_controller_detector_value', by='run, detector')} / ({gauge('rl_policy_threshold', by='run, detector')} > 0)"
    return graph(
        "How close to the threshold",
        "Statistic over threshold, so that all detectors share one axis: the dashed line is the threshold of the policy in force. Above it, for as "
        "many readings in a row as the policy asks, the detector is in alarm (below it, for a detector of values that are too low).",
        Query(f"clamp_max({share}, 3)", "{{detector}}"), Query(f"0 * max by (run) ({series('rl_policy_info')}) + 1", "threshold"),
        unit="suffix: x", low=0, looks=[Look("threshold", BAD, width=1, dashed=True)], no_data="no controller attached",
    )  # fmt: skip


def _rules() -> Json:
    return timeline(
        "Rules that hold", "Each rule of the policy. Red while the combination of alarms that it asks for stands.",
        Query(gauge("rl_controller_rule_active", by="run, rule"), "{{rule}}"), words={0: ("quiet", "dark-blue"), 1: ("holds", BAD)},
        no_data="no controller attached, or a policy without rules",
    )  # fmt: skip


def _when() -> Json:
    return graph(
        "Decisions over time", "Decisions by what became of them, per window. A rule that may not act is written down as observe or advise, or waits for approval; a page tells a person.",
        Query(increase("rl_controller_decisions_total", by="run, result", result=TOLD), "{{result}}"),
        unit="none", low=0, high=1, looks=[Look(name, colour, fill=60, width=1) for name, colour in DECISIONS.items()], no_data="no controller attached",
    )  # fmt: skip


def _remaining() -> Json:
    return graph(
        "Actions left to a rule", "What the limits of the policy still allow; at zero the rule only tells a person. Dashed: rollbacks that the trainer allows.",
        Query(gauge("rl_controller_rule_actions_remaining", by="run, rule"), "{{rule}}"),
        Query(gauge("rl_controller_rollbacks_remaining"), "rollbacks (trainer)"),
        unit="none", low=0, steps=True, looks=[Look(r"rollbacks \(trainer\)", NEUTRAL, width=1, dashed=True)], no_data="no rule may act",
    )  # fmt: skip


def _changes() -> Json:
    who = {"controller": PURPLE, "lease": LIGHT, "user": BLUE}
    return graph(
        "Changes of settings", "Tunables that got a new value in each window, by who changed them.",
        *[Query(increase("rl_trainer_hyperparameter_changes_total", source=source), source) for source in who],
        unit="none", low=0, high=1, looks=[Look(source, colour, fill=60, width=1) for source, colour in who.items()],
    )  # fmt: skip


def _answer_time() -> Json:
    return graph(
        "From decision to answer", "Time until the trainer answered an action, 95th percentile over the window. A trainer answers between two steps.",
        Query(quantile(0.95, "rl_controller_action_seconds", by="run, action"), "{{action}}"), unit="s", low=0,
        looks=[Look(".*", PURPLE, points=True)], no_data="no action in the window",
    )  # fmt: skip


def _cost() -> Json:
    return graph(
        "Cost of a look", "Wall time of judging and deciding, 95th percentile, and looks per second (right axis).",
        Query(quantile(0.95, "rl_controller_evaluation_seconds"), "p95"), Query(rate("rl_controller_evaluation_seconds_count"), "looks"),
        unit="s", low=0, looks=[Look("p95", BLUE), Look("looks", PALE, width=1, right=True, unit="suffix: /s")], no_data="no controller attached",
    )  # fmt: skip


def _chance() -> Json:
    return graph(
        "Chance of the target", "Probability of reaching the target by the end of the run, as it was known at each moment.",
        Query(gauge("rl_forecast_target_probability"), "probability"), unit="percentunit", low=0, high=1, steps=True,
        looks=[Look("probability", PURPLE)], no_data="no forecast, or no target",
    )  # fmt: skip


def _points() -> Json:
    return graph(
        "What the forecast rests on", "Evaluations that the fit used, and whether it was refused (1, right axis).",
        Query(gauge("rl_fit_points"), "evaluations"), Query(gauge("rl_forecast_refused"), "refused"), unit="none", low=0, steps=True,
        looks=[Look("evaluations", BLUE), Look("refused", WARN, width=1, right=True)], no_data="no forecast yet",
    )  # fmt: skip


def _fit(parameter: str, title: str, unit: str, meaning: str) -> Json:
    queries = [
        Query(gauge("rl_fit_parameter", parameter=parameter, q=q), name)
        for q, name in (("0.1", "q10"), ("0.5", "median"), ("0.9", "q90"))
    ]
    return graph(
        title, f"{meaning} Median and the band that holds 80 %.", *queries, unit=unit, steps=True,
        looks=[Look("median", PURPLE), Look("q90", SOFT, width=0, fill_to="q10"), Look("q10", SOFT, width=0)], no_data="no forecast yet",
    )  # fmt: skip


def _coverage() -> Json:
    levels = [
        Query(gauge("rl_forecast_coverage_ratio", nominal=level), f"promised {float(level):.0%}")
        for level in ("0.8", "0.95")
    ]
    return graph(
        "Do forecasts hold what they promise?",
        "Share of this run's evaluations that fell inside the interval that was forecast just before them, for intervals that promise 80 % and "
        "95 %. Well below the promise: too sure of itself. Few evaluations (right axis) prove little.",
        *levels, Query(gauge("rl_forecast_scored_evaluations"), "evaluations"),
        unit="percentunit", low=0, high=1, steps=True,
        looks=[Look("promised 80%", PURPLE), Look("promised 95%", SOFT), Look("evaluations", PALE, width=1, right=True, unit="none")],
        no_data="no forecast has been tested yet",
    )  # fmt: skip


def _cooldown() -> Json:
    return graph(
        "Steps until a rule may act again", "Cooldown of each rule after its last action; zero when it may.",
        Query(gauge("rl_controller_rule_cooldown_steps", by="run, rule"), "{{rule}}"), unit="suffix: steps", low=0, steps=True,
        no_data="no rule may act",
    )  # fmt: skip


def _notices() -> Json:
    results = {"sent": BLUE, "failed": WARN, "dropped": BAD}
    return graph(
        "Told to others", "Notices to Grafana and the webhook in each window, by what became of them. Failed and dropped ones are missing there; no "
        "decision waited for them.",
        *[Query(increase("rl_controller_notices_total", result=result), result) for result in results],
        unit="none", low=0, high=1, looks=[Look(name, colour, fill=60, width=1) for name, colour in results.items()], no_data="no controller attached",
    )  # fmt: skip
