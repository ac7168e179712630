"""PromQL as text, checked against the metric list while it is written.

`series` raises at once when a metric, a label or a label value is unknown, so a typo cannot reach a dashboard.
"""

import re
from dataclasses import dataclass

from controlplane.contract.metrics import BY_NAME, SAMPLES

SELECTOR = 'job=~"$job",run=~"$run"'
RUNS = 'job=~"$job",run=~"$runs"'
"""The selector of dashboards that show several runs at a time."""
TOLD = "~act|advise|waiting|dropped|observe|page"
"""Results of decisions that somebody hears of."""
WINDOW = "$__rate_interval"


@dataclass(frozen=True)
class Query:
    """One query of a panel. `table` asks for the newest value of every series as rows; `now` for the series that are there now,
    because over a range every state that ever was would still be named."""

    expr: str
    legend: str = ""
    ref: str = ""
    table: bool = False
    now: bool = False
    heatmap: bool = False


def series(name: str, where: str = SELECTOR, /, **labels: str) -> str:
    """A selector: `series("rl_trainer_loss", component="total")`. A value that starts with `~` is a regular expression.

    A run may have a forecast for each of its held-out sets; which one is shown is a variable, `curve`.

    Raises:
        ValueError: metric, label or label value is not in the list.
    """
    metric = SAMPLES.get(name)
    if metric is None:
        known = BY_NAME.get(name)
        why = (
            f"is a histogram: ask for {', '.join(known.samples)}"
            if known
            else "is not in the metric list (controlplane/contract/metrics.py)"
        )
        raise ValueError(f"{name} {why}")
    if "curve" in metric.labels:
        labels = {"curve": "~$curve", **labels}
    parts = [where]
    for label, value in labels.items():
        if label not in metric.labels:
            raise ValueError(f"{name} has no label {label!r}; it has {', '.join(metric.labels) or 'none'}")
        allowed = metric.labels[label]
        wanted = value[1:].split("|") if value.startswith("~") else [value]
        if allowed and not set(wanted) <= set(allowed):
            raise ValueError(f"{name}: {label} is one of {', '.join(allowed)}, not {value!r}")
        parts.append(f'{label}=~"{value[1:]}"' if value.startswith("~") else f'{label}="{value}"')
    return f"{name}{{{','.join(parts)}}}"


def gauge(name: str, where: str = SELECTOR, /, by: str = "run", how: str = "max", **labels: str) -> str:
    """A gauge without the address of the process, so that a restart goes on as the same line."""
    return f"{how} by ({by}) ({series(name, where, **labels)})"


def rate(name: str, where: str = SELECTOR, /, by: str = "run", window: str = WINDOW, **labels: str) -> str:
    """A counter per second."""
    return f"sum by ({by}) (rate({series(name, where, **labels)}[{window}]))"


def increase(name: str, where: str = SELECTOR, /, by: str = "run", window: str = WINDOW, **labels: str) -> str:
    """A counter's growth."""
    return f"sum by ({by}) (increase({series(name, where, **labels)}[{window}]))"


def per(top: str, bottom: str, on: str = "") -> str:
    """A quotient that has no value, instead of NaN, where there is nothing to divide by."""
    match = f" {on}" if on else ""
    return f"{top} /{match} ({bottom} > 0)"


def quantile(q: float, name: str, where: str = SELECTOR, /, by: str = "run") -> str:
    """A quantile of a histogram over the window; exact only at bucket bounds."""
    return f"histogram_quantile({q:g}, {rate(f'{name}_bucket', where, by=f'{by}, le')})"


def mean(name: str, where: str = SELECTOR, /, by: str = "run") -> str:
    """The mean of a histogram over the window."""
    return per(rate(f"{name}_sum", where, by=by), rate(f"{name}_count", where, by=by))


def metrics_in(expr: str) -> list[str]:
    """Metrics of ours that an expression reads, in order of appearance."""
    names = (SAMPLES[name].name for name in re.findall(r"\brl_\w+", expr) if name in SAMPLES)
    return list(dict.fromkeys(names))
