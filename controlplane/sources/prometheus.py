"""Samples from a Prometheus server: for runs that are already scraped, on this machine or far away."""

from collections.abc import Collection
from typing import Any

import httpx

from controlplane.snapshot import series_id
from controlplane.sources.base import Sample, SourceError

TARGET_LABELS = frozenset({"__name__", "job", "instance", "run"})
ANCHOR = "rl_trainer_global_step"
"""The series whose sample time stands for the whole scrape; every trainer exports it."""


class PrometheusSource:
    """Newest samples of the run with target label `run`, through the HTTP API of a Prometheus server at `url`."""

    def __init__(self, url: str, run: str, timeout: float = 5.0) -> None:
        if any(character in run for character in '"\\\n'):
            raise ValueError(f"run name {run!r} has a character that a label selector cannot hold")
        self._url, self._run = url.rstrip("/"), run
        self._client = httpx.Client(timeout=timeout, trust_env=False)

    def read(self, names: Collection[str]) -> Sample:
        ages = self._query(f'timestamp({ANCHOR}{{run="{self._run}"}})')
        if not ages:
            raise SourceError(f"{self._url} has no fresh sample of {ANCHOR} for run {self._run!r}")
        pattern = "|".join(sorted(names))
        rows = self._query(f'{{run="{self._run}",__name__=~"{pattern}"}}')
        values = {}
        for row in rows:
            labels = {key: value for key, value in row["metric"].items() if key not in TARGET_LABELS}
            values[series_id(row["metric"]["__name__"], labels)] = float(row["value"][1])
        return Sample(max(float(row["value"][1]) for row in ages), values)

    def _query(self, expression: str) -> list[dict[str, Any]]:
        try:
            response = self._client.post(f"{self._url}/api/v1/query", data={"query": expression})
            body = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise SourceError(f"Prometheus at {self._url} cannot be read ({error or type(error).__name__})") from None
        if body.get("status") != "success":
            raise SourceError(f"Prometheus at {self._url} refused a query: {body.get('error', response.status_code)}")
        result: list[dict[str, Any]] = body["data"]["result"]
        return result
