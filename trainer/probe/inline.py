"""Arms one after the other, in place of the run, from one snapshot in memory: no second machine, but the run waits.

    snapshot in memory
         |
         v
    the run goes on for n steps: arm `control`, an ordinary part of the run
         |
         v
    for each other arm: back to the snapshot, set its tunables, n steps        a ruling may stop an arm, adopt one, or end
         |
         v
    adopted: the run goes on from that arm, on a new branch that began at the snapshot; its steps are written down as the run's
    not adopted: the run goes on where `control` ended, bit for bit as if the others had never been

While other arms are trained, the run stands still for everybody outside: step, branch and tunables stay those of the end of
`control`. An adoption is in the record once its checkpoint is on disk.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from controlplane.agent import Directive
from controlplane.contract.documents import CONTROL, Action, Phase, Probe, Ruling
from trainer.probe.arms import Arm, Machine, Standstill, arms_of
from trainer.probe.record import Record
from trainer.stepper import Stepped

WAIT_SECONDS = 0.1
"""How often a probe that waits for its ruling asks for it."""


class Inline:
    """An `Underway`. `over` ends it, `record` and `settled` make the steps of an adopted arm the run's own."""

    def __init__(
        self,
        machine: Machine,
        spec: Probe,
        arms: Mapping[str, Mapping[str, float]],
        record: Record,
        over: Callable[[str, str, float], None],
        keep: Callable[[Stepped], None],
        settled: Callable[[], None],
        ask: Callable[[], None],
    ) -> None:
        """Take the snapshot; from now on the run is also the arm `control`."""
        session = machine.session
        self.probe_id, self._spec = spec.probe_id, spec
        self._machine, self._record, self._over = machine, record, over
        self._keep, self._settled, self._ask = keep, settled, ask
        self._start, self._step = machine.savepoints.snapshot(), session.state.step
        self._values = dict(session.tunables)
        self.arms = arms_of(arms)
        self._running, self._ended = CONTROL, False
        self.standstill: Standstill | None = None
        record.begin(self._step, spec.steps, arms, self._values)

    @property
    def tunables(self) -> Mapping[str, float] | None:
        return self.standstill.tunables if self.standstill else None

    def rule(self, ruling: Ruling) -> str:
        if ruling.adopt:
            arm = self.arms[ruling.adopt]
            running = self._running == ruling.adopt and arm.taken > 0 and not self._machine.session.poisoned
            if arm.end is None and not running:
                return f"arm {ruling.adopt} has taken no step that can be gone on from"
        for name in ruling.stop:
            self.arms[name].stopped = True
        if ruling.adopt:
            self._adopt(ruling.adopt)
        elif ruling.end:
            self.cancel("the controller ended it")
        return ""

    def disturbed_by(self, directive: Directive) -> bool:
        """Saving what the run does anyway is in nobody's way."""
        return directive.action is not Action.checkpoint or bool(directive.values) or self.standstill is not None

    def look(self) -> None:
        """Nothing happens beside the run."""

    def before_step(self) -> None:
        """`control` is the run as it is."""

    def after_step(self, stepped: Stepped) -> None:
        """A step of `control`. The last one lets the others begin."""
        control = self.arms[CONTROL]
        control.taken += 1
        self._record.step(CONTROL, control.taken, stepped)
        if control.taken == self._spec.steps:
            self._others()

    def cancel(self, reason: str) -> None:
        self._return()
        self._finish(CONTROL, reason, (CONTROL,))

    def _others(self) -> None:
        machine, session = self._machine, self._machine.session
        state = session.state
        self.arms[CONTROL].end = machine.savepoints.snapshot()
        self.standstill = Standstill(state.step, state.branch, state.compute, dict(session.tunables))
        for name, arm in list(self.arms.items()):
            if name == CONTROL or arm.stopped or session.stopping:
                continue
            self._run(name, arm)
            if self._ended:
                return
        self._record.waiting()
        deadline = time.monotonic() + self._spec.wait_seconds
        while not self._ended and not session.stopping and time.monotonic() < deadline:
            machine.watch.switch(Phase.idle)
            time.sleep(WAIT_SECONDS)
            self._ask()
        if not self._ended:
            self.cancel("the run was told to stop" if session.stopping else "no ruling came in time")

    def _run(self, name: str, arm: Arm) -> None:
        """Train one arm from the snapshot, until it has all its steps or is not needed any more."""
        machine = self._machine
        machine.fork(self._start)
        machine.session.tunables.update(self._values)
        self._running = name

        def each(stepped: Stepped) -> bool:
            arm.kept.append(stepped)
            self._record.step(name, arm.taken, stepped)
            machine.watch.switch(Phase.idle)
            self._ask()
            return not self._ended

        machine.train(arm, self._spec.steps, each)
        if arm.taken and not self._ended and not machine.session.poisoned:
            arm.end = machine.savepoints.snapshot()

    def _adopt(self, name: str) -> None:
        """Go on from an arm, on a new branch that began at the snapshot. Its steps become the run's."""
        machine, arm, at = self._machine, self.arms[name], self.standstill
        assert at is not None  # an arm has taken a step, so `control` has ended
        machine.fork(arm.end or machine.savepoints.snapshot(), at.branch + 1)
        session = machine.session
        session.tunables.clear()
        session.tunables.update({**self._values, **arm.sets})
        session.state.forks = {**session.state.forks, at.branch + 1: self._step}
        self.standstill = None
        for stepped in arm.kept:
            self._keep(replace(stepped, report=replace(stepped.report, branch=at.branch + 1)))
        self._settled()
        self._finish(name, f"adopted {name}", (name,))

    def _return(self) -> None:
        if self.standstill is None:
            return  # `control` is still on its way: the run is where it is
        end = self.arms[CONTROL].end
        assert end is not None
        self._machine.fork(end)
        self._machine.session.tunables.clear()
        self._machine.session.tunables.update(self.standstill.tunables)
        self.standstill = None

    def _finish(self, outcome: str, reason: str, kept: tuple[str, ...]) -> None:
        self._ended = True
        self._over(outcome, reason, self._record.end(outcome, reason, kept))
