"""The run itself takes turns between the values in force and those of one arm: no snapshot, no second machine, nothing thrown away.

    control | arm | arm | control       segments of the run, each of the same number of steps, in the order of the directive

Every step is an ordinary step of the run; only its tunables are those of the segment, set before it and put back after it. So
there is nothing to undo but the values. What an arm has done to the weights stays, whatever the verdict: that is the price,
and why the tunables that may be probed so are fewer (controlplane/policy/tuning.py).
"""

import time
from collections.abc import Callable, Mapping

from controlplane.agent import Directive
from controlplane.contract.documents import CONTROL, Action, Probe, Ruling
from trainer.probe.arms import Machine, Standstill, arms_of
from trainer.probe.record import Record
from trainer.stepper import Stepped


class Switchback:
    """An `Underway`. `over` ends it."""

    def __init__(
        self,
        machine: Machine,
        spec: Probe,
        arms: Mapping[str, Mapping[str, float]],
        record: Record,
        over: Callable[[str, str, float], None],
    ) -> None:
        self.probe_id, self._spec = spec.probe_id, spec
        self._session, self._record, self._over = machine.session, record, over
        self._values = dict(machine.session.tunables)
        self.arms = arms_of(arms)
        self._turns = [name for name in spec.segments for _ in range(spec.segment_steps)]
        self._done, self._deadline = 0, 0.0
        self.standstill: Standstill | None = None
        record.begin(machine.session.state.step, spec.steps, arms, self._values)

    @property
    def tunables(self) -> Mapping[str, float]:
        return self._values

    def rule(self, ruling: Ruling) -> str:
        if ruling.adopt:
            if not self.arms[ruling.adopt].taken:
                return f"arm {ruling.adopt} has taken no step"
            self._finish(ruling.adopt, f"adopted the values of {ruling.adopt}")
        else:
            self.cancel("the controller ended it" if ruling.end else f"arm {ruling.stop[0]} was stopped")
        return ""

    def disturbed_by(self, directive: Directive) -> bool:
        """A pause or a checkpoint is in the way of no segment."""
        return bool(directive.values) or directive.action in (Action.rollback, Action.probe)

    def look(self) -> None:
        """For how long is a ruling waited for?"""
        if self._done == len(self._turns) and time.monotonic() >= self._deadline:
            self.cancel("no ruling came in time")

    def before_step(self) -> None:
        """The step belongs to a segment: its tunables."""
        if self._done < len(self._turns):
            self._session.tunables.update(self.arms[self._turns[self._done]].sets)

    def after_step(self, stepped: Stepped) -> None:
        if self._done == len(self._turns):
            return
        name = self._turns[self._done]
        self._done += 1
        self.arms[name].taken += 1
        self._session.tunables.update(self._values)
        self._record.step(name, self._done, stepped)
        if self._done == len(self._turns):
            self._record.waiting()
            self._deadline = time.monotonic() + self._spec.wait_seconds

    def cancel(self, reason: str) -> None:
        self._finish(CONTROL, reason)

    def _finish(self, outcome: str, reason: str) -> None:
        self._session.tunables.update(self._values)
        self._over(outcome, reason, self._record.end(outcome, reason, kept=tuple(self.arms)))
