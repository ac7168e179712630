"""The journal in SQLite: append-only, hash-chained, on disk before anything is published.

SQLAlchemy keeps the door open to PostgreSQL by URL. One writer; any number of readers at the same time.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Float, Integer, MetaData, String, Table, create_engine, event, insert, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from controlplane.journal.entries import Entry, EntryKind

_metadata = MetaData()
_entries = Table(
    "entries",
    _metadata,
    Column("seq", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("kind", String(16), nullable=False, index=True),
    Column("body", String, nullable=False),
    Column("hash", String(64), nullable=False),
)
_GENESIS = "0" * 64


class JournalError(Exception):
    """The journal cannot be used; nothing may be published then."""


class Journal:
    """Append and read entries. Appending returns only when the entries are on disk."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open `path`, creating it if need be (not with `read_only`).

        Raises:
            JournalError: it cannot be opened, or its chain is broken.
        """
        self.path = path
        if read_only and not path.exists():
            raise JournalError(f"{path}: there is no journal")
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
        mode = "?mode=ro&uri=true" if read_only else ""
        self._engine = create_engine(f"sqlite:///file:{path}{mode}" if read_only else f"sqlite:///{path}")
        _make_durable(self._engine, read_only)
        try:
            if not read_only:
                _metadata.create_all(self._engine)
            self._seq, self._hash = self._last()
        except SQLAlchemyError as error:
            raise JournalError(f"{path}: cannot be opened ({_first_line(error)})") from None

    def append(self, rows: Sequence[tuple[EntryKind, dict[str, Any]]], at: float) -> list[Entry]:
        """Write entries in one transaction; they are fsynced when this returns.

        Raises:
            JournalError: nothing was written.
        """
        seq, previous, written = self._seq, self._hash, []
        for kind, body in rows:
            text = _canonical(body)
            seq, previous = seq + 1, _chain(previous, at, kind, text)
            written.append(Entry(seq=seq, at=at, kind=kind, body=body, hash=previous))
        values = [{**e.model_dump(include={"seq", "at", "kind", "hash"}), "body": _canonical(e.body)} for e in written]
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(_entries), values)
        except SQLAlchemyError as error:
            raise JournalError(f"{self.path}: cannot be written ({_first_line(error)})") from None
        self._seq, self._hash = seq, previous
        return written

    def entries(self, after: int = 0, kind: EntryKind | None = None) -> Iterator[Entry]:
        """Entries in order, those after `after` only, of one kind or all."""
        query = select(_entries).where(_entries.c.seq > after).order_by(_entries.c.seq)
        if kind is not None:
            query = query.where(_entries.c.kind == kind.value)
        try:
            with self._engine.connect() as connection:
                for row in connection.execution_options(yield_per=500).execute(query):
                    yield Entry(seq=row.seq, at=row.at, kind=row.kind, body=json.loads(row.body), hash=row.hash)
        except SQLAlchemyError as error:
            raise JournalError(f"{self.path}: cannot be read ({_first_line(error)})") from None

    def verify(self) -> int:
        """Check the whole chain; the number of entries.

        Raises:
            JournalError: an entry was changed, removed or put in between.
        """
        previous, count = _GENESIS, 0
        for entry in self.entries():
            count += 1
            previous = _chain(previous, entry.at, entry.kind, _canonical(entry.body))
            if entry.hash != previous or entry.seq != count:
                raise JournalError(f"{self.path}: entry {entry.seq} does not fit the chain; the journal was changed")
        return count

    def close(self) -> None:
        self._engine.dispose()

    def _last(self) -> tuple[int, str]:
        query = select(_entries.c.seq, _entries.c.hash).order_by(_entries.c.seq.desc()).limit(1)
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        return (row.seq, row.hash) if row else (0, _GENESIS)


def _make_durable(engine: Engine, read_only: bool) -> None:
    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA busy_timeout=5000")
        if not read_only:
            # WAL lets the terminal and the report read while the controller writes; FULL fsyncs at every commit.
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")


def _canonical(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def _chain(previous: str, at: float, kind: EntryKind, text: str) -> str:
    return hashlib.sha256(f"{previous}\n{at!r}\n{kind.value}\n{text}".encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]
