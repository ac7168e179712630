"""The store: one row per scrape while it is new, one compressed chunk per series and hour afterwards.

    append --> recent (a row per scrape) --240 rows--> block of chunks --retention, size limit--> gone

Any number of readers, in SQLite's WAL mode; controllers that stand by for the same run may write beside each other. A crash loses at most the newest scrapes, never a block. What may
grow is bounded: age, size of the file, and number of series; what is oldest goes first.
"""

import logging
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from controlplane.metricstore.codec import ABSENT, Bits, Floats, pack, unpack

log = logging.getLogger(__name__)

BLOCK = 240
"""Scrapes in a block: an hour at 15 s."""
MAX_SERIES = 5000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS series(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS recent(at REAL PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS block(start REAL PRIMARY KEY, stop REAL NOT NULL, times BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS chunk(series INTEGER, start REAL, data BLOB NOT NULL, PRIMARY KEY(series, start)) WITHOUT ROWID;
"""


class StoreError(Exception):
    """The store cannot be used; one sentence."""


class MetricStore:
    """Readings of many series over time. A series is named by its series id (`controlplane.snapshot.series_id`).

    Args:
        path: the SQLite file; made with its folder where it is missing, unless `read_only`.
        keep_seconds: readings older than this go, by whole blocks.
        max_bytes: largest size of the file (its write-ahead log, at most 4 MB, comes on top); the oldest blocks go.

    Raises:
        StoreError: the file is missing (`read_only`), or not a store.
    """

    def __init__(
        self, path: Path, keep_seconds: float = 30 * 86400, max_bytes: int = 500_000_000, read_only: bool = False
    ) -> None:
        self.path, self._keep, self._max_bytes = path, keep_seconds, max_bytes
        if read_only and not path.exists():
            raise StoreError(f"{path} does not exist: nothing has recorded this run's metrics")
        try:
            if read_only:
                self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._db = sqlite3.connect(path, timeout=5)
                self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.execute("PRAGMA journal_size_limit=4000000")
                self._db.executescript(_SCHEMA)
            self._ids: dict[str, int] = dict(self._db.execute("SELECT name, id FROM series"))
        except sqlite3.Error as error:
            raise StoreError(f"{path} is not a metric store ({error})") from None
        self._rows = self._count("recent") if not read_only else 0
        self._full = False

    def append(self, at: float, values: Mapping[str, float]) -> None:
        """The page as scraped at unix time `at`. A second one for the same time replaces the first."""
        try:
            with self._db:
                self._write(at, values)
        except sqlite3.Error:
            self._ids = {}  # what was registered in this transaction is not in the file: read it anew
            raise
        self._rows += 1
        if self._rows >= BLOCK + 1:
            self.compact()
            self._prune(at)

    def series(self, name: str = "") -> list[str]:
        """Series ids in order of appearance; those of one metric name when it is given."""
        rows = [row[0] for row in self._db.execute("SELECT name FROM series ORDER BY id")]
        return [row for row in rows if not name or row.partition("{")[0] == name]

    def read(self, series: str, start: float = -np.inf, stop: float = np.inf) -> tuple[Floats, Floats]:
        """(unix times, values) of one series with start <= time <= stop, in order of time; empty where there are none."""
        found = self._db.execute("SELECT id FROM series WHERE name = ?", (series,)).fetchone()
        if found is None:
            return np.empty(0), np.empty(0)
        with self._db:
            self._db.execute("BEGIN")  # one view of both tables: what is just being compacted is seen once
            pieces = [*self._chunks(found[0], start, stop), *self._new(found[0], start, stop)]
        times = np.concatenate([times for times, _ in pieces]) if pieces else np.empty(0)
        bits = np.concatenate([bits for _, bits in pieces]) if pieces else np.empty(0, np.uint64)
        kept = (times >= start) & (times <= stop) & (bits != ABSENT)
        times, bits = times[kept], bits[kept]
        order = np.argsort(times, kind="stable")
        return times[order], bits[order].view(np.float64)

    def span(self) -> tuple[float, float] | None:
        """Unix times of the oldest and the newest scrape; None while there is none."""
        query = "SELECT min(a), max(b) FROM (SELECT min(at) a, max(at) b FROM recent UNION SELECT min(start), max(stop) FROM block)"
        first, last = self._db.execute(query).fetchone()
        return None if first is None else (float(first), float(last))

    @property
    def size(self) -> int:
        """Bytes of the file, without pages that are free."""
        pages, free, page = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * page)

    def compact(self) -> None:
        """Turn the rows of scrapes into one block; all of it or nothing."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")  # nobody else may turn the same rows into a block
            self._ids = dict(self._db.execute("SELECT name, id FROM series"))
            if rows := self._db.execute("SELECT at, data FROM recent ORDER BY at").fetchall():
                self._block(rows)
        self._rows = 0

    def close(self) -> None:
        """Free the file."""
        self._db.close()

    def _block(self, rows: list[tuple[float, bytes]]) -> None:
        table = np.full((len(rows), len(self._ids)), ABSENT, np.uint64)
        for place, (_, data) in enumerate(rows):
            row = np.frombuffer(data, np.uint64)
            table[place, : len(row)] = row
        times = np.array([at for at, _ in rows])
        start = float(times[0])
        present = np.flatnonzero((table != ABSENT).any(axis=0))
        # A clock that was set back can give two blocks the same start; the later one moves by a microsecond.
        while self._db.execute("SELECT 1 FROM block WHERE start = ?", (start,)).fetchone():
            start = start + 1e-6
        self._db.execute("INSERT INTO block VALUES (?, ?, ?)", (start, float(times[-1]), _counted(times)))
        chunks = ((int(column) + 1, start, pack(np.ascontiguousarray(table[:, column]))) for column in present)
        self._db.executemany("INSERT INTO chunk VALUES (?, ?, ?)", chunks)
        self._db.execute("DELETE FROM recent WHERE at <= ?", (float(times[-1]),))

    def _write(self, at: float, values: Mapping[str, float]) -> None:
        self._register(values)
        row = np.full(len(self._ids), ABSENT, np.uint64)
        known = [(self._ids[name] - 1, value) for name, value in values.items() if name in self._ids]
        if known:
            places, readings = zip(*known, strict=True)
            row[list(places)] = np.array(readings, np.float64).view(np.uint64)
        self._db.execute("INSERT OR REPLACE INTO recent VALUES (?, ?)", (at, row.tobytes()))

    def _register(self, values: Mapping[str, float]) -> None:
        if values.keys() <= self._ids.keys():
            return
        self._ids = dict(self._db.execute("SELECT name, id FROM series"))  # another writer may have met them first
        for name in values.keys() - self._ids.keys():
            if len(self._ids) >= MAX_SERIES:
                if not self._full:
                    log.warning(
                        "%s holds %d series, the most it takes; further ones are left out", self.path, MAX_SERIES
                    )
                self._full = True
                return
            number = len(self._ids) + 1
            self._db.execute("INSERT INTO series VALUES (?, ?)", (number, name))
            self._ids[name] = number

    def _chunks(self, number: int, start: float, stop: float) -> Iterator[tuple[Floats, Bits]]:
        query = (
            "SELECT times, data FROM block JOIN chunk USING (start) WHERE series = ? AND stop >= ? AND start <= ?"
            " ORDER BY start"
        )
        for times, data in self._db.execute(query, (number, float(start), float(stop))):
            when = _times(times)
            yield when, unpack(data, len(when))

    def _new(self, number: int, start: float, stop: float) -> Iterator[tuple[Floats, Bits]]:
        query = "SELECT at, data FROM recent WHERE at BETWEEN ? AND ? ORDER BY at"
        for at, data in self._db.execute(query, (float(start), float(stop))):
            row = np.frombuffer(data, np.uint64)
            if number <= len(row):
                yield np.array([at]), row[number - 1 : number]

    def _prune(self, now: float) -> None:
        with self._db:
            self._drop("stop < ?", (now - self._keep,))
        while self.size > self._max_bytes and self._count("block") > 1:
            with self._db:
                oldest = self._db.execute("SELECT min(start) FROM block").fetchone()
                self._drop("start = ?", oldest)
        self._db.execute("PRAGMA incremental_vacuum").fetchall()

    def _drop(self, condition: str, values: tuple[float, ...]) -> None:
        self._db.execute(f"DELETE FROM chunk WHERE start IN (SELECT start FROM block WHERE {condition})", values)  # noqa: S608
        self._db.execute(f"DELETE FROM block WHERE {condition}", values)  # noqa: S608

    def _count(self, table: str) -> int:
        return int(self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608


def _counted(times: Floats) -> bytes:
    """Times with their number in front, since a packed series does not say how long it is."""
    return len(times).to_bytes(4, "little") + pack(times.view(np.uint64))


def _times(data: bytes) -> Floats:
    return unpack(data[4:], int.from_bytes(data[:4], "little")).view(np.float64)
