"""State that no single process holds: what a checkpoint and a snapshot have in place of tensors when the learner is sharded.

    in force        `Shards` of the learner itself; what it names goes on changing
    in memory       `copied()`: each rank keeps its part as it is now
    on disk         `StoredShards`: a directory inside a checkpoint, any number of ranks may read it

A state goes to the learner in two phases, so that ranks change together or not at all: `stage` reads and checks it on every
rank and may fail with nothing changed; the learner's `load_state_dict` then puts in force what is staged.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class Shards(Protocol):
    """All methods return when every rank is done.

    Raises:
        CheckpointError: a rank could not; nothing has changed.
    """

    def write(self, directory: Path) -> None:
        """Put it into an empty directory, flushed to the disk."""
        ...

    def copied(self) -> "Shards":
        """The same, which nothing changes any more."""
        ...


@dataclass(frozen=True)
class StoredShards:
    """In a checkpoint, whose digest has been compared."""

    path: Path

    def write(self, directory: Path) -> None:
        """Link where the file system can, for these files are never written to again; else copy."""
        for file in self.path.iterdir():
            try:
                os.link(file, directory / file.name)
            except OSError:
                shutil.copyfile(file, directory / file.name)

    def copied(self) -> "StoredShards":
        return self
