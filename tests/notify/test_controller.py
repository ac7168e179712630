"""The whole controller with somebody to tell: the journal first, and nobody who can hold it up."""

import threading
from collections import Counter
from pathlib import Path

from controlplane.decide import Decision, Kind
from controlplane.journal import EntryKind, Journal
from controlplane.notify import Notice, Notifier, Outbox
from controlplane.sim.faults import nan
from controlplane.snapshot import Snapshot
from tests.loop.simulated import Bench

FAULT = (nan(30, steps=8),)
STEPS = 45


class Stuck:
    """A Grafana that took the request and never answers."""

    name = "grafana"

    def __init__(self) -> None:
        self.let_go, self.got = threading.Event(), list[Notice]()

    def deliver(self, notice: Notice) -> None:
        self.got.append(notice)
        self.let_go.wait(120)


class Journalist:
    """Looks at the journal at the moment in which it is told."""

    def __init__(self, journal: Journal) -> None:
        self.journal, self.early, self.seen = journal, list[Decision](), 0

    def recall(self, snapshot: Snapshot, decision: Decision) -> None: ...

    def look(self, snapshot: Snapshot, decision: Decision) -> None:
        self.seen += 1
        entry = self.journal.newest(EntryKind.look)
        if entry is None or entry.body["decision"] != decision.model_dump(mode="json"):
            self.early.append(decision)

    def close(self) -> None: ...


def steps(bench: Bench) -> list[Decision]:
    for _ in range(STEPS):
        bench.step()
    bench.close()
    return bench.decisions


def test_a_grafana_that_never_answers_changes_no_decision_and_is_told_after_the_journal(tmp_path: Path) -> None:
    alone = steps(Bench(tmp_path / "alone", 2, FAULT))
    assert [d.rule for d in alone if d.kind is Kind.act] == ["numbers-gone"]
    stuck, counts = Stuck(), Counter[tuple[str, str]]()
    bench = Bench(tmp_path / "told", 2, FAULT)
    journalist = Journalist(bench.journal)
    outbox = Outbox(stuck, lambda channel, result: counts.update([(channel, result)]), size=1)
    bench.controller.watched_by(Notifier("sim", [outbox]))
    bench.controller.watched_by(journalist)
    told = steps(bench)
    # Ids hold the run's own uid; all else is the same, decision by decision.
    plain = [[d.model_dump(exclude={"decision_id"}) for d in decisions] for decisions in (alone, told)]
    assert repr(plain[0]) == repr(plain[1])
    assert (journalist.seen, journalist.early) == (STEPS, [])
    assert stuck.got[0].rule == "numbers-gone"
    # One inside the channel, one in the queue of one; every further one was let go.
    assert set(counts) <= {("grafana", "dropped")}
    stuck.let_go.set()


def test_what_became_of_a_notice_is_a_metric(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1)
    bench.controller.told("grafana", "dropped")  # without an exporter there is nobody to count
    bench.controller.export()
    bench.controller.told("webhook", "dropped")
    telemetry = bench.controller._telemetry
    assert telemetry is not None
    text = telemetry._store.text()
    assert 'rl_controller_notices_total{channel="webhook",result="dropped"} 1.0' in text
    assert 'rl_controller_notices_total{channel="grafana",result="dropped"} 0.0' in text
    telemetry.close()
    bench.close()
