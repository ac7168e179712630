"""The journal keeps everything, in order, through crashes, and shows when someone changed it. Both stores, one list of rules."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from controlplane.contract.rundir import RunDir, RunInfo
from controlplane.journal import EntryKind, Journal, JournalError, journal_of
from tests.journal.conftest import Place

ROOT = Path(__file__).parents[2]


def rows(*numbers: int) -> list[tuple[EntryKind, dict[str, object]]]:
    return [(EntryKind.look, {"n": n}) for n in numbers]


def test_entries_come_back_in_order_after_reopening(place: Place) -> None:
    journal = place.open()
    journal.append(rows(1, 2), at=1.0)
    journal.close()
    journal = place.open()
    journal.append([(EntryKind.start, {"n": 3})], at=1_800_000_000.123456)
    assert [(e.seq, e.body["n"]) for e in journal.entries()] == [(1, 1), (2, 2), (3, 3)]
    assert [e.seq for e in journal.entries(after=1)] == [2, 3]
    assert [e.seq for e in journal.entries(kind=EntryKind.look)] == [1, 2]
    newest = journal.newest(EntryKind.look)
    assert newest is not None
    assert (newest.seq, newest.body) == (2, {"n": 2})
    assert journal.newest(EntryKind.stop) is None
    assert [e.at for e in journal.entries()] == [1.0, 1.0, 1_800_000_000.123456]
    assert journal.verify() == 3


CHANGES = [
    "UPDATE entries SET body = '{}' WHERE seq = 2 AND run = :run",
    "DELETE FROM entries WHERE seq = 2 AND run = :run",
    "UPDATE entries SET at = 5 WHERE seq = 3 AND run = :run",
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_database_refuses_to_change_an_entry(place: Place, change: str) -> None:
    journal = place.open()
    journal.append(rows(1, 2, 3), at=1.0)
    with pytest.raises(DBAPIError, match="append-only"), journal._engine.begin() as connection:
        connection.execute(text(change), {"run": place.run})
    assert journal.verify() == 3


@pytest.mark.parametrize("change", CHANGES)
def test_who_changes_it_all_the_same_is_found_out(place: Place, change: str) -> None:
    journal = place.open()
    journal.append(rows(1, 2, 3), at=1.0)
    postgres = not isinstance(place.where, Path)
    off = "ALTER TABLE entries DISABLE TRIGGER ALL" if postgres else f"DROP TRIGGER entries_no_{change[:6]}"
    on = ["ALTER TABLE entries ENABLE TRIGGER ALL"] if postgres else []
    with journal._engine.begin() as connection:
        for statement in (off, change, *on):
            connection.execute(text(statement), {"run": place.run} if ":run" in statement else {})
    with pytest.raises(JournalError, match="does not fit the chain"):
        journal.verify()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.text(), s),
    )
)
def test_any_body_survives(place: Place, body: object) -> None:
    (written,) = place.shared.append([(EntryKind.look, {"body": body})], at=0.0)
    assert next(place.shared.entries(after=written.seq - 1)).body == {"body": body}
    assert place.shared.verify() == written.seq


def test_a_reader_sees_what_is_committed_while_the_writer_goes_on(place: Place) -> None:
    journal = place.open()
    journal.append(rows(1), at=1.0)
    reader = place.open(read_only=True)
    journal.append(rows(2), at=1.0)
    assert [e.body["n"] for e in reader.entries(after=1)] == [2]
    with pytest.raises(JournalError):
        reader.append(rows(3), at=1.0)
    assert journal.verify() == 2


def test_two_writers_without_a_lease_cannot_fork_the_chain(place: Place) -> None:
    one, other = place.open(), place.open()
    one.append(rows(1), at=1.0)
    with pytest.raises(JournalError, match="cannot be written"):
        other.append(rows(2), at=1.0)
    assert one.verify() == 1


WRITER = """
import sys
from pathlib import Path
from controlplane.journal import EntryKind, Journal
where, run = sys.argv[1:]
journal, n = Journal(where if "://" in where else Path(where), run), 0
journal.lead(60.0)
while True:
    journal.append([(EntryKind.look, {"n": n}), (EntryKind.look, {"n": n + 1})], at=0.0)
    n += 2
    print(n, flush=True)
