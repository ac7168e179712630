"""Panels as dictionaries. What all have: data source, unit, a description that ends with its metrics, words for "no data".

Colour judges: red and orange mean that something is over a limit or fails, green that a goal is reached. Everything else has a
colour that only tells lines apart, and the same thing has the same colour on every dashboard.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboards.query import Query, metrics_in

Json = dict[str, Any]

SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
NO_DATA = "not reported"
NEUTRAL = "text"
BAD, WARN, GOOD = "semi-dark-red", "semi-dark-orange", "semi-dark-green"
LINES = ("semi-dark-blue", "semi-dark-purple", "light-blue", "semi-dark-yellow", "super-light-purple", "dark-blue")
PALE = "#8e8e9c"


@dataclass(frozen=True)
class Limit:
    """A value that the policy judges a signal by. `above`: larger is worse."""

    value: float
    above: bool = True
    colour: str = BAD


@dataclass(frozen=True)
class Look:
    """How one series is drawn: its name by regular expression, and what differs from the panel's default."""

    name: str
    colour: str | None = None
    width: float | None = None
    fill_to: str = ""
    fill: int | None = None
    dashed: bool = False
    points: bool = False
    steps: bool = False
    right: bool = False
    unit: str = ""
    stack: str = ""
    top: float | None = None
    """The axis reaches at least this far."""


def _steps(limit: Limit | None, base: str) -> Json:
    if limit is None:
        return {"mode": "absolute", "steps": [{"color": base, "value": None}]}
    low, high = (base, limit.colour) if limit.above else (limit.colour, base)
    return {"mode": "absolute", "steps": [{"color": low, "value": None}, {"color": high, "value": limit.value}]}


def text_mapping(words: Mapping[float, tuple[str, str]] | None = None, nan: str = "not known") -> list[Json]:
    """Value mappings: NaN in words, and numbers that stand for words as (text, colour)."""
    special: Json = {"type": "special", "options": {"match": "nan", "result": {"text": nan, "color": NEUTRAL}}}
    if not words:
        return [special]
    options = {f"{v:g}": {"text": t, "color": c, "index": i} for i, (v, (t, c)) in enumerate(words.items())}
    return [special, {"type": "value", "options": options}]


def _targets(queries: Sequence[Query]) -> list[Json]:
    targets = []
    for index, query in enumerate(queries):
        target: Json = {"datasource": SOURCE, "refId": query.ref or chr(ord("A") + index), "expr": query.expr}
        target["editorMode"] = "code"
        target["legendFormat"] = query.legend or "__auto"
        now = query.table or query.now
        target["range"], target["instant"] = not now, now
        if query.table or query.heatmap:
            target["format"] = "table" if query.table else "heatmap"
        targets.append(target)
    return targets


def panel(kind: str, title: str, description: str, queries: Sequence[Query], defaults: Json, options: Json) -> Json:
    """The part that every panel has."""
    names = dict.fromkeys(name for query in queries for name in metrics_in(query.expr))
    return {
        "type": kind,
        "title": title,
        "description": f"{description}\n\nMetrics: {', '.join(f'`{name}`' for name in names)}",
        "datasource": SOURCE,
        "targets": _targets(queries),
        "fieldConfig": {"defaults": {"mappings": text_mapping(), **defaults}, "overrides": []},
        "options": options,
    }


def by_name(pattern: str, **properties: Any) -> Json:
    """A field override; the keys of `properties` have `__` for the dot."""
    rows = [{"id": key.replace("__", "."), "value": value} for key, value in properties.items()]
    return {"matcher": {"id": "byRegexp", "options": f"/^{pattern}$/"}, "properties": rows}


def _look(look: Look) -> Json:
    properties: Json = {}
    if look.colour:
        properties["color"] = {"mode": "fixed", "fixedColor": look.colour}
    if look.width is not None:
        properties["custom__lineWidth"] = look.width
    if look.fill_to:
        properties["custom__fillBelowTo"] = look.fill_to
        properties["custom__fillOpacity"] = 18
    if look.fill is not None:
        properties["custom__fillOpacity"] = look.fill
    if look.dashed:
        properties["custom__lineStyle"] = {"fill": "dash", "dash": [8, 6]}
    if look.points:
        properties["custom__showPoints"] = "always"
        properties["custom__pointSize"] = 6
    if look.steps:
        properties["custom__lineInterpolation"] = "stepAfter"
    if look.right:
        properties["custom__axisPlacement"] = "right"
    if look.unit:
        properties["unit"] = look.unit
    if look.stack:
        properties["custom__stacking"] = {"mode": look.stack, "group": "A"}
    if look.top is not None:
        properties["custom__axisSoftMax"] = look.top
    return by_name(look.name, **properties)


