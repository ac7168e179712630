"""Who leads a run: one row per run with a holder, an epoch that only grows, and a time until which it is held.

    free or lapsed --lead--> held --renewed by every append--> held --resign, or no append for too long--> free
                               \\-- another one leads --> lost: no further append, so no further publication

The lease keeps two controllers from working at once; the epoch keeps a slow one from doing harm all the same: the agent
refuses documents of a lower epoch. Time runs by the clock of the database. A holder that died on this very machine is
known to be dead and need not be waited for.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects import postgresql, sqlite

from controlplane.journal.database import JournalError, clock_of, leases


class LeaseHeldError(JournalError):
    """Another controller leads this run and is alive."""


class LeaseLostError(JournalError):
    """Another controller has taken over; this one is read-only from now on."""


@dataclass(frozen=True)
class Lease:
    """What a controller holds while it leads."""

    run: str
    epoch: int
    holder: str
    seconds: float
    """It lapses when nothing was appended for so long."""


def this_process() -> str:
    """This process among all that may lead a run: host, space of process ids, process id."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = "pid"
    return f"{socket.gethostname()}/{space}/{os.getpid()}"


def take(connection: Connection, run: str, holder: str, seconds: float, above: int) -> Lease:
    """Take the lease under a new epoch, larger than every earlier one and than `above`.

    Raises:
        LeaseHeldError: another one holds it and is not known to be dead.
    """
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    fresh = dialect.insert(leases).values(run=run, epoch=0, holder="", until=0.0)
    connection.execute(fresh.on_conflict_do_nothing())  # a write comes first: it takes the lock
    now = clock_of(connection)()
    row = connection.execute(select(leases).where(leases.c.run == run).with_for_update()).one()
    if row.holder not in ("", holder) and row.until > now and not _is_dead(row.holder):
        raise LeaseHeldError(
            f"{_who(row.holder)} leads this run under epoch {row.epoch}; its lease lapses in {row.until - now:.0f} s"
        )
    epoch = max(row.epoch, above) + 1
    values = {"epoch": epoch, "holder": holder, "until": now + seconds}
    connection.execute(update(leases).where(leases.c.run == run).values(values))
    return Lease(run, epoch, holder, seconds)


def renew(connection: Connection, lease: Lease) -> None:
    """Hold on for another `lease.seconds`; in the same transaction as what is written under the lease.

    Raises:
        LeaseLostError: the run was taken over.
    """
    mine = (leases.c.run == lease.run) & (leases.c.epoch == lease.epoch) & (leases.c.holder == lease.holder)
    until = clock_of(connection)() + lease.seconds
    if connection.execute(update(leases).where(mine).values(until=until)).rowcount == 1:
        return
    row = connection.execute(select(leases).where(leases.c.run == lease.run)).first()
    now = f"{_who(row.holder)} leads it under epoch {row.epoch}" if row else "its row is gone"
    raise LeaseLostError(f"the lease of this run was lost (epoch {lease.epoch}): {now}")


def release(connection: Connection, lease: Lease) -> None:
    """Let another one lead at once; nothing if it was lost before."""
    mine = (leases.c.run == lease.run) & (leases.c.epoch == lease.epoch) & (leases.c.holder == lease.holder)
    connection.execute(update(leases).where(mine).values(holder="", until=0.0))


def _is_dead(holder: str) -> bool:
    """Whether the holder was a process of this machine that has ended. A reused process id only means: wait."""
    place, _, process = holder.rpartition("/")
    if place != this_process().rpartition("/")[0] or not process.isdigit():
        return False
    return not Path(f"/proc/{process}").exists()


def _who(holder: str) -> str:
    host, _, process = holder.partition("/")[0], "", holder.rpartition("/")[2]
    return f"process {process} on {host}" if host and process else "nobody"
