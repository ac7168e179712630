"""What the journal costs: `python bench/journal_cost.py --looks 2000 --postgres postgresql://user@host/db`

Looks of a simulated run are written one by one, as a controller does, to SQLite and, where a URL is given, to PostgreSQL:
milliseconds per look until it is on disk, and bytes per look on disk. Then the cost of a restart: the fold over the looks of
`--fold` steps, after which a controller stands where the old one stood.
"""

import argparse
import statistics
import tempfile
import time
import uuid
from pathlib import Path

from sqlalchemy import text

from controlplane.contract.rundir import RunDir
from controlplane.decide import Decision, Evaluator
from controlplane.journal import EntryKind, Journal
from controlplane.loop import Controller
from controlplane.policy import Autonomy, find, parse
from controlplane.sim.trainer import SimTrainer
from controlplane.snapshot import Snapshot
from controlplane.sources import Sample
from controlplane.sources.exposition import parse as parse_metrics

PER_DAY = 24 * 3600 // 15
"""Looks at the default interval of 15 s."""


class Source:
    """The page of a simulated trainer."""

    def __init__(self, trainer: SimTrainer) -> None:
        self.trainer = trainer

    def read(self, names: frozenset[str]) -> Sample:
        return Sample(self.trainer.now, parse_metrics(self.trainer.agent.store.text(), names))


def recorded(root: Path, looks: int, policy: str) -> list[dict[str, object]]:
    """Bodies of the looks of a simulated healthy run under a policy."""
    rundir = RunDir(root)
    trainer = SimTrainer(rundir, 1, (), planned_steps=looks)
    name, words = find(policy)
    journal = Journal(rundir.journal)
    checked = parse(words, name).capped(Autonomy.observe)
    controller = Controller(rundir, checked, words, Source(trainer), journal, clock=lambda: trainer.now)  # type: ignore[arg-type]
    controller.attach()
    going = True
    while going:
        going = trainer.step()
        controller.tick()
    trainer.close()
    bodies = [entry.body for entry in journal.entries(kind=EntryKind.look)]
    journal.close()
    return bodies


def written(journal: Journal, bodies: list[dict[str, object]]) -> list[float]:
    """Milliseconds per look."""
    journal.lead(60.0)
    spent = []
    for body in bodies:
        started = time.perf_counter()
        journal.append([(EntryKind.look, body)], 0.0)
        spent.append((time.perf_counter() - started) * 1000)
    return spent


def size(journal: Journal, where: Path | str) -> int:
    """Bytes on disk, indexes included."""
    with journal._engine.connect() as connection:
        if isinstance(where, Path):
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            return where.stat().st_size
        return int(connection.execute(text("SELECT pg_total_relation_size('entries')")).scalar_one())


def fold(bodies: list[dict[str, object]], policy: str) -> list[tuple[int, float]]:
    """(looks, seconds) of the fold after each quarter of the looks; the evaluator has read nothing but the journal."""
    evaluator, marks, started = Evaluator(parse(find(policy)[1])), [], time.perf_counter()
    for number, body in enumerate(bodies, 1):
        evaluator.recall(Snapshot.model_validate(body["snapshot"]), Decision.model_validate(body["decision"]))
        if number % max(1, len(bodies) // 4) == 0:
            marks.append((number, time.perf_counter() - started))
    return marks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--looks", type=int, default=2000)
    parser.add_argument("--fold", type=int, default=8000)
    parser.add_argument("--policy", default="guard")
    parser.add_argument("--postgres", default="", metavar="URL")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bodies = recorded(Path(folder) / "run", max(options.looks, options.fold), options.policy)
        stores: list[Path | str] = [Path(folder) / "journal.db", *([options.postgres] if options.postgres else [])]
        for where in stores:
            journal = Journal(where, str(uuid.uuid4()))
            before = size(journal, where)
            spent = sorted(written(journal, bodies[: options.looks]))
            each = (size(journal, where) - before) / options.looks
            print(
                f"{'sqlite' if isinstance(where, Path) else 'postgresql':<11} {options.looks} looks: "
                f"{statistics.median(spent):.2f} ms median, {spent[int(0.95 * len(spent))]:.2f} p95, {spent[-1]:.1f} max; "
                f"{each:.0f} bytes per look, {each * PER_DAY / 1e6:.1f} MB per day at one look in 15 s"
            )
            journal.close()
        for looks, seconds in fold(bodies[: options.fold], options.policy):
            print(f"fold        {looks} looks: {seconds:.1f} s, {seconds / looks * 1000:.2f} ms per look")


if __name__ == "__main__":
    main()
