"""Weights to all generators: exported into a file, mapped and checked by every one of them, then the old file goes.

    learner --export--> file, digest --publish--> engines: map, compare digest, change between two tokens, confirm

The newest file stays until there is a newer one, so that an engine that comes up later can take it at once.
"""

import shutil
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

from trainer.cluster.engine import WeightsFile
from trainer.cluster.pool import Pool
from trainer.types import Version

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108


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
    """A directory of one run for weights on their way; names in it are never used twice. What a killed process left is removed."""

    def __init__(self, parent: Path, run_uid: str) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        prefix = f"scalerl-{run_uid}-"
        for old in parent.glob(f"{prefix}*"):
            shutil.rmtree(old, ignore_errors=True)
        self._directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
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


def parent_of(weights: Path | None, run: Path, one_machine: bool) -> Path:
    """Where the outbox of a run lies: as the recipe says, in shared memory on one machine, else beside the run's files."""
    if weights is not None:
        return weights
    return SHARED_MEMORY if one_machine and SHARED_MEMORY.is_dir() else run / "weights"
