"""Panels that more than one dashboard shows, so that the same thing looks the same everywhere."""

from dashboards.panel import BAD, LINES, NEUTRAL, PALE, WARN, Json, Limit, Look, by_name, graph, table, tile, timeline
from dashboards.query import SELECTOR, TOLD, Query, gauge, increase, per, rate
from dashboards.thresholds import Limits

BLUE, PURPLE, LIGHT, YELLOW, SOFT, DARK = LINES


def pass_ratio(where: str = SELECTOR) -> str:
    """Passed over judged completions, every step of the window counted by its size."""
    passed = rate("rl_rollout_samples_total", where, outcome="pass")
    return per(passed, rate("rl_rollout_samples_total", where, outcome="~pass|fail"))


def truncated_ratio(where: str = SELECTOR) -> str:
    """Truncated over all completions."""
    return per(rate("rl_rollout_truncated_total", where), rate("rl_rollout_length_tokens_count", where))


def pass_rate(limits: Limits) -> Json:
    """Is it learning: training batch and held-out sets."""
    return graph(
        "Pass rate",
        "Share of completions that the verifier accepts. Thin: the training batches, on prompts the run learns from. Thick: the "
        "held-out sets, the number that counts. A purple mark is an action of the controller; after a rollback the held-out line "
        "goes on from the branch that was kept.",
        Query(pass_ratio(), "training batch"),
        Query(gauge("rl_eval_pass_ratio", by="run, dataset, k"), "{{dataset}} (mean of {{k}})"),
        unit="percentunit", low=0, high=1, limit=limits.of("pass_rate"),
        looks=[Look("training batch", PALE, width=1), Look(r".*\(mean of .*", BLUE, width=3, steps=True)],
        no_data="no completion judged yet",
    )  # fmt: skip


def forecast(title: str = "Forecast of the end") -> Json:
    """Where will it end: the band as it narrows."""
    queries = [
        Query(gauge("rl_forecast_pass_ratio", by="run", q=q), f"q{q[2:].ljust(2, '0')}")
        for q in ("0.05", "0.1", "0.5", "0.9", "0.95")
    ]
    return graph(
        title,
        "Held-out pass rate forecast for the end of the run, as it was known at each moment. Dark band: 80 %, light band: 90 %, line: "
        "median, dashed: the target of the policy. The line is absent while the forecaster refuses: it cannot know yet.",
        *queries,
        Query(gauge("rl_forecast_target_pass_ratio"), "target"),
        unit="percentunit", low=0, high=1,
        looks=[
            Look("q50", PURPLE, width=3, steps=True),
            Look("q95", SOFT, width=0, fill_to="q05", steps=True), Look("q05", SOFT, width=0, steps=True),
            Look("q90", PURPLE, width=0, fill_to="q10", steps=True), Look("q10", PURPLE, width=0, steps=True),
            Look("target", NEUTRAL, width=1, dashed=True, steps=True),
        ],
        no_data="no forecast yet: it needs eight evaluations or so",
    )  # fmt: skip


def chance() -> Json:
    """Will the target be reached."""
    return tile(
        "Chance of the target",
        "Probability that the held-out pass rate reaches the target of the policy by the end of the run. Red below 5 %: even the "
        "optimistic edge of the forecast misses it. Orange below 50 %: more likely missed than reached.",
        Query(gauge("rl_forecast_target_probability")),
        unit="percentunit", decimals=0, steps=[(None, BAD), (0.05, WARN), (0.5, NEUTRAL)],
        no_data="no forecast, or no target", nan="refused: too early",
    )  # fmt: skip


def progress() -> Json:
    """How far along."""
    done = per(gauge("rl_trainer_global_step"), gauge("rl_trainer_planned_steps"))
    return tile(
        "Done", "Optimiser step of the weights in force over the planned steps. Goes back at a rollback.",
        Query(done), unit="percentunit", decimals=0,
    )  # fmt: skip


def mode() -> Json:
    """What the controller may do."""
    return tile(
        "Controller may", "Highest autonomy that the policy in force allows: look, advise, act; or hold while it cannot see.",
        Query(f"{gauge('rl_controller_mode', by='run, state')} == 1", "{{state}}", now=True),
        unit="none", text="name", line=False, no_data="no controller attached",
    )  # fmt: skip


def alarms(title: str = "Detectors in alarm") -> Json:
    """Which detectors saw something."""
    return timeline(
        title,
        "Each detector of the policy. Red while its condition stands. A rule acts only on a combination: a rollback needs the fallen "
        "pass rate and a mechanism.",
        Query(gauge("rl_controller_detector_active", by="run, detector"), "{{detector}}"),
        words={0: ("quiet", "dark-blue"), 1: ("in alarm", BAD)}, no_data="no controller attached",
    )  # fmt: skip


