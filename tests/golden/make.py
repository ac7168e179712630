"""Makes the recorded run of this folder from a run directory: `python -m tests.golden.make RUN`.

Run `scalerl demo --out runs` first (five minutes on two free cores). What is kept: every page of trainer and controller at
`EVERY` seconds as OpenMetrics, and the observed documents that the controller saw, one per change.
"""

import json
import lzma
import sys
from pathlib import Path

from controlplane.contract.rundir import RunDir
from controlplane.journal import EntryKind, Journal
from controlplane.metricstore import MetricStore, openmetrics
from tests.golden import METRICS, OBSERVED

EVERY = 4.0


def main(run: Path) -> None:
    """Write both files."""
    rundir = RunDir(run)
    store = MetricStore(rundir.metrics, read_only=True)
    kept = _thinned(store)
    with lzma.open(METRICS, "wt", preset=9) as file:
        for line in openmetrics(store, "golden"):
            if line.startswith("#") or float(line.rsplit(" ", 1)[1]) in kept:
                file.write(line)
    journal = Journal(rundir.journal, read_only=True)
    with lzma.open(OBSERVED, "wt", preset=9) as file:
        before = ""
        for entry in journal.entries():
            snapshot = entry.body["snapshot"] if entry.kind is EntryKind.look else {}
            if observed := snapshot.get("observed"):
                text = _line(snapshot["at"], observed)
                if text.partition(" ")[2] != before:
                    file.write(text + "\n")
                before = text.partition(" ")[2]
    print(
        f"{METRICS}: {METRICS.stat().st_size} bytes; {OBSERVED}: {OBSERVED.stat().st_size} bytes; {len(kept)} scrapes"
    )


def _thinned(store: MetricStore) -> frozenset[float]:
    """Times of the scrapes that are kept, in milliseconds' precision."""
    kept: list[float] = []
    for series in store.series("up"):
        for at in store.read(series)[0]:
            if not any(abs(at - other) < EVERY - 0.5 for other in kept[-5:]):
                kept.append(at)
    return frozenset(round(at, 3) for at in kept)


def _line(at: float, observed: dict[str, object]) -> str:
    return f"{at:.3f} " + json.dumps({**observed, "written_at": 0.0}, separators=(",", ":"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