def graph(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    looks: Sequence[Look] = (),
    limit: Limit | None = None,
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
    stack: bool = False,
    steps: bool = False,
    legend: str = "list",
    no_data: str = NO_DATA,
    decimals: int | None = None,
) -> Json:
    """Lines over time. `limit` is drawn dashed; `low` and `high` are soft bounds of the axis."""
    custom: Json = {
        "drawStyle": "line",
        "lineInterpolation": "stepAfter" if steps else "linear",
        # In a stack a line of zero height would lie on top and look like a full share.
        "lineWidth": 0 if stack else 2,
        "fillOpacity": 70 if stack else 0,
        "showPoints": "auto",
        "pointSize": 4,
        # A run of slow steps has a sample every few minutes only; a longer gap is a gap.
        "spanNulls": 3_600_000,
        "thresholdsStyle": {"mode": "dashed" if limit else "off"},
        "stacking": {"mode": "normal" if stack else "none", "group": "A"},
        "scaleDistribution": {"type": "log", "log": 10} if log else {"type": "linear"},
    }
    custom |= {"axisSoftMin": low} if low is not None else {}
    custom |= {"axisSoftMax": high} if high is not None else {}
    defaults: Json = {"unit": unit, "noValue": no_data, "color": {"mode": "palette-classic-by-name"}, "custom": custom}
    defaults |= {"thresholds": _steps(limit, "transparent")}
    defaults |= {"decimals": decimals} if decimals is not None else {}
    options = {
        "legend": {
            "displayMode": legend,
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["lastNotNull"] if legend == "table" else [],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    made = panel("timeseries", title, description, queries, defaults, options)
    made["fieldConfig"]["overrides"] = [_look(look) for look in looks]
    return made


def tile(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    limit: Limit | None = None,
    steps: Sequence[tuple[float | None, str]] = (),
    words: Mapping[float, tuple[str, str]] | None = None,
    no_data: str = NO_DATA,
    nan: str = "not known",
    decimals: int | None = None,
    text: str = "auto",
    line: bool = True,
) -> Json:
    """A single number, coloured only if it has a `limit`, `steps` or `words` to be judged by."""
    judged = bool(limit or steps or words)
    thresholds = _steps(limit, NEUTRAL)
    if steps:
        thresholds = {"mode": "absolute", "steps": [{"color": colour, "value": value} for value, colour in steps]}
    defaults: Json = {"unit": unit, "noValue": no_data, "mappings": text_mapping(words, nan), "thresholds": thresholds}
    # The fixed colour is that of the sparkline too, so an unjudged tile is blue there and has a neutral number.
    defaults |= {"color": {"mode": "thresholds"} if judged else {"mode": "fixed", "fixedColor": LINES[0]}}
    defaults |= {"decimals": decimals} if decimals is not None else {}
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value" if judged else "none",
        "graphMode": "area" if line else "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": text,
        "wideLayout": True,
    }
    return panel("stat", title, description, queries, defaults, options)


def timeline(
    title: str, description: str, *queries: Query, words: Mapping[float, tuple[str, str]], no_data: str = NO_DATA
) -> Json:
    """A row per series, coloured by state."""
    defaults: Json = {
        "unit": "none",
        "noValue": no_data,
        "mappings": text_mapping(words),
        "color": {"mode": "thresholds"},
        "thresholds": _steps(None, NEUTRAL),
        "custom": {"fillOpacity": 80, "lineWidth": 0, "spanNulls": 120_000},
    }
    options = {
        "showValue": "never",
        "rowHeight": 0.8,
        "mergeValues": True,
        "alignValue": "left",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return panel("state-timeline", title, description, queries, defaults, options)


def heat(title: str, description: str, query: Query, unit: str, no_data: str = NO_DATA) -> Json:
    """How a histogram moves over time: one column per moment, darker where more fell into the bucket."""
    defaults: Json = {"unit": "short", "noValue": no_data, "custom": {"scaleDistribution": {"type": "linear"}}}
    options: Json = {
        "calculate": False,
        "cellGap": 0,
        "color": {"mode": "scheme", "scheme": "Blues", "steps": 64, "exponent": 0.5, "reverse": False, "fill": LINES[0], "scale": "exponential"},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        # Buckets in which nothing fell are left empty.
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
    }  # fmt: skip
    return panel("heatmap", title, description, [query], defaults, options)


def table(
    title: str,
    description: str,
    *queries: Query,
    columns: Sequence[tuple[str, str]],
    overrides: Sequence[Json] = (),
    sort: tuple[str, bool] | None = None,
    no_data: str = NO_DATA,
) -> Json:
    """Newest values as rows. `columns`: (field, heading) in order; `Value #X` is that of query X. Others are left out."""
    defaults: Json = {
        "unit": "short",
        "noValue": no_data,
        "color": {"mode": "fixed", "fixedColor": NEUTRAL},
        "thresholds": _steps(None, NEUTRAL),
        "custom": {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": False, "inspect": False},
    }
    options: Json = {
        "showHeader": True,
        "cellHeight": "sm",
        "footer": {"show": False, "reducer": ["sum"], "countRows": False},
    }
    options |= {"sortBy": [{"displayName": sort[0], "desc": sort[1]}]} if sort else {}
    made = panel("table", title, description, queries, defaults, options)
    made["fieldConfig"]["overrides"] = list(overrides)
    order = {name: index for index, (name, _) in enumerate(columns)}
    made["transformations"] = [
        {"id": "merge", "options": {}},
        {"id": "filterFieldsByName", "options": {"include": {"names": list(order)}}},
        {"id": "organize", "options": {"indexByName": order, "renameByName": dict(columns), "excludeByName": {}}},
    ]
    return made


def words(title: str, markdown: str) -> Json:
    """A panel of text."""
    return {
        "type": "text",
        "title": title,
        "description": "What this dashboard answers and how to read it.",
        "datasource": SOURCE,
        "options": {"mode": "markdown", "content": markdown, "code": {"language": "plaintext", "showLineNumbers": False, "showMiniMap": False}},
    }  # fmt: skip
