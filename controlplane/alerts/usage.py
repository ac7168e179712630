"""Who uses which metric: read from the rule files and dashboards themselves, never from a list kept by hand."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from controlplane.alerts.catalogue import alerts
from controlplane.alerts.limits import Limits
from controlplane.alerts.promql import metric_names
from controlplane.alerts.recordings import RECORDINGS
from controlplane.contract.metrics import METRICS, SAMPLES, Metric
from controlplane.detect import SERIES


def expressions(dashboard: Path) -> list[str]:
    """Every PromQL expression of a dashboard file: panels, variables, annotations."""
    return list(_strings(json.loads(dashboard.read_text())))


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "query") and isinstance(value, str):
                yield value
            else:
                yield from _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)


def used_by(limits: Limits, dashboards: Path) -> Mapping[str, tuple[str, ...]]:
    """Metric name -> controller, alerts and dashboards that read it, through recording rules as well."""
    recorded = {rule.record: metric_names(rule.expr) for rule in RECORDINGS}
    users: dict[str, set[str]] = {}

    def note(user: str, names: frozenset[str]) -> None:
        for name in names:
            if name in SAMPLES:
                users.setdefault(SAMPLES[name].name, set()).add(user)
            elif name in recorded:
                note(user, recorded[name] - {name})

    note("the controller", SERIES)
    for alert in alerts(limits):
        note(alert.name, metric_names(alert.expr))
    for path in sorted(dashboards.rglob("*.json")):
        for expression in expressions(path):
            note(f"{path.stem} dashboard", metric_names(expression))
    return {name: tuple(sorted(found)) for name, found in users.items()}


def metrics_page(limits: Limits, dashboards: Path) -> str:
    """docs/metrics.md: the whole list as tables."""
    users = used_by(limits, dashboards)
    lines = [
        "<!-- Generated: python -m controlplane.alerts. The list is controlplane/contract/metrics.py. -->",
        "# Metrics",
        "",
        "Every metric family of trainer, GPU exporter and controller. Counters, histograms and states exist at 0 from the start for every",
        "listed label value; a gauge without a reading yet is absent, and NaN means that nothing was measured. `run` and `job` are",
        "labels of the target, never of a metric. A histogram is read through `_bucket`, `_sum` and `_count`.",
    ]
    titles = {
        "trainer": "Trainer",
        "exporter": "GPUs, read by the trainer's exporter or by DCGM",
        "controller": "Controller",
    }
    for source, title in titles.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| metric | kind | labels | unit | what | used by |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        lines += [_row(metric, users.get(metric.name, ())) for metric in METRICS if metric.source == source]
    return "\n".join(lines) + "\n"


def _row(metric: Metric, users: tuple[str, ...]) -> str:
    labels = ", ".join(f"{name}: {' '.join(values)}" if values else name for name, values in metric.labels.items())
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.unit} | {metric.help} | {', '.join(users)} |"
