"""Held-out evaluations of a run from the history of a Prometheus server, or from a saved answer of its `query_range`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from controlplane.contract.yamlfile import FileError
from controlplane.fitting.series import Given, given

RATE, COMPUTE, STEP = "rl_eval_pass_ratio", "rl_eval_compute_gpu_seconds", "rl_eval_last_step"
POINTS = 11_000
"""A server refuses more points per series than this."""
Rows = Sequence[Mapping[str, Any]]


def query(url: str, run: str, dataset: str, hours: float, now: float, client: httpx.Client | None = None) -> Given:
    """The evaluations of `run` on `dataset` in the last `hours` before `now` (unix seconds).

    Raises:
        FileError: the server cannot be asked, or has no such series.
    """
    if any(character in run + dataset for character in '"\\\n'):
        raise FileError(f"--run {run!r}: has a character that a label selector cannot hold")
    step = max(15.0, hours * 3600.0 / (POINTS - 1))
    expression = f'{{__name__=~"{RATE}|{COMPUTE}|{STEP}",run="{run}",dataset="{dataset}"}}'
    asked = {"query": expression, "start": f"{now - hours * 3600.0:.3f}", "end": f"{now:.3f}", "step": f"{step:g}"}
    try:
        with client or httpx.Client(timeout=30.0, trust_env=False) as http:
            body = http.post(f"{url.rstrip('/')}/api/v1/query_range", data=asked).json()
    except (httpx.HTTPError, ValueError) as error:
        raise FileError(f"{url}: cannot be read ({error or type(error).__name__})") from None
    if body.get("status") != "success":
        raise FileError(f"{url}: refused the query: {body.get('error', 'no reason given')}")
    rows = body["data"]["result"]
    if not rows:
        raise FileError(f"{url}: has no evaluation of run {run!r} on {dataset!r} in the last {hours:g} hours")
    return evaluations(rows, run)


def saved(path: Path) -> Given | None:
    """The evaluations in a saved answer; None if the file is something else."""
    if path.suffix != ".json":
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, dict) or data.get("resultType") != "matrix":
        return None
    return evaluations(data["result"], path.stem)


def evaluations(rows: Rows, name: str) -> Given:
    """One point for each time the evaluation changed; a scrape in between only repeats it.

    A point whose compute or step falls back belongs to a new branch: what it takes the place of is dropped.
    """
    series: dict[str, dict[float, float]] = {}
    for row in rows:
        metric = row["metric"].get("__name__", RATE)
        series.setdefault(metric, {}).update({float(at): float(value) for at, value in row["values"]})
    rates = series.get(RATE)
    if not rates:
        raise FileError(f"{name}: holds no {RATE}")
    axis = next((n for n in (COMPUTE, STEP) if n in series), None)
    if axis is None:
        raise FileError(f"{name}: holds neither {COMPUTE} nor {STEP}; ask for one of them together with {RATE}")
    points: list[tuple[float, float]] = []
    for at in sorted(rates):
        spent = series[axis].get(at)
        if spent is None or not np.isfinite([spent, rates[at]]).all():
            continue
        while points and points[-1][0] >= spent:
            points.pop()
        points.append((spent, rates[at]))
    unit = "GPU-seconds" if axis == COMPUTE else "steps"
    compute, rate = (np.array(column) for column in zip(*points, strict=True)) if points else (np.zeros(0), np.zeros(0))
    return given(name, compute, rate, unit, (f"compute: {axis}; {len(points)} evaluations in {len(rates)} scrapes",))
