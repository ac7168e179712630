import re
from pathlib import Path

import pytest

from controlplane.contract.metrics import BY_NAME, METRICS, SAMPLES, Metric


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_prometheus_rules(metric: Metric) -> None:
    assert re.fullmatch(
        r"rl_(run|trainer|rollout|buffer|sampler|weight|eval|checkpoint|gpu|controller|policy|fit|forecast)_[a-z0-9_]+",
        metric.name,
    )
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.name.endswith("_info") == (metric.kind == "info")
    if metric.name.endswith("_probability"):
        assert metric.unit == "ratio"
    elif metric.unit in ("ratio", "bytes", "nats") or (metric.unit == "seconds" and metric.kind != "counter"):
        assert metric.name.removesuffix("_total").endswith(metric.unit) or f"_{metric.unit}_" in metric.name
    assert metric.help.endswith(".")
    assert not {"le", "quantile", "run", "job", "instance"} & set(metric.labels)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_kinds_have_what_they_need(metric: Metric) -> None:
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    if metric.kind == "state":
        ((_, states),) = metric.labels.items()
        assert states


def test_no_metric_is_listed_twice() -> None:
    assert len(BY_NAME) == len(METRICS)


ROOT = Path(__file__).parents[2]
NAME = re.compile(r"(?<![\w:/.])rl_[a-z0-9_]*[a-z0-9](?![\w*])")
"""Not the part behind a path or a colon, and not a prefix such as `rl_gpu_*`."""


@pytest.mark.parametrize("folder", ["controlplane", "trainer", "alerts", "dashboards", "docs", "bench", "README.md"])
def test_every_metric_named_anywhere_exists(folder: str) -> None:
    place = ROOT / folder
    files = (
        [place]
        if place.is_file()
        else [f for f in place.rglob("*") if f.suffix in (".py", ".yaml", ".yml", ".json", ".md")]
    )
    unknown = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in NAME.findall(file.read_text())
        if name not in BY_NAME and name not in SAMPLES
    }
    assert unknown == set()