def alerts() -> Json:
    """Which alerts of Prometheus fired."""
    where = 'alertstate="firing",run=~"$run"'
    made = timeline(
        "Alerts firing",
        "Alerts of Prometheus about this run, one row each, while they fire. Each has a page in the runbook. Empty is good, if the rules are loaded.",
        Query(f"max by (alertname) (ALERTS{{{where}}})", "{{alertname}}"),
        words={1: ("firing", BAD)}, no_data="no alert has fired in this time",
    )  # fmt: skip
    made["description"] = made["description"].replace("Metrics: ", "Metric: `ALERTS`")
    return made


def decisions() -> Json:
    """What was decided in the time shown."""
    expr = increase("rl_controller_decisions_total", by="rule, action, result", window="$__range", result=TOLD)
    return table(
        "Decisions in the time shown",
        "Every rule that led to something: carried out (act), proposed (advise), waiting for approval, dropped, only written down (observe) or told to a person (page). "
        "Counted over the time range of the dashboard.",
        Query(f"round({expr}) > 0", table=True),
        columns=[("rule", "Rule"), ("action", "Action"), ("result", "Result"), ("Value", "Times")],
        overrides=[by_name("(Action|Result)", custom__width=90), by_name("Times", custom__width=70)],
        sort=("Times", True), no_data="nothing decided in this time",
    )  # fmt: skip


def tunables() -> Json:
    """Settings in force."""
    return graph(
        "Tunables in force",
        "Every setting that may be changed while the run goes on, in its own unit, as read back from the trainer. A step is a change.",
        Query(gauge("rl_trainer_hyperparameter", by="run, name"), "{{name}}"),
        unit="short", log=True, steps=True, legend="table", no_data="the trainer has no tunables",
    )  # fmt: skip


def step_position() -> Json:
    """Steps and rollbacks."""
    return graph(
        "Step and branch",
        "Optimiser step of the weights in force, and the planned end. A fall is a rollback; each one raises the branch (right axis) by one.",
        Query(gauge("rl_trainer_global_step"), "step"),
        Query(gauge("rl_trainer_planned_steps"), "planned"),
        Query(gauge("rl_trainer_branch"), "branch"),
        unit="none", low=0,
        looks=[Look("step", BLUE), Look("planned", NEUTRAL, width=1, dashed=True), Look("branch", PURPLE, width=1, steps=True, right=True)],
    )  # fmt: skip


def gradient() -> Json:
    """Gradient norm on a log axis."""
    return graph(
        "Gradient norm",
        "Global norm before clipping, on a logarithmic axis. A lasting jump is the usual mechanism of a collapse; what counts as a jump is "
        "judged against the run's own past.",
        Query(gauge("rl_trainer_grad_norm"), "gradient norm"),
        unit="short", log=True, looks=[Look("gradient norm", BLUE)],
    )  # fmt: skip


def entropy(limits: Limits) -> Json:
    """Entropy of the policy."""
    return graph(
        "Entropy",
        "Mean token entropy of the policy. Near zero it no longer explores, and groups of one prompt all come out the same.",
        Query(gauge("rl_trainer_entropy_nats"), "entropy"),
        unit="suffix: nats", low=0, limit=limits.of("entropy"), looks=[Look("entropy", BLUE)],
    )  # fmt: skip


def truncation(limits: Limits) -> Json:
    """Truncated share."""
    return graph(
        "Cut off by the length limit",
        "Share of completions that ended because no token was left, not because the answer was given. They cannot be right, so the reward "
        "falls with it.",
        Query(truncated_ratio(), "truncated"),
        Query(gauge("rl_eval_truncated_ratio", by="run, dataset"), "{{dataset}}"),
        unit="percentunit", low=0, limit=limits.of("truncation"),
        looks=[Look("truncated", BLUE), Look("held_out", LIGHT, width=1, steps=True)],
        no_data="no completion yet",
    )  # fmt: skip


def firing() -> Json:
    """Number of alerts."""
    made = tile(
        "Alerts", "Alerts of Prometheus about this run that fire now.",
        Query('count(ALERTS{alertstate="firing",alertname!="RLWatchdog",run=~"$run"}) or vector(0)'),
        unit="none", line=False, steps=[(None, NEUTRAL), (1, BAD)],
    )  # fmt: skip
    made["description"] = made["description"].replace("Metrics: ", "Metric: `ALERTS`")
    return made


def since(name: str) -> str:
    """Seconds since a timestamp."""
    return f"time() - {gauge(name)}"


def stays_zero(title: str, description: str, name: str, /, **labels: str) -> Json:
    """A count over the time shown that ought to be zero."""
    expr = f"round({increase(name, window='$__range', **labels)})"
    return tile(title, description, Query(expr), unit="none", decimals=0, line=False, limit=Limit(1, colour=WARN))
