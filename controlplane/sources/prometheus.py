"""Samples from a Prometheus server: for runs that are already scraped, on this machine or far away."""

import json
import time
from collections.abc import Callable, Collection, Mapping
from math import isfinite
from typing import Any

from controlplane.snapshot import series_id
from controlplane.sources.base import Sample, SourceError
from controlplane.sources.exposition import MOST_SERIES
from controlplane.sources.fetch import Fetcher, FetchError

TARGET_LABELS = frozenset({"__name__", "job", "instance", "run"})
ANCHOR = "rl_trainer_global_step"
"""The series whose sample time stands for the whole scrape; every trainer exports it."""
LARGEST_ANSWER = 8 * 1024 * 1024
AHEAD_SECONDS = 60.0
"""A sample may be so far in the future by our clock; beyond it one of the two clocks is wrong and ages mean nothing."""
_SAYS_WHY = frozenset({200, 400, 422, 503})
"""Status codes under which Prometheus answers in its own format."""


class PrometheusSource:
    """Newest samples of the run with target label `run`, through the HTTP API of a Prometheus server at `url`.

    `past` gives the unix time to ask for instead of now, to look at a run that is over.
    """

    def __init__(
        self,
        url: str,
        run: str,
        timeout: float = 5.0,
        clock: Callable[[], float] = time.time,
        past: Callable[[], float] | None = None,
    ) -> None:
        if any(character in run for character in '"\\\n'):
            raise ValueError(f"run name {run!r} has a character that a label selector cannot hold")
        self._url, self._run, self._clock, self._past = url.rstrip("/"), run, clock, past
        self._fetcher = Fetcher(timeout, LARGEST_ANSWER)

    def read(self, names: Collection[str]) -> Sample:
        ages = [value for _, value in self._query(f'timestamp({ANCHOR}{{run="{self._run}"}})')]
        if not ages or not all(map(isfinite, ages)):
            raise SourceError(f"{self._url} has no fresh sample of {ANCHOR} for run {self._run!r}")
        if (ahead := max(ages) - self._clock()) > AHEAD_SECONDS:
            raise SourceError(
                f"the newest sample of {self._url} is {ahead:.0f} s in the future; one of the clocks is wrong"
            )
        values: dict[str, float] = {}
        for labels, value in self._query(f'{{run="{self._run}",__name__=~"{"|".join(sorted(names))}"}}'):
            kept = {key: text for key, text in labels.items() if key not in TARGET_LABELS}
            key = series_id(labels.get("__name__", ""), kept)
            if key in values:
                raise SourceError(f"{self._url} has {key[:200]} of more than one target under run {self._run!r}")
            values[key] = value
        return Sample(max(ages), values)

    def ask(self, queries: Mapping[str, str]) -> dict[str, float]:
        """Values of queries of the policy by signal; one without a result is missing. `$run` stands for the run.

        Raises:
            SourceError: a query fails, or gives several series.
        """
        answers: dict[str, float] = {}
        for name, query in queries.items():
            found = self._query(query.replace("$run", self._run))
            if len(found) > 1:
                raise SourceError(f"signal {name}: its query gives {len(found)} series; a signal is one number")
            if found:
                answers[name] = found[0][1]
        return answers

    def _query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of an instant query; a scalar has no labels."""
        form = {"query": expression} | ({"time": f"{self._past():.3f}"} if self._past else {})
        try:
            body = json.loads(self._fetcher.fetch(f"{self._url}/api/v1/query", form, _SAYS_WHY))
        except (FetchError, ValueError, RecursionError) as error:
            raise SourceError(f"Prometheus at {self._url} cannot be read ({error or type(error).__name__})") from None
        try:
            if body["status"] != "success":
                raise SourceError(f"Prometheus at {self._url} refused a query: {str(body.get('error'))[:500]}")
            return _rows(body["data"])
        except (ValueError, LookupError, TypeError, AttributeError):
            raise SourceError(f"{self._url} does not answer as a Prometheus does") from None


def _rows(data: Any) -> list[tuple[dict[str, str], float]]:
    result = data["result"]
    if data["resultType"] == "scalar":
        return [({}, float(result[1]))]
    if len(result) > MOST_SERIES:
        raise ValueError("too many series")
    return [({str(k): str(v) for k, v in row["metric"].items()}, float(row["value"][1])) for row in result]
