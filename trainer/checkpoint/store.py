"""Checkpoints on disk: one directory each, whole or absent.

    checkpoints/step-000100-b0/
      state.pt        tensors: model, optimizer, RNG states
      state.json      everything else: base LR, compute, curriculum, tunables, pass-rate window, forks, ...
      health.json     fresh | good | bad, and the trial; replaced atomically, outside the digest
      manifest.json   step, branch, weights version, SHA-256 of each file and the digest over them; written last

Write: temporary directory -> files, each fsynced -> manifest -> rename -> fsync of the parent -> read back and compare.
A crash leaves a temporary directory, which the next start removes. A checkpoint whose digest does not match is never
restored. `forks` records at which step each branch began; a checkpoint that a later branch went behind is abandoned.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from controlplane.contract.documents import CheckpointState, Health
from controlplane.contract.rundir import write_atomic
from trainer.checkpoint.health import Score, Trial

Forks = Mapping[int, int]
"""Branch -> step at which it began. Branch 0 began at step 0 and has no entry."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or cannot be trusted. One sentence."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, as its manifest describes it."""

    path: Path
    step: int
    branch: int
    version: int
    digest: str

    @property
    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.path.iterdir())


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds. `tensors` must be loadable with weights only; `values` must be JSON."""

    tensors: Mapping[str, Any]
    values: Mapping[str, Any]


def abandoned(step: int, branch: int, forks: Forks) -> bool:
    """Whether a later branch began behind this checkpoint."""
    return any(later > branch and start < step for later, start in forks.items())


class CheckpointStore:
    """All checkpoints of one run. Removes what a crash has left half-written."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(".*"):
            shutil.rmtree(leftover)

    def all(self) -> list[Checkpoint]:
        """Every checkpoint with a manifest, oldest first by (branch, step)."""
        found = []
        for path in self._root.iterdir():
            try:
                manifest = json.loads((path / "manifest.json").read_bytes())
                found.append(Checkpoint(path, *(manifest[key] for key in ("step", "branch", "version", "digest"))))
            except (OSError, ValueError, KeyError):
                continue
        return sorted(found, key=lambda checkpoint: (checkpoint.branch, checkpoint.step))

    def states(self) -> tuple[CheckpointState, ...]:
        """As the observed document shows them."""
        return tuple(
            CheckpointState(step=c.step, branch=c.branch, digest=c.digest, health=self.health(c)[0]) for c in self.all()
        )

    def save(self, step: int, branch: int, version: int, content: Content, trial: Trial) -> Checkpoint:
        """Write a fresh checkpoint.

        Raises:
            CheckpointError: the disk refused it, or what was read back differs; nothing is left behind.
        """
        final = self._root / f"step-{step:06d}-b{branch}"
        try:
            temporary = Path(tempfile.mkdtemp(dir=self._root, prefix=".writing-"))
            torch.save(dict(content.tensors), temporary / "state.pt")
            (temporary / "state.json").write_text(json.dumps(content.values))
            sums = {name: _sha256(temporary / name) for name in ("state.json", "state.pt")}
            digest = _digest(sums)
            manifest = {"step": step, "branch": branch, "version": version, "digest": digest, "files": sums}
            write_atomic(temporary / "health.json", _health_json(Health.fresh, trial))
            (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
            for file in temporary.iterdir():
                _fsync(file)
            _fsync(temporary)
            if final.exists():  # only a damaged one can be in the way: a valid one would have been resumed from
                final.rename(self._root / f".replaced-{final.name}")
            temporary.rename(final)
            _fsync(self._root)
            shutil.rmtree(self._root / f".replaced-{final.name}", ignore_errors=True)
        except OSError as error:
            raise CheckpointError(f"checkpoint of step {step} could not be written: {error}") from error
        checkpoint = Checkpoint(final, step, branch, version, digest)
        if not self.valid(checkpoint):
            shutil.rmtree(final, ignore_errors=True)
            raise CheckpointError(f"checkpoint of step {step} does not read back as it was written")
        return checkpoint

    def valid(self, checkpoint: Checkpoint) -> bool:
        """Whether every file still has the checksum of the manifest, and the manifest the digest of its checksums."""
        try:
            files = json.loads((checkpoint.path / "manifest.json").read_bytes())["files"]
            same = all(_sha256(checkpoint.path / name) == expected for name, expected in files.items())
        except (OSError, ValueError, KeyError):
            return False
        return same and _digest(files) == checkpoint.digest

    def load(self, checkpoint: Checkpoint) -> Content:
        """Read a checkpoint after checking its digest.

        Raises:
            CheckpointError: the digest does not match.
        """
        if not self.valid(checkpoint):
            raise CheckpointError(f"{checkpoint.path.name} does not match its digest")
        tensors = torch.load(checkpoint.path / "state.pt", map_location="cpu", weights_only=True)
        return Content(tensors, json.loads((checkpoint.path / "state.json").read_bytes()))

    def newest(self) -> Checkpoint | None:
        """The checkpoint to resume from: newest by (branch, step) that is not bad and whose digest matches."""
        for checkpoint in reversed(self.all()):
            if self.health(checkpoint)[0] is not Health.bad and self.valid(checkpoint):
                return checkpoint
        return None

    def health(self, checkpoint: Checkpoint) -> tuple[Health, Trial | None]:
        """Health and trial; a checkpoint whose health cannot be read has proven nothing and is fresh."""
        try:
            record = json.loads((checkpoint.path / "health.json").read_bytes())
            trial = dict(record["trial"])
            baseline = Score(**trial.pop("baseline")) if trial["baseline"] else trial.pop("baseline")
            return Health(record["health"]), Trial(baseline=baseline, **trial)
        except (OSError, ValueError, KeyError, TypeError):
            return Health.fresh, None

    def mark(self, checkpoint: Checkpoint, health: Health, trial: Trial | None) -> None:
        """Replace the health of a checkpoint."""
        write_atomic(checkpoint.path / "health.json", _health_json(health, trial), durable=True)

    def mark_abandoned(self, forks: Forks) -> list[Checkpoint]:
        """Mark every checkpoint bad that a later branch went behind; returns the newly marked ones. Safe to repeat."""
        marked = []
        for checkpoint in self.all():
            health, trial = self.health(checkpoint)
            if health is not Health.bad and abandoned(checkpoint.step, checkpoint.branch, forks):
                self.mark(checkpoint, Health.bad, trial)
                marked.append(checkpoint)
        return marked

    def prune(self, keep: int) -> None:
        """Delete until `keep` are left: bad ones first, then the oldest; never the newest nor the last two good."""
        everything = self.all()
        health = {checkpoint.path: self.health(checkpoint)[0] for checkpoint in everything}
        good = [checkpoint for checkpoint in everything if health[checkpoint.path] is Health.good]
        safe = {checkpoint.path for checkpoint in (*good[-2:], *everything[-1:])}
        order = sorted(everything, key=lambda c: (health[c.path] is not Health.bad, c.branch, c.step))
        candidates = [checkpoint for checkpoint in order if checkpoint.path not in safe]
        for checkpoint in candidates[: max(0, len(everything) - keep)]:
            doomed = self._root / f".deleting-{checkpoint.path.name}"
            checkpoint.path.rename(doomed)
            shutil.rmtree(doomed)


def _health_json(health: Health, trial: Trial | None) -> str:
    return json.dumps({"health": health.value, "trial": asdict(trial) if trial else None})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(sums: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
