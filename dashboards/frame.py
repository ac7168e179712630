"""What every dashboard has around its panels: variables, annotations, links, time."""

from collections.abc import Sequence
from dataclasses import dataclass

from dashboards.layout import Row, place
from dashboards.panel import BAD, SOURCE, WARN, Json
from dashboards.query import RUNS, SELECTOR, TOLD, WINDOW, series

TAG = "scalerl"
SCHEMA = 39
ACTION = "semi-dark-purple"
GRAFANA: Json = {"type": "grafana", "uid": "-- Grafana --"}


@dataclass(frozen=True)
class Board:
    """One dashboard. `several` shows several runs at a time (variable `runs`), otherwise one (variable `run`)."""

    name: str
    title: str
    description: str
    rows: Sequence[Row]
    several: bool = False
    variables: Sequence[Json] = ()

    @property
    def uid(self) -> str:
        """Fixed, so that links and bookmarks survive an update."""
        return f"{TAG}-{self.name}"


def dashboard(board: Board) -> Json:
    """The whole file."""
    panels = place(board.rows)
    curve = [_curve(board.several)] if "$curve" in repr(panels) else []
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "browser",
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "timepicker": {},
        "annotations": {"list": _annotations(board.several)},
        "links": [_link()],
        "templating": {"list": [_source(), _job(), _run(board.several), *curve, *board.variables]},
        "panels": panels,
    }  # fmt: skip


def _source() -> Json:
    default = {"selected": False, "text": "default", "value": "default"}
    made: Json = {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"}
    return made | {"current": default, "refresh": 1, "regex": "", "hide": 0, "multi": False, "includeAll": False}


def query_variable(name: str, label: str, query: str, kind: int, regex: str = "", several: bool = False) -> Json:
    """A variable whose values Prometheus knows. `kind`: 1 label values, 3 result of a query."""
    made: Json = {"type": "query", "name": name, "label": label, "datasource": SOURCE, "definition": query}
    made["query"] = {"qryType": kind, "query": query, "refId": f"variable-{name}"}
    # Refreshed with the time range, so that runs of last week appear when last week is looked at.
    made |= {"refresh": 2, "regex": regex, "sort": 0, "hide": 0, "multi": several, "includeAll": several}
    if several:
        made |= {"allValue": ".+", "current": {"selected": True, "text": ["All"], "value": ["$__all"]}}
    return made


def _job() -> Json:
    return query_variable(
        "job", "Job", 'label_values({__name__=~"rl_trainer_state|rl_controller_mode"}, job)', 1, several=True
    )


def _run(several: bool) -> Json:
    step = series("rl_trainer_last_step_timestamp_seconds", 'job=~"$job"')
    newest = f"query_result(sort_desc(max by (run) (max_over_time({step}[$__range]))))"
    name, label = ("runs", "Runs") if several else ("run", "Run")
    return query_variable(name, label, newest, 3, regex='/run="([^"]+)"/', several=several)


def _curve(several: bool) -> Json:
    # The selector is written out: `series` would ask for the variable that is defined here.
    where = RUNS if several else SELECTOR
    return query_variable("curve", "Forecast of", f"label_values(rl_forecast_refused{{{where}}}, curve)", 1)


def _annotations(several: bool) -> list[Json]:
    where = RUNS if several else SELECTOR
    told = series("rl_controller_decisions_total", where, result=TOLD)
    firing = f'ALERTS{{alertstate="firing",alertname!="RLWatchdog",{where.partition(",")[2]}}}'
    started = series("rl_trainer_start_timestamp_seconds", where)
    # What `scalerl control` wrote through the API: the same actions with their reason in words. A tag cannot name several runs.
    tags = [TAG] if several else [TAG, "run:$run"]
    reasons: Json = {"name": "Reasons", "datasource": GRAFANA, "enable": True, "hide": False, "iconColor": ACTION}
    reasons["target"] = {"type": "tags", "tags": tags, "matchAny": False, "limit": 100}
    return [
        _marks(
            "Controller", ACTION, f"sum by (run, rule, action, result) (increase({told}[{WINDOW}])) > 0",
            "{{result}}: {{action}}", "rule {{rule}}", "run,rule,action,result",
        ),
        # Where an alert begins. How long it lasts is a row of the Overview; shading every graph for hours would hide them.
        _marks(
            "Alerts", BAD, f"max by (run, alertname, severity) ({firing} unless {firing} offset {WINDOW})",
            "{{alertname}}", "{{severity}}", "run,severity",
        ),
        # The value is the time of the start, so that the mark stands there however coarse the steps of the query are.
        _marks(
            "Restarts", WARN, f"max by (run) ({started}) * 1000", "Trainer started", "a new process of {{run}}", "run", at_value=True,
        ),
        reasons,
    ]  # fmt: skip


def _marks(name: str, colour: str, expr: str, title: str, text: str, tags: str, at_value: bool = False) -> Json:
    made: Json = {"name": name, "datasource": SOURCE, "enable": True, "hide": False, "iconColor": colour, "expr": expr}
    return made | {
        "step": "15s",
        "titleFormat": title,
        "textFormat": text,
        "tagKeys": tags,
        "useValueForTime": at_value,
    }


def _link() -> Json:
    made: Json = {"type": "dashboards", "title": "scalerl", "tags": [TAG], "asDropdown": False, "icon": "external link"}
    return made | {"includeVars": True, "keepTime": True, "targetBlank": False, "tooltip": "", "url": ""}
