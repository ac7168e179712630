"""The journal keeps everything, in order, through crashes, and shows when someone changed it."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.journal import EntryKind, Journal, JournalError


def rows(*numbers: int) -> list[tuple[EntryKind, dict[str, object]]]:
    return [(EntryKind.look, {"n": n}) for n in numbers]


def test_entries_come_back_in_order_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.append(rows(1, 2), at=1.0)
    journal.close()
    journal = Journal(path)
    journal.append(rows(3), at=2.0)
    assert [(e.seq, e.body["n"]) for e in journal.entries()] == [(1, 1), (2, 2), (3, 3)]
    assert journal.verify() == 3


@pytest.mark.parametrize(
    "tamper",
    [
        "update entries set body = '{\"n\":9}' where seq = 2",
        "delete from entries where seq = 2",
        "update entries set at = 5 where seq = 3",
    ],
)
def test_a_changed_journal_is_found_out(tmp_path: Path, tamper: str) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.append(rows(1, 2, 3), at=1.0)
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        connection.execute(tamper)
    with pytest.raises(JournalError, match="does not fit the chain"):
        journal.verify()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.text(), s),
    )
)
def test_any_body_survives(tmp_path_factory: pytest.TempPathFactory, body: object) -> None:
    journal = Journal(tmp_path_factory.mktemp("j") / "journal.db")
    journal.append([(EntryKind.look, {"body": body})], at=0.0)
    assert next(journal.entries()).body == {"body": body}
    assert journal.verify() == 1
    journal.close()


def test_a_reader_sees_what_is_committed_while_the_writer_goes_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    reader = Journal(tmp_path / "journal.db", read_only=True) if journal.append(rows(1), at=1.0) else None
    assert reader is not None
    journal.append(rows(2), at=1.0)
    assert [e.body["n"] for e in reader.entries(after=1)] == [2]
    with pytest.raises(JournalError):
        reader.append(rows(3), at=1.0)


def test_killed_at_any_moment_the_journal_holds_a_whole_prefix(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    code = (
        "import sys; from pathlib import Path; from controlplane.journal import *\n"
        "j = Journal(Path(sys.argv[1])); n = 0\n"
        "while True:\n    j.append([(EntryKind.look, {'n': n}), (EntryKind.look, {'n': n + 1})], at=0.0); n += 2\n"
        "    print(n, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    told = 0
    deadline = time.monotonic() + 20
    while told < 20 and time.monotonic() < deadline:
        told = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    told = max([told, *map(int, process.stdout.read().split())])
    process.wait()
    journal = Journal(path)
    numbers = [e.body["n"] for e in journal.entries()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= told  # what was said to be written is there
    assert len(numbers) % 2 == 0  # and no transaction is half there
    assert journal.verify() == len(numbers)


def test_a_journal_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="there is no journal"):
        Journal(tmp_path / "none.db", read_only=True)
    (tmp_path / "text.db").write_text("this is not a database " * 100)
    with pytest.raises(JournalError, match="cannot be opened"):
        Journal(tmp_path / "text.db")


def test_a_commit_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    with journal._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL: an fsync at every commit
