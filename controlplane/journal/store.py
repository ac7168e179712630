"""The journal of a run: append-only, hash-chained, on disk before anything is published.

One writer at a time, which the lease sees to; any number of readers meanwhile. SQLite and PostgreSQL behave alike:
`tests/journal` holds both to one list of rules.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.exc import SQLAlchemyError

from controlplane.journal import lease as leasing
from controlplane.journal.database import JournalError, address, connect, entries, shown
from controlplane.journal.entries import Entry, EntryKind
from controlplane.journal.lease import Lease

_GENESIS = "0" * 64


class Journal:
    """Append and read entries of one run. Appending returns only when the entries are on disk.

    Args:
        where: a SQLite file, or the URL of a PostgreSQL database.
        run: whose entries; needed where a database holds several runs.
        read_only: do not create anything, do not write.

    Raises:
        JournalError: it cannot be opened.
    """

    def __init__(self, where: Path | str, run: str = "", *, read_only: bool = False) -> None:
        url = address(where)
        self.name, self._run = shown(url), run
        if isinstance(where, Path):
            if read_only and not where.exists():
                raise JournalError(f"{where}: there is no journal")
            if not read_only:
                where.parent.mkdir(parents=True, exist_ok=True)
        elif url.get_backend_name() == "postgresql" and not run:
            raise JournalError(f"{self.name}: holds many runs; say which")
        self._lease: Lease | None = None
        try:
            self._engine = connect(url, read_only=read_only)
            self._seq, self._hash = self._last()
        except SQLAlchemyError as error:
            raise JournalError(f"{self.name}: cannot be opened ({_first_line(error)})") from None

    @property
    def leads(self) -> bool:
        """Whether this journal holds the lease, as far as it knows."""
        return self._lease is not None

    def lead(self, seconds: float, above: int = 0, holder: str = "") -> int:
        """Become the one that writes; the epoch, larger than any before and than `above`.

        Every append renews the lease for another `seconds`. From here on an append fails once another one leads.

        Raises:
            LeaseHeldError: another controller leads.
        """
        self._lease = None
        try:
            with self._engine.begin() as connection:
                taken = leasing.take(connection, self._run, holder or leasing.this_process(), seconds, above)
            self._seq, self._hash = self._last()  # what others wrote meanwhile; nobody else can from here on
        except SQLAlchemyError as error:
            raise JournalError(f"{self.name}: cannot be written ({_first_line(error)})") from None
        self._lease = taken
        return taken.epoch

    def resign(self) -> None:
        """Give the lease back, so that another controller need not wait for it to lapse. Best effort: it lapses anyway."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        try:
            with self._engine.begin() as connection:
                leasing.release(connection, lease)
        except SQLAlchemyError:
            pass

    def append(self, rows: Sequence[tuple[EntryKind, dict[str, Any]]], at: float) -> list[Entry]:
        """Write entries in one transaction; they are fsynced when this returns.

        Raises:
            LeaseLostError: another controller leads; nothing was written, and nothing will be.
            JournalError: nothing was written, or the connection broke before the answer (the next `lead` knows).
        """
        seq, previous, written = self._seq, self._hash, []
        for kind, body in rows:
            text = _canonical(body)
            seq, previous = seq + 1, _chain(previous, at, kind, text)
            written.append(Entry(seq=seq, at=at, kind=kind, body=body, hash=previous))
        values = [
            {
                "run": self._run,
                "seq": e.seq,
                "at": e.at,
                "kind": e.kind.value,
                "body": _canonical(e.body),
                "hash": e.hash,
            }
            for e in written
        ]
        try:
            with self._engine.begin() as connection:
                if self._lease is not None:
                    leasing.renew(connection, self._lease)
                connection.execute(insert(entries), values)
        except SQLAlchemyError as error:
            raise JournalError(f"{self.name}: cannot be written ({_first_line(error)})") from None
        self._seq, self._hash = seq, previous
        return written

    def entries(self, after: int = 0, kind: EntryKind | None = None) -> Iterator[Entry]:
        """Entries in order, those after `after` only, of one kind or all."""
        query = select(entries).where(entries.c.run == self._run, entries.c.seq > after).order_by(entries.c.seq)
        if kind is not None:
            query = query.where(entries.c.kind == kind.value)
        try:
            with self._engine.connect() as connection:
                for row in connection.execution_options(yield_per=500).execute(query):
                    yield Entry(seq=row.seq, at=row.at, kind=row.kind, body=json.loads(row.body), hash=row.hash)
        except SQLAlchemyError as error:
            raise JournalError(f"{self.name}: cannot be read ({_first_line(error)})") from None

    def newest(self, kind: EntryKind) -> Entry | None:
        """The last entry of a kind; None when there is none."""
        mine = (entries.c.run == self._run) & (entries.c.kind == kind.value)
        try:
            with self._engine.connect() as connection:
                row = connection.execute(select(entries).where(mine).order_by(entries.c.seq.desc()).limit(1)).first()
        except SQLAlchemyError as error:
            raise JournalError(f"{self.name}: cannot be read ({_first_line(error)})") from None
        return (
            None
            if row is None
            else Entry(seq=row.seq, at=row.at, kind=row.kind, body=json.loads(row.body), hash=row.hash)
        )

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
                raise JournalError(f"{self.name}: entry {entry.seq} does not fit the chain; the journal was changed")
        return count

    def close(self) -> None:
        self._engine.dispose()

    def _last(self) -> tuple[int, str]:
        query = select(entries.c.seq, entries.c.hash).where(entries.c.run == self._run)
        with self._engine.connect() as connection:
            row = connection.execute(query.order_by(entries.c.seq.desc()).limit(1)).first()
        return (row.seq, row.hash) if row else (0, _GENESIS)


def _canonical(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def _chain(previous: str, at: float, kind: EntryKind, text: str) -> str:
    return hashlib.sha256(f"{previous}\n{at!r}\n{kind.value}\n{text}".encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
