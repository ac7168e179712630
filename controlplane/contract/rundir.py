"""The run directory: where a trainer, its agent, the controller and the report meet on one file system.

    RUN/
      run.json              identity of the run, written once
      recipe.yaml           the recipe as resolved, every default filled in
      target.json           Prometheus file_sd entry of the trainer's exporter (rewritten at every process start)
      steps.jsonl  evals.jsonl  events.jsonl  ledger.jsonl      the trainer's own append-only record
      probes/               one record for each probe: its arms, step by step and prompt by prompt
      checkpoints/          one directory each, manifest.json last
      control/              key (0600) · desired.json <- controller · observed.json <- agent · control.jsonl acks · said/ <- people
      controller/           journal.db, or journal.url that says where it is · shortcut for the next start · target.json of the controller's exporter ·
                            metrics.db, what both pages said over time
      trainer.log  controller.log  report.html

Every JSON document is replaced atomically; every JSONL file is only ever appended to, one whole line at a time.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


class RunInfo(BaseModel):
    """`run.json`: who this run is. `run_uid` never changes; an `incarnation` (process start) does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_uid: str
    name: str
    created_at: float
    planned_steps: int
    config_hash: str
    framework: str
    algorithm: str
    model: str


@dataclass(frozen=True)
class RunDir:
    """Paths of one run. Nothing is created by naming it."""

    root: Path

    @property
    def info(self) -> Path:
        return self.root / "run.json"

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def target(self) -> Path:
        return self.root / "target.json"

    @property
    def steps(self) -> Path:
        return self.root / "steps.jsonl"

    @property
    def evals(self) -> Path:
        return self.root / "evals.jsonl"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def probes(self) -> Path:
        return self.root / "probes"

    @property
    def control(self) -> Path:
        return self.root / "control"

    @property
    def key(self) -> Path:
        return self.control / "key"

    @property
    def desired(self) -> Path:
        return self.control / "desired.json"

    @property
    def resume(self) -> Path:
        return self.control / "resume.json"

    @property
    def supervised(self) -> Path:
        return self.root / "supervise.jsonl"

    @property
    def said(self) -> Path:
        return self.control / "said"

    @property
    def observed(self) -> Path:
        return self.control / "observed.json"

    @property
    def poison(self) -> Path:
        """Why nobody may go on before a person has looked; there only after a rollback that broke half-way."""
        return self.control / "poisoned.json"

    @property
    def control_log(self) -> Path:
        return self.control / "control.jsonl"

    @property
    def controller(self) -> Path:
        return self.root / "controller"

    @property
    def journal(self) -> Path:
        return self.controller / "journal.db"

    @property
    def shortcut(self) -> Path:
        return self.controller / "shortcut"

    @property
    def journal_url(self) -> Path:
        return self.controller / "journal.url"

    @property
    def controller_target(self) -> Path:
        return self.controller / "target.json"

    @property
    def metrics(self) -> Path:
        return self.controller / "metrics.db"

    @property
    def trainer_log(self) -> Path:
        return self.root / "trainer.log"

    @property
    def controller_log(self) -> Path:
        return self.root / "controller.log"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def read_info(self) -> RunInfo:
        """`run.json`; FileNotFoundError where no trainer has started here yet."""
        return RunInfo.model_validate_json(self.info.read_bytes())


def write_atomic(path: Path, text: str, mode: int = 0o644, durable: bool = False) -> None:
    """Replace `path` by `text` so that a reader sees the old or the new content, never a part.

    `durable` also fsyncs file and directory, so that the new content survives a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line in a single write, so that a crash leaves whole lines (at worst one torn last line)."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, separators=(",", ":")) + "\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file; a torn last line (crash while writing) is left out, a missing file is empty."""
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                if line.endswith("\n"):
                    raise ValueError(f"{path}: damaged line: {line[:80]!r}") from None
