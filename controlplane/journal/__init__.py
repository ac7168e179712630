"""Write-ahead log of everything the controller saw, decided and published."""

from controlplane.journal.entries import Entry, EntryKind
from controlplane.journal.store import Journal, JournalError

__all__ = ["Entry", "EntryKind", "Journal", "JournalError"]
