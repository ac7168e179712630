"""The record of a run, read from its directory: what trainer and controller wrote, as plain lists for view and report.

Reading never disturbs a running job, and a file that is not there yet is an empty list.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane.contract.documents import Observed
from controlplane.contract.rundir import RunDir, RunInfo, read_lines
from controlplane.decide import Decision, ForecastView, Kind
from controlplane.journal import EntryKind, JournalError, journal_of
from controlplane.policy import Autonomy, Policy


@dataclass(frozen=True)
class Look:
    """One look of the controller."""

    seq: int
    at: float
    step: int | None
    branch: int
    decision: Decision
    findings: Mapping[str, Mapping[str, Any]]
    """Detector -> outcome, statistic, threshold, onset, detail."""


@dataclass
class Record:
    """Everything about one run so far. `update` reads what is new since the last call."""

    rundir: RunDir
    info: RunInfo | None = None
    observed: Observed | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    """The trainer's own line per optimiser step, in order of writing; a rollback shows as a smaller step and a larger branch."""
    evals: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    forecasts: list[ForecastView] = field(default_factory=list)
    policy: str = ""
    policy_text: str = ""
    autonomy: str = ""
    """Highest autonomy of the policy in force, the ceiling of the command line included; empty without a controller."""
    controller_starts: int = 0
    controller_ended: bool = False
    _read: dict[str, int] = field(default_factory=dict)
    _seq: int = 0

    @classmethod
    def of(cls, root: Path) -> "Record":
        """The record of the run in `root` as it is now."""
        record = cls(RunDir(root))
        record.update()
        return record

    def update(self) -> None:
        """Read what was added since the last call."""
        if self.info is None and self.rundir.info.exists():
            self.info = self.rundir.read_info()
        if self.rundir.observed.exists():
            self.observed = Observed.model_validate_json(self.rundir.observed.read_bytes())
        self._more(self.steps, self.rundir.steps)
        self._more(self.evals, self.rundir.evals)
        self._more(self.events, self.rundir.events)
        self._journal()

    @property
    def actions(self) -> list[Look]:
        """Looks in which something was decided that people want to see: every kind but nothing and hold."""
        return [look for look in self.looks if look.decision.kind not in (Kind.nothing, Kind.hold)]

    def lineage(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows that lead to the weights in force: what an abandoned branch did after its fork is left out."""
        kept: list[dict[str, Any]] = []
        for row in rows:
            while kept and kept[-1]["step"] >= row["step"]:
                kept.pop()
            kept.append(row)
        return kept

    def forecast_at(self, share: float) -> ForecastView | None:
        """The first forecast made at or after this share of the run; None if there is none."""
        planned = self.info.planned_steps if self.info else 0
        return next((view for view in self.forecasts if planned and view.step >= share * planned), None)

    def _more(self, rows: list[dict[str, Any]], path: Path) -> None:
        # The files are small and append-only: reading them anew is simpler than keeping offsets, and fast enough.
        size = path.stat().st_size if path.exists() else 0
        if size != self._read.get(path.name):
            rows[:] = list(read_lines(path))
            self._read[path.name] = size

    def _journal(self) -> None:
        if not (self.rundir.journal.exists() or self.rundir.journal_url.exists()):
            return
        try:
            journal = journal_of(self.rundir, read_only=True)
        except JournalError:
            return  # the controller is just creating it
        try:
            for entry in journal.entries(after=self._seq):
                self._seq = entry.seq
                if entry.kind is EntryKind.look:
                    decision = Decision.model_validate(entry.body["decision"])
                    findings = entry.body["findings"]
                    self.looks.append(Look(entry.seq, entry.at, decision.step, decision.branch, decision, findings))
                    if "forecast" in entry.body:
                        self.forecasts.append(ForecastView.model_validate(entry.body["forecast"]))
                elif entry.kind is EntryKind.start:
                    self.policy, self.policy_text = entry.body["policy"], entry.body["policy_text"]
                    in_force = Policy.model_validate(entry.body["policy_json"])
                    self.autonomy = max(in_force.autonomy.values(), default=Autonomy.observe).name
                    self.controller_starts += 1
                    self.controller_ended = False
                elif entry.kind is EntryKind.stop:
                    self.controller_ended = True
        except JournalError:
            return
        finally:
            journal.close()
