"""Metrics as data -> a Prometheus endpoint.

    trainer --set, inc, observe_many--> one locked snapshot --collect--> thread server on /metrics

A `Store` knows the families of a tuple of `contract.metrics.Metric` and nothing else: an unknown metric, label or label
value raises at once, where it was written. Invariants:

- Every combination of listed label values of a counter, histogram or state exists from the start, at 0: `increase()`
  cannot see a counter that is born at 1. Open labels appear when they are first set.
- A gauge without a reading yet is absent; NaN says "read, and there was no value". A made-up NaN would poison every
  `avg` and hide from every `absent`.
- One scrape never mixes two steps: it copies the snapshot under the lock that `update` holds.
- No `_created` samples, and nothing from the default registry or a multiprocess directory, because the collector is our own.
"""

import itertools
import math
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from controlplane.contract.metrics import Metric

Labels = tuple[str, ...]


class _Histogram:
    """Counts per bucket (not cumulative, last one above every bound) and the sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float], counts: list[int] | None = None, total: float = 0.0) -> None:
        self.bounds = tuple(bounds)
        self.counts = counts or [0] * (len(bounds) + 1)
        self.total = total

    def observe(self, values: Iterable[float]) -> None:
        for value in values:
            if math.isfinite(value):
                self.counts[bisect_left(self.bounds, value)] += 1
                self.total += value

    def copy(self) -> "_Histogram":
        return _Histogram(self.bounds, self.counts.copy(), self.total)

    def buckets(self) -> list[tuple[str, float]]:
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(names, map(float, itertools.accumulate(self.counts)), strict=True))


class Store(Collector):
    """The values of a set of metric families, and their exposition. Safe to use from several threads."""

    def __init__(self, metrics: tuple[Metric, ...]) -> None:
        self._metrics = {metric.name: metric for metric in metrics}
        if len(self._metrics) != len(metrics):
            raise ValueError("a metric is listed twice")
        self._lock = threading.RLock()
        self._values: dict[str, dict[Labels, float]] = {}
        self._histograms: dict[str, dict[Labels, _Histogram]] = {}
        self._infos: dict[str, dict[str, str]] = {}
        self._server: Server | None = None
        for metric in metrics:
            self._seed(metric)

    def _seed(self, metric: Metric) -> None:
        if metric.kind == "info":
            return
        combinations = [] if () in metric.labels.values() else list(itertools.product(*metric.labels.values()))
        if metric.kind == "histogram":
            self._histograms[metric.name] = {labels: _Histogram(metric.buckets) for labels in combinations}
        elif metric.kind == "gauge":
            self._values[metric.name] = {}
        else:
            self._values[metric.name] = dict.fromkeys(combinations, 0.0)

    def update(self) -> AbstractContextManager[bool]:
        """`with store.update():` - a scrape sees all of the changes made inside, or none."""
        return self._lock

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge."""
        self._values[self._family(name, "gauge").name][self._labels(name, labels)] = float(value)

    def forget(self, name: str, /) -> None:
        """Make every series of a gauge absent until it is set again."""
        with self._lock:
            self._values[self._family(name, "gauge").name].clear()

    def inc(self, name: str, amount: float = 1.0, /, **labels: str) -> None:
        """Add to a counter; `amount` 0 makes an open label appear at 0."""
        if not 0 <= amount < math.inf:
            raise ValueError(f"{name}: a counter grows by a finite amount, not by {amount}")
        family, key = self._values[self._family(name, "counter").name], self._labels(name, labels)
        with self._lock:
            family[key] = family.get(key, 0.0) + amount

    def observe_many(self, name: str, values: Iterable[float], /, **labels: str) -> None:
        """Add readings to a histogram; NaN and infinite ones are left out, since one would spoil the sum for good."""
        metric, key = self._family(name, "histogram"), self._labels(name, labels)
        with self._lock:
            self._histograms[name].setdefault(key, _Histogram(metric.buckets)).observe(values)

    def info(self, name: str, /, **facts: str) -> None:
        """Set the labels of an info metric."""
        self._infos[self._family(name, "info").name] = facts

    def state(self, name: str, value: str, /) -> None:
        """Set a state metric: 1 for `value`, 0 for every other state."""
        ((label, states),) = self._family(name, "state").labels.items()
        key = self._labels(name, {label: value})
        with self._lock:
            self._values[name] = {(state,): float((state,) == key) for state in states}

    def _family(self, name: str, kind: str) -> Metric:
        metric = self._metrics.get(name)
        if metric is None:
            raise KeyError(f"unknown metric {name!r}")
        if metric.kind != kind:
            raise TypeError(f"{name} is a {metric.kind}, not a {kind}")
        return metric

    def _labels(self, name: str, given: dict[str, str]) -> Labels:
        known = self._metrics[name].labels
        if given.keys() != known.keys():
            raise KeyError(f"{name} has the labels {sorted(known)}, not {sorted(given)}")
        for label, allowed in known.items():
            if allowed and given[label] not in allowed:
                raise KeyError(f"{name}: {label} is one of {', '.join(allowed)}, not {given[label]!r}")
        return tuple(given[label] for label in known)

    def collect(self) -> Iterator[Family]:
        """One consistent copy of everything, as Prometheus families."""
        with self._lock:
            values = {name: dict(series) for name, series in self._values.items()}
            histograms = {
                name: {labels: histogram.copy() for labels, histogram in series.items()}
                for name, series in self._histograms.items()
            }
            infos = dict(self._infos)
        for metric in self._metrics.values():
            if metric.kind == "histogram":
                yield _histogram(metric, histograms[metric.name])
            elif metric.kind == "info":
                yield _info(metric, infos.get(metric.name))
            else:
                yield _plain(metric, values[metric.name])

    def registry(self) -> CollectorRegistry:
        """A registry of its own that holds this store and nothing else."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return registry

    def describe(self) -> Iterable[Family]:
        """Nothing: registering must not take a snapshot."""
        return ()

    def text(self) -> str:
        """The exposition as Prometheus would read it, without a server."""
        return generate_latest(self.registry()).decode()

    def serve(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Serve `/metrics` from a daemon thread; port 0 takes a free one. Returns the port."""
        if self._server is not None:
            raise RuntimeError(f"this store is already served on port {self._server.port}")
        self._server = Server(self.registry(), host, port)
        return self._server.port

    def close(self) -> None:
        """Stop serving; the values stay."""
        if self._server is not None:
            self._server.close()
            self._server = None


class Server:
    """prometheus_client's thread server, with an end."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self._server, self._thread = start_http_server(port, host, registry)
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def _plain(metric: Metric, series: dict[Labels, float]) -> Family:
    family: CounterMetricFamily | GaugeMetricFamily
    if metric.kind == "counter":
        family = CounterMetricFamily(metric.name, metric.help, labels=tuple(metric.labels))
    else:
        family = GaugeMetricFamily(metric.name, metric.help, labels=tuple(metric.labels))
    for labels, value in series.items():
        family.add_metric(labels, value)
    return family


def _histogram(metric: Metric, series: dict[Labels, _Histogram]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=tuple(metric.labels))
    for labels, histogram in series.items():
        # With negative buckets the sum can fall, which a counter must not: the client then leaves out sum and count.
        family.add_metric(labels, histogram.buckets(), histogram.total)
    return family


def _info(metric: Metric, facts: dict[str, str] | None) -> Family:
    family = InfoMetricFamily(metric.name.removesuffix("_info"), metric.help)
    if facts is not None:
        family.add_metric((), facts)
    return family
