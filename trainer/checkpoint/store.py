"""Checkpoints on disk: one directory each, whole or absent.

    checkpoints/step-000100-b0/
      state.pt        tensors: model, optimizer
      shards/         in place of it where the learner is sharded: written by all ranks, read by any number of them
      state.json      everything else: step (with it the position in the LR schedule), base LR, tunables, curriculum with
                      pass rates and trained prompts, compute account, pass-rate window, early stopping, forks
      health.json     fresh | good | bad, and the trial; replaced atomically, outside the digest
      manifest.json   step, branch, weights version, held-out score, SHA-256 of each file and the digest over them; last
    checkpoints/best.json   which one has the best held-out score; replaced atomically, follows from the manifests

There are no random states: a token is decided by its request's seed, and that by run seed, epoch and ordinal.
Write: temporary directory -> files, each fsynced -> manifest -> rename -> fsync of the parent -> read back and compare.
A crash leaves a temporary directory, which the next start removes, or puts back where it was being replaced. A checkpoint whose digest does not match is never
restored. `forks` records at which step each branch began; a checkpoint that a later branch went behind is abandoned.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from controlplane.contract.documents import CheckpointState, Health
from controlplane.contract.rundir import write_atomic
from trainer.checkpoint.health import Score, Trial
from trainer.checkpoint.shards import Shards, StoredShards

Forks = Mapping[int, int]
"""Branch -> step at which it began. Branch 0 began at step 0 and has no entry."""


REPLACED = ".replaced-"
"""Prefix of a checkpoint that makes way for a new one of its name; a start finds it only after a crash in between."""


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
    score: float | None = None
    """Held-out pass rate of these weights; None where there was no evaluation at this step."""

    @property
    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in _files(self.path))


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds. `tensors` must be loadable with weights only, or `Shards`; `values` must be JSON."""

    tensors: Mapping[str, Any]
    values: Mapping[str, Any]


def manifest_of(path: Path) -> dict[str, Any] | None:
    """What a checkpoint says of itself; None where there is no whole one. Changes nothing: any process may ask."""
    try:
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_bytes())
        return manifest if {"step", "branch", "version", "digest", "score", "files"} <= manifest.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def abandoned(step: int, branch: int, forks: Forks) -> bool:
    """Whether a later branch began behind this checkpoint."""
    return any(later > branch and start < step for later, start in forks.items())


