"""Scrapes a run's pages into its store, in a thread of its own. Watching must never disturb deciding: whatever goes wrong
here is logged once and tried again at the next turn."""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable

from controlplane.contract.rundir import RunDir
from controlplane.decide import Decision
from controlplane.metricstore.store import MetricStore, StoreError
from controlplane.snapshot import Snapshot
from controlplane.sources import ScrapeSource, SourceError

log = logging.getLogger(__name__)


class Recorder:
    """Records trainer and controller of one run every `interval` seconds, into `rundir.metrics`.

    As in Prometheus, `up{job="..."}` is 1 or 0 for a target that is there, and missing once it has been taken down.
    An `Observer` of the controller for its end alone: the last reading is taken while the controller's own page is still there.
    `start` and `close` belong to one thread.
    """

    def __init__(self, rundir: RunDir, interval: float = 15.0, clock: Callable[[], float] = time.time) -> None:
        self._rundir, self._interval, self._clock = rundir, interval, clock
        self._targets = {"scalerl-trainer": rundir.target, "scalerl-controller": rundir.controller_target}
        self._sources = {job: ScrapeSource(path) for job, path in self._targets.items()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metric recorder", daemon=True)
        self._told = ""

    def start(self) -> None:
        """Begin to record."""
        self._thread.start()

    def recall(self, snapshot: Snapshot, decision: Decision) -> None:
        """Nothing: what was, was recorded then."""

    def look(self, snapshot: Snapshot, decision: Decision) -> None:
        """Nothing: the thread has its own interval."""

    def close(self) -> None:
        """Record once more and end; again: nothing."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def values(self) -> dict[str, float]:
        """Everything that the pages say now."""
        found: dict[str, float] = {}
        for job, source in self._sources.items():
            try:
                found |= source.read_all().values
                found[f'up{{job="{job}"}}'] = 1.0
            except SourceError:
                if not self._targets[job].exists():
                    continue
                found[f'up{{job="{job}"}}'] = 0.0
        return found

    def _run(self) -> None:
        store: MetricStore | None = None
        while True:
            last = self._stop.is_set()
            started = time.monotonic()
            try:
                store = store or MetricStore(self._rundir.metrics)
                store.append(self._clock(), self.values())
                self._told = ""
            except (StoreError, sqlite3.Error, OSError) as error:
                if str(error) != self._told:
                    log.warning("metrics are not recorded: %s", error)
                self._told = str(error)
            if last:
                break
            self._stop.wait(max(0.0, self._interval - (time.monotonic() - started)))
        if store is not None:
            store.close()
