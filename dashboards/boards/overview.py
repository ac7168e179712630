"""Overview: is it learning, is it healthy, what did the controller do?"""

from dashboards.boards import common
from dashboards.boards.common import BLUE
from dashboards.frame import Board
from dashboards.layout import Row
from dashboards.panel import BAD, LINES, Json, Limit, Look, graph, tile
from dashboards.query import Query, gauge, increase, mean, series
from dashboards.thresholds import Limits


def overview(limits: Limits) -> Board:
    """The first page that a person on call opens."""
    learning = Row("Is it learning?", [
        (_held_out(limits), 5, 4), (_end(), 7, 4), (common.chance(), 4, 4), (common.progress(), 4, 4), (_left(), 4, 4),
        (common.pass_rate(limits), 14, 10), (common.forecast(), 10, 10),
    ])  # fmt: skip
    healthy = Row("Is it healthy?", [
        (_state(), 4, 4), (_silence(), 4, 4), (common.firing(), 4, 4),
        (common.stays_zero("Non-finite steps", "Steps with a NaN or infinite value in the time shown.", "rl_trainer_nonfinite_total"), 4, 4),
        (_length(limits), 4, 4), (_use(limits), 4, 4),
        (common.alarms(), 12, 7), (common.alerts(), 12, 7),
        (common.gradient(), 8, 7), (common.entropy(limits), 8, 7), (common.truncation(limits), 8, 7),
    ])  # fmt: skip
    controller = Row("What did the controller do?", [
        (common.mode(), 4, 4), (_age(limits), 4, 4), (_acts(), 4, 4), (_pages(), 4, 4), (_rollbacks_left(), 4, 4), (_policy(), 4, 4),
        (common.decisions(), 8, 8), (common.step_position(), 8, 8), (_learning_rate(), 8, 8),
    ])  # fmt: skip
    return Board(
        "overview", "RL run: overview", "Is it learning, is it healthy, what did the controller do?", [learning, healthy, controller]
    )  # fmt: skip


def _held_out(limits: Limits) -> Json:
    return tile(
        "Held-out pass rate", "Mean pass rate of the last evaluation, one value for each held-out set.",
        Query(gauge("rl_eval_pass_ratio", by="run, dataset"), "{{dataset}}"),
        unit="percentunit", decimals=1, limit=limits.of("eval_pass_rate"), no_data="no evaluation yet",
    )  # fmt: skip


def _end() -> Json:
    return tile(
        "Forecast of the end", "Held-out pass rate at the end of the run: 80 % of the probability lies between low and high.",
        *[Query(gauge("rl_forecast_pass_ratio", q=q), name) for name, q in (("low", "0.1"), ("median", "0.5"), ("high", "0.9"))],
        unit="percentunit", decimals=0, text="value_and_name", line=False, no_data="no forecast yet", nan="refused: too early",
    )  # fmt: skip


def _left() -> Json:
    steps = f"{gauge('rl_trainer_planned_steps')} - {gauge('rl_trainer_global_step')}"
    pace = increase("rl_trainer_steps_total", window="15m")
    return tile(
        "Time left", "Steps that are left, at the pace of the last 15 minutes.",
        Query(f"({steps}) * 900 / ({pace} > 0)"), unit="s", decimals=0, line=False, no_data="no step in 15 minutes",
    )  # fmt: skip


def _state() -> Json:
    return tile(
        "Trainer is", "What the trainer is doing now.",
        Query(f"{gauge('rl_trainer_state', by='run, state')} == 1", "{{state}}", now=True),
        unit="none", text="name", line=False, no_data="not scraped",
    )  # fmt: skip


def _silence() -> Json:
    return tile(
        "Since the last step", "Time since an optimiser step ended. Many times the usual step time means that it stands still.",
        Query(common.since("rl_trainer_last_step_timestamp_seconds")), unit="s", decimals=0,
    )  # fmt: skip


def _length(limits: Limits) -> Json:
    return tile(
        "Mean length", "Mean number of generated tokens of a completion.",
        Query(mean("rl_rollout_length_tokens")), unit="suffix: tok", decimals=0, line=False, limit=limits.of("gen_length"), no_data="no completion yet",
    )  # fmt: skip


def _use(limits: Limits) -> Json:
    return tile(
        "Devices in use", "Share of the held devices' time in use since the last step. CPU time on a machine without a GPU.",
        Query(gauge("rl_trainer_utilization_ratio", how="avg")), unit="percentunit", decimals=0, limit=limits.of("utilization"),
    )  # fmt: skip


def _age(limits: Limits) -> Json:
    return tile(
        "Age of what it sees", "Age of the newest sample that the controller used. Past the limit of the policy it does not act.",
        Query(gauge("rl_controller_sample_age_seconds")), unit="s", decimals=1, limit=limits.freshness, no_data="no controller attached",
    )  # fmt: skip


def _decided(result: str, action: str = "") -> str:
    labels = {"result": result} | ({"action": action} if action else {})
    return f"round({increase('rl_controller_decisions_total', window='$__range', **labels)})"


def _acts() -> Json:
    return tile(
        "Actions", "Changes of the run that the controller made in the time shown.",
        Query(_decided("act")), unit="none", decimals=0, line=False, no_data="no controller attached",
    )  # fmt: skip


def _pages() -> Json:
    return tile(
        "Persons told", "Times that the controller called for a person in the time shown.",
        Query(_decided("page")), unit="none", decimals=0, line=False, limit=Limit(1), no_data="no controller attached",
    )  # fmt: skip


def _rollbacks_left() -> Json:
    return tile(
        "Rollbacks left", "Rollbacks that the trainer still allows. At zero the next collapse needs a person.",
        Query(gauge("rl_controller_rollbacks_remaining")), unit="none", line=False, steps=[(None, BAD), (1, "text")],
        no_data="no controller attached",
    )  # fmt: skip


def _policy() -> Json:
    return tile(
        "Policy", "Name of the policy in force; the Controller dashboard has its hash.",
        Query("max by (run, name) (" + series("rl_policy_info") + ")", "{{name}}", now=True),
        unit="none", text="name", line=False, no_data="no controller attached",
    )  # fmt: skip


def _learning_rate() -> Json:
    return graph(
        "Learning rate",
        "Schedule times `lr_scale`, as the last step used it, on a logarithmic axis. The controller moves the scale, never the schedule: "
        "what moves without a mark is the schedule or a person.",
        Query(gauge("rl_trainer_learning_rate"), "learning rate"),
        Query(gauge("rl_trainer_hyperparameter", name="lr_scale"), "lr_scale"),
        unit="sci", log=True, steps=True, looks=[Look("learning rate", BLUE), Look("lr_scale", LINES[1], right=True, unit="short")],
    )  # fmt: skip