"""


def test_killed_at_any_moment_the_journal_holds_a_whole_prefix(place: Place) -> None:
    command = [sys.executable, "-c", WRITER, str(place.where), place.run]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    told = 0
    deadline = time.monotonic() + 30
    while told < 20 and time.monotonic() < deadline:
        told = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    told = max([told, *map(int, process.stdout.read().split())])
    process.wait()
    journal = place.open()
    journal.lead(60.0)  # at once: its holder was a process of this machine and is dead
    numbers = [e.body["n"] for e in journal.entries()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= told  # what was said to be written is there
    assert len(numbers) % 2 == 0  # and no transaction is half there
    assert journal.verify() == len(numbers)


def test_runs_in_one_database_do_not_see_each_other(postgres: str) -> None:
    one, other = Journal(postgres, "one"), Journal(postgres, "other")
    one.append(rows(1), at=1.0)
    other.append(rows(7, 8), at=1.0)
    assert [e.body["n"] for e in one.entries()] == [1]
    assert (one.verify(), other.verify()) == (1, 2)
    assert one.lead(60.0) == other.lead(60.0) == 1
    one.close()
    other.close()


def test_a_journal_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="there is no journal"):
        Journal(tmp_path / "none.db", read_only=True)
    (tmp_path / "text.db").write_text("this is not a database " * 100)
    with pytest.raises(JournalError, match="cannot be opened"):
        Journal(tmp_path / "text.db")
    with pytest.raises(JournalError, match="kept in sqlite or postgresql"):
        Journal("mysql://host/db", "run")
    with pytest.raises(JournalError, match="say which"):
        Journal("postgresql://host/db")
    with pytest.raises(JournalError, match="cannot be opened") as caught:
        Journal(f"postgresql://me:secret@/db?host={tmp_path}", "run")
    assert "secret" not in str(caught.value)


def test_a_commit_is_on_disk_when_append_returns(place: Place) -> None:
    journal = place.open()
    with journal._engine.connect() as connection:
        if isinstance(place.where, Path):
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL: an fsync at every commit
        else:
            connection.exec_driver_sql("ALTER ROLE scalerl SET synchronous_commit = off")
            connection.commit()
    with place.open()._engine.connect() as connection:
        if not isinstance(place.where, Path):
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
            connection.exec_driver_sql("ALTER ROLE scalerl RESET synchronous_commit")
            connection.commit()


def test_a_run_keeps_the_journal_that_it_was_given(tmp_path: Path, postgres: str) -> None:
    rundir = RunDir(tmp_path)
    info = {"run_uid": str(tmp_path), "name": "r", "created_at": 0.0, "planned_steps": 1, "config_hash": ""}
    rundir.info.write_text(RunInfo(**info, framework="", algorithm="", model="").model_dump_json())  # type: ignore[arg-type]
    with_password = postgres.replace("scalerl@", "scalerl:hidden@")
    journal = journal_of(rundir, with_password)
    journal.append(rows(1), at=1.0)
    assert "hidden" not in rundir.journal_url.read_text()
    assert [e.body["n"] for e in journal_of(rundir, read_only=True).entries()] == [1]
    with pytest.raises(JournalError, match="its journal is in"):
        journal_of(rundir, postgres.replace("/postgres", "/another"))
    journal.close()


def test_a_run_has_one_journal(tmp_path: Path, postgres: str) -> None:
    journal_of(RunDir(tmp_path)).close()
    with pytest.raises(JournalError, match="has one journal"):
        journal_of(RunDir(tmp_path), postgres)
