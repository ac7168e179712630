"""The database under the journal: SQLite in a file of the run, or PostgreSQL by URL. Tables, durability, append-only triggers.

    entries  one row per journal line; key (run, seq)
    leases   one row per run: which controller leads it, under which epoch, until when

A SQLite file belongs to one run; a PostgreSQL database holds many. Both refuse UPDATE and DELETE on `entries`; whoever
may drop the triggers can still change rows, and then the hash chain shows it. Passwords come from where libpq looks for
them (`~/.pgpass`, `PGPASSWORD`); one in the URL is used and never shown or stored.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Index,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.schema import CreateIndex, CreateTable

metadata = MetaData()
entries = Table(
    "entries",
    metadata,
    Column("run", String(200), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("body", Text, nullable=False),
    Column("hash", String(64), nullable=False),
    Index("entries_by_kind", "run", "kind", "seq"),
)
leases = Table(
    "leases",
    metadata,
    Column("run", String(200), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", String(200), nullable=False),
    Column("until", Double, nullable=False),
)

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 15
"""A database that hangs must not hang the controller: it then takes no new action and says so."""

_SQLITE_TRIGGERS = [
    f"CREATE TRIGGER IF NOT EXISTS entries_no_{verb} BEFORE {verb} ON entries "
    "BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END"
    for verb in ("UPDATE", "DELETE")
]
_POSTGRES_TRIGGERS = [
    "CREATE OR REPLACE FUNCTION entries_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the journal is append-only'; END $$",
    "CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON entries "
    "FOR EACH STATEMENT EXECUTE FUNCTION entries_append_only()",
]
_SCHEMA_LOCK = 0x5CA1E71


class JournalError(Exception):
    """The journal cannot be used; nothing may be published then."""


def address(where: Path | str) -> URL:
    """The database that a path or a URL names.

    Raises:
        JournalError: not a URL of SQLite or PostgreSQL.
    """
    if isinstance(where, Path):
        return URL.create("sqlite", database=str(where))
    try:
        url = make_url(where)
    except ArgumentError:
        raise JournalError("the journal's URL cannot be read; it looks like postgresql://user@host/database") from None
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise JournalError(f"{url.get_backend_name()}: a journal is kept in sqlite or postgresql")
    return url.set(drivername="postgresql+psycopg") if url.get_backend_name() == "postgresql" else url


def shown(url: URL) -> str:
    """How messages name the database: the file, or the URL without driver and password."""
    if url.get_backend_name() == "sqlite":
        return url.database or "memory"
    return url.set(drivername="postgresql", password=None).render_as_string()


def connect(url: URL, *, read_only: bool) -> Engine:
    """An engine whose commits are on disk when they return; tables and triggers are there unless `read_only`.

    Raises:
        JournalError: the driver is missing, or the server does not keep what it promised to keep.
        sqlalchemy.exc.SQLAlchemyError: it cannot be reached.
    """
    if url.get_backend_name() == "sqlite":
        engine = _sqlite(url, read_only)
    else:
        engine = _postgres(url, read_only)
    if not read_only:
        with engine.begin() as connection:
            _create(connection)
    return engine


def clock_of(connection: Connection) -> Callable[[], float]:
    """The clock by which leases run: the database's own, so that several machines agree on it."""
    if connection.dialect.name == "postgresql":
        return lambda: float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    return time.time


def _sqlite(url: URL, read_only: bool) -> Engine:
    path = url.database or ":memory:"
    if read_only:
        url = URL.create("sqlite", database=f"file:{path}", query={"mode": "ro", "uri": "true"})
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA busy_timeout={CONNECT_SECONDS * 1000}")
        if not read_only:
            # WAL lets the terminal and the report read while the controller writes; FULL fsyncs at every commit.
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")

    return engine


def _postgres(url: URL, read_only: bool) -> Engine:
    options = f"-c statement_timeout={STATEMENT_SECONDS}s -c lock_timeout={CONNECT_SECONDS}s"
    if read_only:
        options += " -c default_transaction_read_only=on"
    arguments = {"connect_timeout": CONNECT_SECONDS, "options": options, "application_name": "scalerl"}
    try:
        engine = create_engine(url, connect_args=arguments, pool_pre_ping=True, pool_size=2, max_overflow=2)
    except ModuleNotFoundError:
        raise JournalError(
            "a journal in PostgreSQL needs the extra `postgres`: pip install 'scalerl[postgres]'"
        ) from None

    @event.listens_for(engine, "connect")
    def _durable(connection: Any, _record: Any) -> None:
        if read_only:
            return
        with connection.cursor() as cursor:
            cursor.execute("SHOW fsync")
            if cursor.fetchone()[0] != "on":
                raise JournalError(
                    f"{shown(url)}: the server runs with fsync=off; a power cut could lose what was decided"
                )
            # Servers may default to an asynchronous commit; a decision is published only when it is on disk.
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'on', false) "
                "WHERE current_setting('synchronous_commit') IN ('off', 'local')"
            )
        connection.commit()

    return engine


def _create(connection: Connection) -> None:
    postgres = connection.dialect.name == "postgresql"
    if postgres:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK})
    if inspect(connection).has_table("entries"):
        return
    for table in (leases, entries):
        connection.execute(CreateTable(table, if_not_exists=True))
    for index in entries.indexes:
        connection.execute(CreateIndex(index, if_not_exists=True))
    for statement in _POSTGRES_TRIGGERS if postgres else _SQLITE_TRIGGERS:
        connection.exec_driver_sql(statement)
