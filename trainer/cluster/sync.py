"""Weights to all generators: exported into a file, mapped and checked by every one of them, then the old file goes.

    learner --export--> file, digest --publish--> engines: map, compare digest, change between two tokens, confirm

The newest file stays until there is a newer one, so that an engine that comes up later can take it at once.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from trainer.cluster.engine import WeightsFile
from trainer.cluster.pool import Pool
from trainer.sync.files import SHARED_MEMORY
from trainer.types import Version

PREFIX = "scalerl-"
"""Of the directories that weights travel in."""
YOUNG = 60.0
"""Seconds in which a directory without a lock is left alone."""


class FileSync:
    """Implements `WeightSync`. `export` writes the learner's weights to a path and returns the SHA-256 of the file."""

    def __init__(self, export: Callable[[Path], str], pool: Pool, outbox: "Outbox") -> None:
        self._export, self._pool, self._outbox = export, pool, outbox
        self._newest: Path | None = None

    def publish(self, version: Version) -> None:
        file = self.file(version)
        self._pool.publish(file, version)
        self.tidy()

    def file(self, version: Version) -> WeightsFile:
        """The learner's weights in a new file."""
        path = self._outbox.path(version)
        file = WeightsFile(path, self._export(path))
        self._newest = path
        return file

    def tidy(self) -> None:
        """Remove all files but the newest."""
        if self._newest is not None:
            self._outbox.keep_only(self._newest)


class Outbox:
    """A directory of one run for weights on their way; names in it are never used twice.

    It is locked for as long as the process lives. So what killed processes left, of this run and of others, is known and
    removed: in shared memory it would be memory that nobody gives back.
    """

    def __init__(self, parent: Path, run_uid: str) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        for old in parent.glob(f"{PREFIX}*"):
            if old.name.startswith(f"{PREFIX}{run_uid}-") or _abandoned(old):
                shutil.rmtree(old, ignore_errors=True)
        self._directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{run_uid}-", dir=parent))
        self._lock = _locked(self._directory)
        self._serial = count()

    def path(self, version: Version) -> Path:
        """For weights of this version."""
        return self._directory / f"{next(self._serial):06d}-b{version.branch}-v{version.n}.safetensors"

    def keep_only(self, path: Path) -> None:
        """Nobody needs the others any more: who has mapped one keeps it, and who comes up takes the newest."""
        for other in self._directory.iterdir():
            if other != path:
                other.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(directory: Path) -> int | None:
    """A lock that ends with this process; None where another process holds it, or the directory is gone."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _abandoned(directory: Path) -> bool:
    """Whether its owner is gone. A young one may not be locked yet."""
    try:
        if time.time() - directory.stat().st_mtime < YOUNG:
            return False
    except OSError:
        return False
    handle = _locked(directory)
    if handle is not None:
        os.close(handle)
    return handle is not None


def parent_of(weights: Path | None, run: Path, one_machine: bool) -> Path:
    """Where the outbox of a run lies: as the recipe says, in shared memory on one machine, else beside the run's files."""
    if weights is not None:
        return weights
    return SHARED_MEMORY if one_machine and SHARED_MEMORY.is_dir() else run / "weights"
