"""Arms in place of the run, from one snapshot in memory: no second machine, but the run waits.

    snapshot in memory
         |
         v
    a turn of the run itself: arm `control`, an ordinary part of the run  <-----------------+
         |                                                                                  |
         v                                                                                  | it has caught up,
    the arm that is compared now: from the snapshot with its tunables, then from where      | and nothing is proved
    it stood, until it has as many steps as `control`  -------------------------------------+
         |                                                     a ruling may stop it (then the next one is compared), adopt it, or end
         v
    adopted: the run goes on from that arm, on a new branch that began at the snapshot; its steps are written down as the run's
    not adopted: the run goes on where `control` stands, bit for bit as if the others had never been

While another arm is trained, the run stands still for everybody outside: step, branch and tunables stay those of `control`. An
adoption is in the record once its checkpoint is on disk.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from controlplane.agent import Directive
from controlplane.contract.documents import CONTROL, Action, Phase, Probe, Ruling
from trainer.probe.arms import Machine, Standstill, arms_of, turn
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
        self._running, self._ended, self._poisoned = CONTROL, False, False
        first = turn(self.arms, spec.steps)
        assert first is not None  # a probe has an arm and a step
        _, self._until = first
        self.standstill: Standstill | None = None
        record.begin(self._step, spec.steps, arms, self._values)

    @property
    def tunables(self) -> Mapping[str, float] | None:
        return self.standstill.tunables if self.standstill else None

    def rule(self, ruling: Ruling) -> str:
        if ruling.adopt:
            arm = self.arms[ruling.adopt]
            running = self._running == ruling.adopt and arm.taken > 0 and not self._machine.session.poisoned
            if arm.stopped:
                return f"arm {ruling.adopt} was given up"
            if arm.end is None and not running:
                return f"arm {ruling.adopt} has taken no step that can be gone on from"
        for name in ruling.stop:
            self._stop(name)
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
        """A step of `control`. The last one of its turn lets another arm go on."""
        control = self.arms[CONTROL]
        control.taken += 1
        self._record.step(CONTROL, control.taken, stepped)
        if control.taken == self._until:
            self._others()

    def cancel(self, reason: str) -> None:
        self._return()
        self._finish(CONTROL, reason, (CONTROL,))

    def _others(self) -> None:
        """The arms beside `control`, until it is its turn again or none of them has a step left to take."""
        machine, session = self._machine, self._machine.session
        state = session.state
        self.arms[CONTROL].end, self._poisoned = machine.savepoints.snapshot(), session.poisoned
        self.standstill = Standstill(state.step, state.branch, state.compute, dict(session.tunables))
        while not session.stopping and (next_ := turn(self.arms, self._spec.steps)):
            name, until = next_
            if name == CONTROL:
                self._until = until
                return self._return()
            self._go_on(name, until)
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

    def _go_on(self, name: str, until: int) -> None:
        """Train one arm from where it stands, until it has so many steps or is not needed any more."""
        machine, arm = self._machine, self.arms[name]
        machine.fork(arm.end or self._start)
        machine.session.tunables.update(self._values)
        self._running, arm.end = name, None

        def each(stepped: Stepped) -> bool:
            arm.kept.append(stepped)
            self._record.step(name, arm.taken, stepped)
            machine.watch.switch(Phase.idle)
            self._ask()
            return not self._ended

        machine.train(arm, until, each)
        if self._ended:
            return
        if machine.session.poisoned:
            self._stop(name)
        elif arm.taken and not arm.stopped:
            arm.end = machine.savepoints.snapshot()

    def _stop(self, name: str) -> None:
        """An arm that was given up needs no memory any more; it cannot be adopted then."""
        arm = self.arms[name]
        if not arm.stopped:
            arm.stopped, arm.end = True, None
            arm.kept.clear()
            self._record.stopped(name)

    def _adopt(self, name: str) -> None:
        """Go on from an arm, on a new branch that began at the snapshot. Its steps become the run's."""
        machine, arm = self._machine, self.arms[name]
        session = machine.session
        branch = (self.standstill.branch if self.standstill else session.state.branch) + 1
        machine.fork(arm.end or machine.savepoints.snapshot(), branch)
        session.tunables.clear()
        session.tunables.update({**self._values, **arm.sets})
        session.state.forks = {**session.state.forks, branch: self._step}
        self.standstill = None
        for stepped in arm.kept:
            self._keep(replace(stepped, report=replace(stepped.report, branch=branch)))
        self._settled()
        self._finish(name, f"adopted {name}", (name,))

    def _return(self) -> None:
        if self.standstill is None:
            return  # it is the turn of `control`: the run is where it is
        end = self.arms[CONTROL].end
        assert end is not None
        self._machine.fork(end)
        self._machine.session.poisoned, self._running = self._poisoned, CONTROL
        self._machine.session.tunables.clear()
        self._machine.session.tunables.update(self.standstill.tunables)
        self.standstill = None

    def _finish(self, outcome: str, reason: str, kept: tuple[str, ...]) -> None:
        self._ended = True
        self._over(outcome, reason, self._record.end(outcome, reason, kept))
