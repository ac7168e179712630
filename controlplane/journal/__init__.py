"""Write-ahead log of everything the controller saw, decided and published; and the lease on the run that it is about."""

from controlplane.journal.database import JournalError
from controlplane.journal.entries import Entry, EntryKind
from controlplane.journal.lease import LeaseHeldError, LeaseLostError
from controlplane.journal.place import journal_of
from controlplane.journal.store import Journal

__all__ = ["Entry", "EntryKind", "Journal", "JournalError", "LeaseHeldError", "LeaseLostError", "journal_of"]