class CheckpointStore:
    """All checkpoints of one run. Removes what a crash has left half-written."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(".*"):
            replaced = root / leftover.name.removeprefix(REPLACED)
            if leftover.name.startswith(REPLACED) and not replaced.exists():
                leftover.rename(replaced)
            elif leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()

    def all(self) -> list[Checkpoint]:
        """Every checkpoint with a manifest, oldest first by (branch, step)."""
        found = []
        for path in self._root.glob("step-*"):
            if (manifest := manifest_of(path)) is not None:
                fields = {name: manifest[name] for name in ("step", "branch", "version", "digest", "score")}
                found.append(Checkpoint(path, **fields))
        return sorted(found, key=lambda checkpoint: (checkpoint.branch, checkpoint.step))

    def states(self) -> tuple[CheckpointState, ...]:
        """As the observed document shows them."""
        return tuple(
            CheckpointState(step=c.step, branch=c.branch, digest=c.digest, health=self.health(c)[0]) for c in self.all()
        )

    def save(
        self, step: int, branch: int, version: int, content: Content, trial: Trial, score: float | None = None
    ) -> Checkpoint:
        """Write a fresh checkpoint.

        Raises:
            CheckpointError: the disk refused it, or what was read back differs; nothing is left behind.
        """
        final = self._root / f"step-{step:06d}-b{branch}"
        try:
            temporary = Path(tempfile.mkdtemp(dir=self._root, prefix=".writing-"))
            try:
                manifest = {"step": step, "branch": branch, "version": version, "score": score}
                digest = _write(temporary, content, trial, manifest)
                self._swap(temporary, final)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except (OSError, RuntimeError) as error:  # torch tells of a full disk by a RuntimeError
            raise CheckpointError(f"checkpoint of step {step} could not be written: {error}") from error
        checkpoint = Checkpoint(final, step, branch, version, digest, score)
        if not self.valid(checkpoint):
            shutil.rmtree(final, ignore_errors=True)
            raise CheckpointError(f"checkpoint of step {step} does not read back as it was written")
        return checkpoint

    def _swap(self, temporary: Path, final: Path) -> None:
        """Give a complete directory its name. One that has the name already (the same step, saved again) goes."""
        replaced = self._root / f"{REPLACED}{final.name}"
        if final.exists():
            final.rename(replaced)
        try:
            temporary.rename(final)
            _fsync(self._root)
        except OSError:
            if final.exists():
                final.rename(temporary)
            if replaced.exists():
                replaced.rename(final)
            raise
        shutil.rmtree(replaced, ignore_errors=True)

    def valid(self, checkpoint: Checkpoint) -> bool:
        """Whether every file still has the checksum of the manifest, and the manifest the digest of its checksums."""
        manifest = manifest_of(checkpoint.path)
        if manifest is None:
            return False
        files = manifest["files"]
        try:
            return _sums(checkpoint.path, files) == files and _digest(files) == checkpoint.digest
        except (OSError, ValueError):
            return False

    def load(self, checkpoint: Checkpoint) -> Content:
        """Read a checkpoint after checking its digest.

        Raises:
            CheckpointError: the digest does not match.
        """
        if not self.valid(checkpoint):
            raise CheckpointError(f"{checkpoint.path.name} does not match its digest")
        tensors: dict[str, Any] = {}
        if (checkpoint.path / "state.pt").exists():
            tensors = torch.load(checkpoint.path / "state.pt", map_location="cpu", weights_only=True)
        shards = {path.name: StoredShards(path) for path in checkpoint.path.iterdir() if path.is_dir()}
        return Content({**tensors, **shards}, json.loads((checkpoint.path / "state.json").read_bytes()))

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

    def best(self) -> Checkpoint | None:
        """The one with the best held-out score, the later of equals; a bad one is on no lineage and does not count."""
        scored = [c for c in self.all() if c.score is not None and self.health(c)[0] is not Health.bad]
        return max(scored, key=lambda c: (c.score, c.branch, c.step), default=None)

    def point_at_best(self) -> None:
        """Bring `best.json` up to date; it is for people and tools, nothing here reads it."""
        best, pointer = self.best(), self._root / "best.json"
        if best is None:
            pointer.unlink(missing_ok=True)
            return
        fields = {"checkpoint": best.path.name, "step": best.step, "branch": best.branch, "pass_ratio": best.score}
        text = json.dumps(fields) + "\n"
        if not pointer.exists() or pointer.read_text() != text:
            write_atomic(pointer, text, durable=True)

    def prune(self, keep: int) -> None:
        """Delete until `keep` are left: bad ones first, then the oldest; never the newest, the best by held-out score,
        nor the last two good."""
        everything = self.all()
        health = {checkpoint.path: self.health(checkpoint)[0] for checkpoint in everything}
        good = [checkpoint for checkpoint in everything if health[checkpoint.path] is Health.good]
        safe = {checkpoint.path for checkpoint in (*good[-2:], *everything[-1:], self.best()) if checkpoint}
        order = sorted(everything, key=lambda c: (health[c.path] is not Health.bad, c.branch, c.step))
        candidates = [checkpoint for checkpoint in order if checkpoint.path not in safe]
        for checkpoint in candidates[: max(0, len(everything) - keep)]:
            doomed = self._root / f".deleting-{checkpoint.path.name}"
            checkpoint.path.rename(doomed)
            shutil.rmtree(doomed)


def _write(directory: Path, content: Content, trial: Trial, manifest: Mapping[str, Any]) -> str:
    """Write every file of a checkpoint and see that it is on disk; returns the digest."""
    shards = {name: part for name, part in content.tensors.items() if isinstance(part, Shards)}
    for name, part in shards.items():
        (directory / name).mkdir()
        part.write(directory / name)
    if tensors := {name: part for name, part in content.tensors.items() if name not in shards}:
        torch.save(tensors, directory / "state.pt")
    (directory / "state.json").write_text(json.dumps(content.values))
    sums = _sums(directory, sorted(str(file.relative_to(directory)) for file in _files(directory)))
    digest = _digest(sums)
    write_atomic(directory / "health.json", _health_json(Health.fresh, trial))
    (directory / "manifest.json").write_text(json.dumps({**manifest, "digest": digest, "files": sums}, indent=1))
    for path in (*_files(directory), *(directory / name for name in shards), directory):
        _fsync(path)
    return digest


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def _health_json(health: Health, trial: Trial | None) -> str:
    return json.dumps({"health": health.value, "trial": asdict(trial) if trial else None})


def _sums(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files; several at once, because shards are many and large."""
    names = list(names)
    with ThreadPoolExecutor(min(8, len(names))) as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(directory / name), names), strict=True))


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
