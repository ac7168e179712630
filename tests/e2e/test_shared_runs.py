"""Several controllers share several runs over one PostgreSQL database; one is killed, the others go on with its runs."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.contract.rundir import RunDir
from controlplane.journal import EntryKind, JournalError, journal_of
from controlplane.replay import replay
from tests.e2e.test_processes import ROOT
from tests.postgres import server


@pytest.fixture
def postgres() -> Iterator[str]:
    place = Path(tempfile.mkdtemp(prefix="pg"))
    place.chmod(0o755)
    try:
        with server(place / "s") as url:
            yield url
    finally:
        shutil.rmtree(place, ignore_errors=True)


def process(log: Path, *command: str) -> "subprocess.Popen[bytes]":
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, stdout=file, stderr=file)


def starts(run: Path) -> list[int]:
    """Epochs under which the run was led."""
    try:
        journal = journal_of(RunDir(run), read_only=True)
    except JournalError:
        return []
    found = [int(entry.body["epoch"]) for entry in journal.entries(kind=EntryKind.start)]
    journal.close()
    return found


def looks(run: Path) -> int:
    journal = journal_of(RunDir(run), read_only=True)
    number = sum(1 for _ in journal.entries(kind=EntryKind.look))
    journal.close()
    return number


def wait_for(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


def test_runs_of_a_killed_controller_are_taken_over_by_the_one_that_stands_by(tmp_path: Path, postgres: str) -> None:
    runs, log = [tmp_path / "one", tmp_path / "two"], tmp_path / "log"
    control = [
        "-m",
        "controlplane",
        "control",
        *map(str, runs),
        "--interval",
        "0.2",
        "--record",
        "0",
        "--journal",
        postgres,
    ]
    running = []
    try:
        for number, run in enumerate(runs):
            run.mkdir()
            trainer = ["-m", "tests.supervise.foreign", str(run), "--steps", "100000", "--uid", f"shared-{number}"]
            running.append(process(log, *trainer))
        first = process(log, *control)
        running.append(first)
        wait_for(lambda: all(starts(run) == [1] for run in runs), log)
        second = process(log, *control)
        running.append(second)
        wait_for(lambda: log.read_text().count("read-only") == 2, log)
        before = [looks(run) for run in runs]
        wait_for(lambda: all(looks(run) > n + 2 for run, n in zip(runs, before, strict=True)), log)
        assert [starts(run) for run in runs] == [[1], [1]]
        first.kill()
        first.wait()
        wait_for(lambda: all(starts(run) == [1, 2] for run in runs), log)
        after = [looks(run) for run in runs]
        wait_for(lambda: all(looks(run) > n + 2 for run, n in zip(runs, after, strict=True)), log)
        second.terminate()
        assert second.wait(timeout=60) == 0, log.read_text()[-3000:]
        for run in runs:
            journal = journal_of(RunDir(run), read_only=True)
            assert replay(journal).differences == ()
            journal.close()
    finally:
        for each in running:
            each.kill()
            each.wait()
