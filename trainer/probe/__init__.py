"""The probe: does another value of a tunable learn faster? Arms with the same prompts and seeds, in one of three designs.

    directive `probe` --> begin                                    probes/<id>.jsonl --> controller
         inline.py       the run and its arms take turns, from a snapshot in memory; it stands still in theirs
         spare.py        a second process trains them from a snapshot on disk; the run goes on meanwhile (helper.py: that process)
         switchback.py   the run itself takes turns between the value in force and another one
    directive `ruling` --> an arm is stopped, adopted, or the probe ends

At most one at a time. Nothing of an arm is part of the run until it is adopted, so a crash means that there was no probe:
the next start of the trainer closes its record. What ends a probe early, and what becomes of it then, is in docs/tuning.md.
"""

import shutil
from collections.abc import Callable

from controlplane.agent import Directive
from controlplane.contract.documents import CONTROL, Design, Probe, Ruling
from controlplane.contract.rundir import RunDir
from trainer.probe.arms import Machine, Standstill, Underway
from trainer.probe.inline import Inline
from trainer.probe.record import Record, close_left_open
from trainer.probe.spare import FOLDER, Launch, Spare
from trainer.probe.switchback import Switchback
from trainer.stepper import Stepped

__all__ = ["Launch", "Probing", "Standstill"]


class Probing:
    """Owns the probe that is under way. `record` writes a step of an adopted arm down as the run's own, `settled` follows
    such an adoption, `event` tells people, `ask` passes through the control point, `launch` starts a spare process (None:
    there is no room for one)."""

    def __init__(
        self,
        rundir: RunDir,
        machine: Machine,
        *,
        planned_steps: int,
        launch: Launch | None,
        record: Callable[[Stepped], None],
        settled: Callable[[], None],
        event: Callable[..., None],
        ask: Callable[[], None],
    ) -> None:
        self._rundir, self._machine, self._planned_steps, self._launch = rundir, machine, planned_steps, launch
        self._record, self._settled, self._event, self._ask = record, settled, event, ask
        self._probe: Underway | None = None

    @property
    def probe_id(self) -> str:
        """Of the probe under way; empty without one."""
        return self._probe.probe_id if self._probe else ""

    @property
    def standstill(self) -> Standstill | None:
        """Set while an arm is in force in place of the run."""
        return self._probe.standstill if self._probe else None

    @property
    def tunables(self) -> dict[str, float]:
        """In force in the run itself."""
        own = self._probe.tunables if self._probe else None
        return dict(self._machine.session.tunables if own is None else own)

    def recover(self) -> None:
        """At the start of a process: close what the last one has left open."""
        for leftover in self._rundir.probes.glob(f"*{FOLDER}"):
            shutil.rmtree(leftover, ignore_errors=True)
        for probe_id in close_left_open(self._rundir.probes, "the trainer ended during the probe"):
            self._event("probe_end", probe_id=probe_id, outcome=CONTROL, reason="the trainer ended during the probe")

    def begin(self, directive: Directive) -> str:
        """Begin a probe. Returns why not."""
        spec, session = directive.probe, self._machine.session
        assert isinstance(spec, Probe)
        record = Record(self._rundir.probes / f"{spec.probe_id}.jsonl")
        if session.poisoned:
            return "the last step was not finite; nothing starts from it"
        if session.state.step + spec.run_steps > self._planned_steps:
            return f"{spec.run_steps} steps do not fit before the run ends at step {self._planned_steps}"
        if record.kinds:
            return f"there was a probe {spec.probe_id} in this run already"
        for arm, sets in directive.arms.items():
            if all(session.tunables[name] == value for name, value in sets.items()):
                return f"arm {arm} changes nothing inside the guard rails"
        try:
            self._probe = self._design(spec, directive, record)
        except OSError as error:
            return f"the probe could not begin: {error}"
        if self._probe is None:
            return "this trainer has no room for a second process"
        self._event("probe", probe_id=spec.probe_id, where=spec.where, steps=spec.steps, arms=list(spec.arms))
        return ""

    def _design(self, spec: Probe, directive: Directive, record: Record) -> Underway | None:
        match spec.where:
            case Design.inline:
                return Inline(
                    self._machine, spec, directive.arms, record, self._over, self._record, self._settled, self._ask
                )
            case Design.spare if self._launch is None:
                return None
            case Design.spare:
                assert self._launch is not None
                return Spare(self._machine, spec, directive.arms, record, self._over, self._launch)
            case Design.switchback:
                return Switchback(self._machine, spec, directive.arms, record, self._over)

    def rule(self, directive: Directive) -> str:
        """Carry out a ruling. Returns why not."""
        ruling, probe = directive.probe, self._probe
        assert isinstance(ruling, Ruling)
        if probe is None or ruling.probe_id != probe.probe_id:
            return f"probe {ruling.probe_id} is not under way"
        unknown = sorted({*ruling.stop, *((ruling.adopt,) if ruling.adopt else ())} - (probe.arms.keys() - {CONTROL}))
        if unknown:
            return f"probe {ruling.probe_id} has no arm {unknown[0]}"
        if ruling.adopt and dict(directive.values) != dict(probe.arms[ruling.adopt].sets):
            return f"the document does not set what arm {ruling.adopt} was trained with"
        return probe.rule(ruling)

    def make_way(self, directive: Directive) -> None:
        """A directive that is no ruling is meant for the run itself: what stands in its way ends before it."""
        if self._probe is not None and self._probe.disturbed_by(directive):
            self._probe.cancel(f"decision {directive.decision_id} is carried out on the run itself")

    def look(self) -> None:
        """At every control point, before the agent is asked."""
        if self._probe is not None:
            self._probe.look()

    def before_step(self) -> None:
        """The run is about to take a step of its own."""
        if self._probe is not None:
            self._probe.before_step()

    def after_step(self, stepped: Stepped) -> None:
        """The run has taken a step of its own."""
        if self._probe is not None:
            self._probe.after_step(stepped)

    def cancel(self, reason: str) -> None:
        """End the probe: the run goes on as if there had been none."""
        if self._probe is not None:
            self._probe.cancel(reason)

    def _over(self, outcome: str, reason: str, lost: float) -> None:
        """The probe has ended and its record says so."""
        probe_id, self._probe = self.probe_id, None
        self._event("probe_end", probe_id=probe_id, outcome=outcome, reason=reason, device_seconds_not_kept=lost)
