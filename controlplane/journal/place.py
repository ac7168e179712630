"""Where the journal of a run is kept: in a SQLite file of its directory, or where the first controller was told."""

from controlplane.contract.rundir import RunDir, write_atomic
from controlplane.journal.database import JournalError, address, shown
from controlplane.journal.store import Journal


def journal_of(rundir: RunDir, url: str = "", *, read_only: bool = False) -> Journal:
    """Open the journal of a run. A `url` given once is remembered in the run directory, without its password.

    Raises:
        JournalError: there is none, it cannot be opened, or the run already has its journal elsewhere.
    """
    known = rundir.journal_url.read_text().strip() if rundir.journal_url.exists() else ""
    if not (url or known):
        return Journal(rundir.journal, read_only=read_only)
    if rundir.journal.exists():
        raise JournalError(f"{rundir.root}: already has a journal in {rundir.journal}; a run has one journal")
    if url and known and shown(address(url)) != known:
        raise JournalError(f"{rundir.root}: its journal is in {known}, not in {shown(address(url))}")
    journal = Journal(url or known, rundir.read_info().run_uid, read_only=read_only)
    if url and not known and not read_only:
        write_atomic(rundir.journal_url, journal.name + "\n", durable=True)
    return journal
