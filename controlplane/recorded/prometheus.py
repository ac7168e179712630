"""A run recorded by a Prometheus server, as a table: the same differences between two samples that a controller makes."""

import time
from collections import defaultdict
from typing import Any

import httpx

from controlplane.contract.yamlfile import FileError
from controlplane.recorded.files import Rows, make
from controlplane.recorded.table import Table

_MOST_POINTS = 10_000
"""A server refuses more than 11,000 points per series."""
_SHORTEST = 5.0
_GAUGES = {
    "rl_trainer_global_step": "step",
    "rl_trainer_loss": "loss",
    "rl_trainer_grad_norm": "grad_norm",
    "rl_trainer_entropy_nats": "entropy",
    "rl_trainer_sampler_mismatch_kl_nats": "mismatch_kl",
    "rl_trainer_effective_sample_ratio": "effective_sample_ratio",
    "rl_trainer_learning_rate": "lr",
    "rl_rollout_staleness_steps_max": "staleness_max",
    "rl_trainer_lineage_compute_gpu_seconds": "compute",
    "rl_eval_pass_ratio": "eval_pass_ratio",
    "rl_eval_last_step": "eval_step",
}
_COUNTERS = {
    'rl_rollout_samples_total{outcome="pass"}': "passed",
    'rl_rollout_samples_total{outcome="fail"}': "failed",
    'rl_rollout_truncated_total{reason="length"}': "truncated",
    'rl_rollout_groups_total{signal="mixed"}': "mixed",
    "rl_rollout_groups_total": "groups",
    "rl_rollout_length_tokens_sum": "tokens",
    "rl_rollout_length_tokens_count": "completions",
    "rl_trainer_nonfinite_total": "nonfinite",
}
"""Selector -> name; all series that a selector finds are added up."""


def read_prometheus(url: str, run: str, hours: float = 24.0, now: float | None = None) -> Table:
    """The newest `hours` of the run with target label `run`.

    Raises:
        FileError: the server cannot be read, has no such run, or a name cannot stand in a selector.
    """
    if not run or any(character in run for character in '"\\\n'):
        raise FileError(f"{url}: name the run with --run; {run!r} is no name that a selector can hold")
    server = _Server(url.rstrip("/"), run, hours, time.time() if now is None else now)
    series = {name: server.sums(selector) for selector, name in (*_GAUGES.items(), *_COUNTERS.items())}
    if not series["step"]:
        raise FileError(f"{url}: has no samples of rl_trainer_global_step for run {run!r} in the last {hours:g} hours")
    return make(run, _rows(series), url)


class _Server:
    def __init__(self, url: str, run: str, hours: float, now: float) -> None:
        self._url, self._run = url, run
        self._end, self._start = now, now - hours * 3600
        self._every = max(_SHORTEST, hours * 3600 / _MOST_POINTS)
        self._client = httpx.Client(timeout=30.0, trust_env=False)

    def sums(self, selector: str) -> dict[float, float]:
        """Unix time -> sum of the series of a selector at that time."""
        name, brace, labels = selector.partition("{")
        inside = f'run="{self._run}"' + (f",{labels[:-1]}" if brace else "")
        query = {"query": f"sum({name}{{{inside}}})", "start": self._start, "end": self._end, "step": self._every}
        try:
            response = self._client.post(f"{self._url}/api/v1/query_range", data=query)
            body: dict[str, Any] = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise FileError(f"{self._url}: cannot be read ({error or type(error).__name__})") from None
        if body.get("status") != "success":
            raise FileError(f"{self._url}: refused a query: {body.get('error', response.status_code)}")
        result = body["data"]["result"]
        return {float(at): float(value) for at, value in result[0]["values"]} if result else {}


def _rows(series: dict[str, dict[float, float]]) -> Rows:
    """One row per change of the step: gauges as they were then, counters as what they grew since the row before."""
    rows: Rows = []
    before: dict[str, float] = defaultdict(float)
    last: float | None = None
    seen_eval: float | None = None
    for at in sorted(series["step"]):
        step = series["step"][at]
        if step == last or step != step:
            continue
        last = step
        row = {"step": step, "time": at}
        for name in _GAUGES.values():
            if at in series[name] and name not in ("step", "eval_step", "eval_pass_ratio"):
                row[name] = series[name][at]
        grown = {}
        for name in _COUNTERS.values():
            if at in series[name]:
                value = series[name][at]
                grown[name] = value - before[name] if value >= before[name] else value
                before[name] = value
        row |= _shares(grown)
        evaluated = series["eval_step"].get(at)
        if evaluated is not None and evaluated != seen_eval and at in series["eval_pass_ratio"]:
            seen_eval = evaluated
            row["eval_pass_ratio"] = series["eval_pass_ratio"][at]
        rows.append(row)
    # What was counted before the first sample belongs to no row.
    return rows[1:] if len(rows) > 1 else rows


def _shares(grown: dict[str, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    verified = grown.get("passed", 0.0) + grown.get("failed", 0.0)
    if verified > 0:
        found |= {"pass_ratio": grown.get("passed", 0.0) / verified, "n": verified}
        if "truncated" in grown:
            found["truncated"] = grown["truncated"] / verified
    if grown.get("groups", 0.0) > 0 and "mixed" in grown:
        found["zero_variance"] = 1.0 - grown["mixed"] / grown["groups"]
    if grown.get("completions", 0.0) > 0:
        found["mean_length"] = grown.get("tokens", 0.0) / grown["completions"]
    if "nonfinite" in grown:
        found["nonfinite"] = float(grown["nonfinite"] > 0)
    return found
