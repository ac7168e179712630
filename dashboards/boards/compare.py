"""Compare: several runs on the same axes."""

from dashboards.boards import common
from dashboards.boards.common import pass_ratio
from dashboards.frame import Board
from dashboards.layout import Row
from dashboards.panel import NEUTRAL, Json, Look, by_name, graph, table
from dashboards.query import RUNS, Query, gauge, mean, per, rate, series
from dashboards.thresholds import Limits


def compare(limits: Limits) -> Board:
    """Which run is worth going on with."""
    which = Row("Which runs are there?", [(_runs(), 24, 8)])
    worth = Row("Which is worth more?", [
        (_held_out(limits), 12, 10), (_compute(), 12, 10), (_forecast(), 12, 8), (_batch(limits), 12, 8),
    ])  # fmt: skip
    why = Row("Where do they differ?", [
        (_line("Gradient norm", "Global norm before clipping; logarithmic.", gauge("rl_trainer_grad_norm", RUNS), "short", log=True), 8, 8),
        (_line("Entropy", "Mean token entropy of the policy.", gauge("rl_trainer_entropy_nats", RUNS), "suffix: nats"), 8, 8),
        (_line("Mean length", "Mean generated tokens of a completion.", mean("rl_rollout_length_tokens", RUNS), "suffix: tok"), 8, 8),
        (_line("Learning rate", "As the last step used it; logarithmic.", gauge("rl_trainer_learning_rate", RUNS), "sci", log=True, steps=True), 8, 8),
        (_line("Generated tokens", "Tokens per second from the sampler.", rate("rl_rollout_tokens_total", RUNS, kind="generated"), "suffix: tok/s"), 8, 8),
        (_line("Truncated", "Share of completions cut off by the length limit.", common.truncated_ratio(RUNS), "percentunit"), 8, 8),
    ])  # fmt: skip
    return Board(
        "compare", "RL runs: compare", "Several runs on the same axes: which is worth more, and where do they differ?",
        [which, worth, why], several=True,
    )  # fmt: skip


def _runs() -> Json:
    step, planned = gauge("rl_trainer_global_step", RUNS), gauge("rl_trainer_planned_steps", RUNS)
    link = by_name("Run")
    link["properties"] = [{"id": "links", "value": [{
        "title": "open this run",
        "url": "/d/scalerl-overview?var-datasource=${datasource}&var-run=${__value.raw}&${__url_time_range}", "targetBlank": False,
    }]}]  # fmt: skip
    queries = {
        # The first query gives the order of the rows: the best run on top.
        "E": f"sort_desc({_last(gauge('rl_eval_pass_ratio', RUNS, how='avg'))})", "S": _last(step), "D": _last(per(step, planned)),
        "F": _last(gauge("rl_forecast_pass_ratio", RUNS, q="0.5")), "P": _last(gauge("rl_forecast_target_probability", RUNS)),
        "B": _last(gauge("rl_trainer_branch", RUNS)), "C": _last(gauge("rl_trainer_lineage_compute_gpu_seconds", RUNS)),
    }  # fmt: skip
    return table(
        "Runs", "The last known state of every run in the time shown; click a name for its Overview. Forecast and chance are empty while the forecaster refuses.",
        *[Query(expr, ref=ref, table=True) for ref, expr in queries.items()],
        columns=[
            ("run", "Run"), ("Value #S", "Step"), ("Value #D", "Done"), ("Value #E", "Held-out pass rate"), ("Value #F", "Forecast of the end"),
            ("Value #P", "Chance of the target"), ("Value #B", "Rollbacks"), ("Value #C", "Device time"),
        ],
        overrides=[
            link, by_name("Done", unit="percentunit", decimals=0), by_name("(Held-out pass rate|Forecast of the end)", unit="percentunit", decimals=1),
            by_name("Chance of the target", unit="percentunit", decimals=0), by_name("Device time", unit="s"),
        ],
        sort=("Held-out pass rate", True), no_data="-",
    )  # fmt: skip


def _last(expr: str) -> str:
    """The newest value in the time shown, also of runs that have ended."""
    return f"last_over_time(({expr})[$__range:])"


def _line(title: str, description: str, expr: str, unit: str, log: bool = False, steps: bool = False) -> Json:
    return graph(title, description, Query(expr, "{{run}}"), unit=unit, low=None if log else 0, log=log, steps=steps)


def _held_out(limits: Limits) -> Json:
    return graph(
        "Held-out pass rate", "Pass rate of the newest evaluation of every run, averaged over its held-out sets.",
        Query(gauge("rl_eval_pass_ratio", RUNS, how="avg"), "{{run}}"), Query(f"max({series('rl_forecast_target_pass_ratio', RUNS)})", "target"),
        unit="percentunit", low=0, high=1, steps=True, limit=limits.of("eval_pass_rate"), looks=[Look("target", NEUTRAL, width=1, dashed=True)],
        no_data="no evaluation yet",
    )  # fmt: skip


def _compute() -> Json:
    return graph(
        "Compute spent", "Device time behind the weights in force. Compare pass rates at the same height of this curve, not at the same time; a fall is a rollback.",
        Query(gauge("rl_trainer_lineage_compute_gpu_seconds", RUNS), "{{run}}"), unit="s", low=0,
    )  # fmt: skip


def _forecast() -> Json:
    return graph(
        "Forecast of the end", "Median forecast of the held-out pass rate at the end, as it was known at each moment.",
        Query(gauge("rl_forecast_pass_ratio", RUNS, q="0.5"), "{{run}}"), unit="percentunit", low=0, high=1, steps=True,
        no_data="no forecast yet",
    )  # fmt: skip


def _batch(limits: Limits) -> Json:
    return graph(
        "Pass rate of the training batches", "Passed over judged completions, on the prompts that each run learns from.",
        Query(pass_ratio(RUNS), "{{run}}"), unit="percentunit", low=0, high=1, limit=limits.of("pass_rate"), no_data="no completion judged yet",
    )  # fmt: skip
