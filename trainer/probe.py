"""The probe: does another value of a tunable learn faster? Arms from one snapshot, with the same prompts and seeds.

    directive `probe` -> snapshot in memory
         |
         v
    the run goes on for n steps: arm `control`, an ordinary part of the run
         |                                                  every arm, step by step and prompt by prompt,
         v                                                  goes to probes/<id>.jsonl; the controller reads it there
    for each other arm: back to the snapshot, set its tunables, n steps        and answers with rulings:
         |                                                                      stop an arm, adopt one, end
         v
    adopted: the run goes on from that arm, on a new branch that began at the snapshot; its steps are written down as the run's
    not adopted: the run goes on where `control` ended, bit for bit as if the others had never been

While other arms are trained, the run stands still for everybody outside: step, branch and tunables stay those of the end of
`control`. Any directive but a ruling ends the probe first and is then carried out on the run itself. Nothing of an arm is
on disk but its record, so a crash means that there was no probe.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from controlplane.agent import Directive
from controlplane.contract.documents import CONTROL, Phase, Probe, Ruling
from controlplane.contract.rundir import RunDir, append_line
from trainer.checkpoint.ring import Snapshot
from trainer.record import finite
from trainer.rollback import Savepoints
from trainer.session import Session
from trainer.stepper import Stepped, Stepper
from trainer.stopwatch import Stopwatch
from trainer.types import Version

WAIT_SECONDS = 0.1
"""How often a probe that waits for its ruling asks for it."""


@dataclass
class _Arm:
    """What an arm has done so far. `end` is where it stands, once it has ended."""

    sets: Mapping[str, float]
    taken: list[Stepped] = field(default_factory=list)
    stopped: bool = False
    end: Snapshot | None = None


@dataclass
class _Underway:
    """A probe between its directive and its end."""

    spec: Probe
    start: Snapshot
    step: int
    """Of the snapshot."""
    tunables: dict[str, float]
    """In force in the run itself."""
    arms: dict[str, _Arm]
    running: str = CONTROL


@dataclass(frozen=True)
class Standstill:
    """Where the run itself stands while another arm is trained."""

    step: int
    branch: int
    compute: float
    tunables: dict[str, float]


class Probing:
    """At most one probe at a time. `record` writes a step of an adopted arm down as the run's own, `settled` follows an adoption,
    `event` tells people, `ask` passes through the control point."""

    def __init__(
        self,
        rundir: RunDir,
        session: Session,
        savepoints: Savepoints,
        stepper: Stepper,
        watch: Stopwatch,
        *,
        planned_steps: int,
        record: Callable[[Stepped], None],
        settled: Callable[[], None],
        event: Callable[..., None],
        ask: Callable[[], None],
    ) -> None:
        self._rundir, self._session, self._savepoints, self._stepper = rundir, session, savepoints, stepper
        self._watch, self._planned_steps = watch, planned_steps
        self._record, self._settled, self._event, self._ask = record, settled, event, ask
        self._probe: _Underway | None = None
        self.standstill: Standstill | None = None
        """Set while an arm other than `control` is in force."""

    @property
    def probe_id(self) -> str:
        """Of the probe under way; empty without one."""
        return self._probe.spec.probe_id if self._probe else ""

    def begin(self, directive: Directive) -> str:
        """Take the snapshot; from now on the run is also the arm `control`. Returns why not."""
        spec, session = directive.probe, self._session
        assert isinstance(spec, Probe)
        if session.poisoned:
            return "the last step was not finite; nothing starts from it"
        if session.state.step + spec.steps > self._planned_steps:
            return f"{spec.steps} steps of each arm do not fit before the run ends at step {self._planned_steps}"
        if self._path(spec.probe_id).exists():
            return f"there was a probe {spec.probe_id} in this run already"
        for arm, sets in directive.arms.items():
            if all(session.tunables[name] == value for name, value in sets.items()):
                return f"arm {arm} changes nothing inside the guard rails"
        arms = {CONTROL: _Arm({}), **{name: _Arm(dict(sets)) for name, sets in directive.arms.items()}}
        tunables = dict(session.tunables)
        self._probe = _Underway(spec, self._savepoints.snapshot(), session.state.step, tunables, arms)
        self._write(
            kind="begin",
            step=session.state.step,
            steps=spec.steps,
            arms={name: dict(arm.sets) for name, arm in arms.items()},
            tunables=tunables,
        )
        self._event("probe", probe_id=spec.probe_id, steps=spec.steps, arms=list(spec.arms))
        return ""

    def rule(self, directive: Directive) -> str:
        """Take a ruling; it is carried out as soon as the step in progress allows. Returns why not."""
        ruling, probe = directive.probe, self._probe
        assert isinstance(ruling, Ruling)
        if probe is None or ruling.probe_id != probe.spec.probe_id:
            return f"probe {ruling.probe_id} is not under way"
        unknown = sorted({*ruling.stop, *((ruling.adopt,) if ruling.adopt else ())} - probe.spec.arms.keys())
        if unknown:
            return f"probe {ruling.probe_id} has no arm {unknown[0]}"
        if ruling.adopt:
            arm = probe.arms[ruling.adopt]
            running = probe.running == ruling.adopt and bool(arm.taken) and not self._session.poisoned
            if arm.end is None and not running:
                return f"arm {ruling.adopt} has taken no step that can be gone on from"
            if {**probe.tunables, **arm.sets} != {**probe.tunables, **directive.values}:
                return f"the document does not set what arm {ruling.adopt} was trained with"
        for name in ruling.stop:
            probe.arms[name].stopped = True
        if ruling.adopt:
            self._adopt(probe, ruling.adopt)
        elif ruling.end:
            self.cancel("the controller ended it")
        return ""

    def after_step(self, stepped: Stepped) -> None:
        """A step of the run itself has ended: one of `control`, if there is a probe. The last one lets the others begin."""
        probe = self._probe
        if probe is None:
            return
        self._note(probe, CONTROL, stepped)
        if len(probe.arms[CONTROL].taken) < probe.spec.steps:
            return
        self._others(probe)

    def cancel(self, reason: str) -> None:
        """End the probe: the run goes on where `control` ended."""
        probe = self._probe
        if probe is None:
            return
        self._return(probe)
        self._finish(probe, "control", reason)

    def _others(self, probe: _Underway) -> None:
        state = self._session.state
        probe.arms[CONTROL].end = self._savepoints.snapshot()
        self.standstill = Standstill(state.step, state.branch, state.compute, dict(self._session.tunables))
        for name, arm in list(probe.arms.items()):
            if name == CONTROL or arm.stopped or self._session.stopping:
                continue
            self._run(probe, name, arm)
            if self._probe is not probe:
                return
        self._write(kind="waiting")
        deadline = time.monotonic() + probe.spec.wait_seconds
        while self._probe is probe and not self._session.stopping and time.monotonic() < deadline:
            self._watch.switch(Phase.idle)
            time.sleep(WAIT_SECONDS)
            self._ask()
        if self._probe is probe:
            self.cancel("the run was told to stop" if self._session.stopping else "no ruling came in time")

    def _run(self, probe: _Underway, name: str, arm: _Arm) -> None:
        """Train one arm from the snapshot, until it has all its steps or is not needed any more."""
        self._fork(probe.start)
        self._session.tunables.update(arm.sets)
        probe.running = name
        while len(arm.taken) < probe.spec.steps and not arm.stopped:
            stepped = self._stepper.step()
            if stepped is None:
                break
            self._note(probe, name, stepped)
            self._watch.switch(Phase.idle)
            self._ask()
            if self._probe is not probe:
                return
        if arm.taken and not self._session.poisoned:
            arm.end = self._savepoints.snapshot()

    def _adopt(self, probe: _Underway, name: str) -> None:
        """Go on from an arm, on a new branch that began at the snapshot. Its steps become the run's."""
        arm, at = probe.arms[name], self.standstill
        assert at is not None  # an arm has taken a step, so `control` has ended
        self._fork(arm.end or self._savepoints.snapshot(), at.branch + 1)
        self._session.tunables.clear()
        self._session.tunables.update({**probe.tunables, **arm.sets})
        self._session.state.forks = {**self._session.state.forks, at.branch + 1: probe.step}
        self.standstill = None
        for stepped in arm.taken:
            self._record(replace(stepped, report=replace(stepped.report, branch=at.branch + 1)))
        self._finish(probe, name, f"adopted {name}")
        self._settled()

    def _return(self, probe: _Underway) -> None:
        if self.standstill is None:
            return  # `control` is still on its way: the run is where it is
        end = probe.arms[CONTROL].end
        assert end is not None
        self._fork(end)
        self._session.tunables.clear()
        self._session.tunables.update(self.standstill.tunables)
        self.standstill = None

    def _fork(self, snapshot: Snapshot, branch: int | None = None) -> None:
        """Put a snapshot in force under a version that was never used, and give its weights to the generator."""
        now = self._session.state.version
        self._savepoints.fork(snapshot, Version(now.branch if branch is None else branch, now.n + 1))
        self._session.poisoned = False
        self._stepper.publish()
        self._session.collector.forget_counts()
        self._watch.lap()

    def _finish(self, probe: _Underway, outcome: str, reason: str) -> None:
        spent = {name: _device_seconds(arm.taken) for name, arm in probe.arms.items()}
        self._probe = None
        self._write(probe.spec.probe_id, kind="end", outcome=outcome, reason=reason, device_seconds=spent)
        extra = sum(seconds for name, seconds in spent.items() if name != outcome)
        self._event(
            "probe_end", probe_id=probe.spec.probe_id, outcome=outcome, reason=reason, device_seconds_not_kept=extra
        )

    def _note(self, probe: _Underway, name: str, stepped: Stepped) -> None:
        arm, report = probe.arms[name], stepped.report
        arm.taken.append(stepped)
        rollouts = report.rollouts
        self._write(
            kind="step",
            arm=name,
            t=len(arm.taken),
            step=report.step,
            prompts=[[*scored.item, scored.passed, len(scored.verdicts)] for scored in stepped.batch],
            device_seconds=sum(report.device_seconds.values()),
            truncated=rollouts.truncated / len(rollouts.lengths),
            grad_norm=report.grad_norm,
            mismatch_kl=report.mismatch_kl,
            clipped_ratio=report.clipped_ratio,
            skipped=report.skipped,
        )

    def _write(self, probe_id: str = "", /, **fields: Any) -> None:
        path = self._path(probe_id or self.probe_id)
        path.parent.mkdir(exist_ok=True)
        append_line(path, {key: finite(value) for key, value in fields.items()} | {"time": time.time()})

    def _path(self, probe_id: str) -> Path:
        return self._rundir.probes / f"{probe_id}.jsonl"


def _device_seconds(taken: Sequence[Stepped]) -> float:
    return sum(sum(stepped.report.device_seconds.values()) for stepped in taken)
