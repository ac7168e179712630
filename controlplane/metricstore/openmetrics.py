"""A store as OpenMetrics text with timestamps: what `promtool tsdb create-blocks-from openmetrics` loads into a Prometheus."""

from collections.abc import Iterator

import numpy as np

from controlplane.contract.metrics import BY_NAME, SAMPLES
from controlplane.metricstore.store import MetricStore

_TYPES = {"counter": "counter", "gauge": "gauge", "histogram": "histogram", "info": "info", "state": "gauge"}


def openmetrics(store: MetricStore, run: str) -> Iterator[str]:
    """Lines with their line ends, family by family, every sample labelled `job` and `run` as if it had been scraped."""
    families: dict[str, list[str]] = {}
    for series in store.series():
        name = series.partition("{")[0]
        families.setdefault(SAMPLES[name].name if name in SAMPLES else name, []).append(series)
    for family, members in families.items():
        yield from _head(family)
        for series in members:
            yield from _samples(store, series, run)
    yield "# EOF\n"


def _head(family: str) -> Iterator[str]:
    metric = BY_NAME.get(family)
    kind = _TYPES[metric.kind] if metric else "gauge"
    yield f"# TYPE {family.removesuffix('_total').removesuffix('_info')} {kind}\n"
    if metric:
        yield f"# HELP {family.removesuffix('_total').removesuffix('_info')} {metric.help}\n"


def _samples(store: MetricStore, series: str, run: str) -> Iterator[str]:
    name, _, labels = series.removesuffix("}").partition("{")
    metric = SAMPLES.get(name)
    job = "scalerl-controller" if metric is not None and metric.source == "controller" else "scalerl-trainer"
    target = [f'run="{run}"'] if 'job="' in labels else [f'job="{job}"', f'run="{run}"']
    head = f"{name}{{{','.join([*([labels] if labels else []), *target])}}}"
    times, values = store.read(series)
    for at, value in zip(times, values, strict=True):
        yield f"{head} {_number(value)} {at:.3f}\n"


def _number(value: float) -> str:
    return "NaN" if np.isnan(value) else ("+Inf" if value > 0 else "-Inf") if np.isinf(value) else repr(float(value))
