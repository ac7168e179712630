"""The control point: what may change a run from outside, and when. Between two steps, and nowhere else.

agent.boundary -> directive? -> action -> values -> acknowledge what is in force
     ^                                                   |
     +------------------ while paused -------------------+
"""

import time
from collections.abc import Callable
from typing import Protocol

from controlplane.agent import BoundaryState, Directive
from controlplane.contract.documents import AckState, Action, CheckpointState, Phase, Probe, Ruling
from controlplane.contract.reports import CheckpointReport, EvalReport, StepReport
from trainer.checkpoint.store import CheckpointError
from trainer.diary import Diary
from trainer.probe import Probing
from trainer.rollback import Savepoints
from trainer.session import Session
from trainer.stopwatch import Stopwatch

ACTIONS = (Action.none, Action.checkpoint, Action.rollback, Action.pause, Action.resume, Action.stop, Action.probe)
PAUSE_SECONDS = 0.1
"""How often a paused run asks whether it may go on."""


class Control(Protocol):
    """What the step machine needs of `controlplane.agent.Agent`."""

    def step(self, report: StepReport) -> None: ...
    def evaluation(self, report: EvalReport) -> None: ...
    def checkpoint(self, report: CheckpointReport) -> None: ...
    def boundary(self, state: BoundaryState) -> Directive | None: ...
    def acknowledge(
        self, directive: Directive, state: AckState, at_step: int, readback: dict[str, float], reason: str = ""
    ) -> None: ...


class ControlPoint:
    """Carries out directives. `checkpoint` and `publish` are the step machine's."""

    def __init__(
        self,
        session: Session,
        control: Control,
        savepoints: Savepoints,
        states: Callable[[], tuple[CheckpointState, ...]],
        checkpoint: Callable[[], bool],
        publish: Callable[[], object],
        diary: Diary,
        watch: Stopwatch,
    ) -> None:
        self._session, self._control, self._savepoints, self._states = session, control, savepoints, states
        self._checkpoint, self._publish, self._diary, self._watch = checkpoint, publish, diary, watch
        self._paused = False
        self.probing: Probing | None = None
        """Set by the step machine once it exists: the two call each other."""

    def pass_through(self) -> None:
        """Carry out what the agent hands over; while paused, ask again until told to go on."""
        while True:
            if self.probing is not None:
                self.probing.look()
            directive = self._control.boundary(self._boundary())
            if directive is not None:
                self._carry_out(directive)
            if not self._paused or self._session.stopping:
                return
            self._watch.switch(Phase.idle)
            time.sleep(PAUSE_SECONDS)

    def _boundary(self) -> BoundaryState:
        state, phase = self._session.state, Phase.idle if self._paused else Phase.training
        still, probe = (self.probing.standstill, self.probing.probe_id) if self.probing else (None, "")
        step, branch, compute = state.step, state.branch, state.compute
        if still is not None:  # an arm is in force; the run itself stands where `control` ended
            step, branch, compute = still.step, still.branch, still.compute
        tunables = self.probing.tunables if self.probing else dict(self._session.tunables)
        return BoundaryState(step, branch, compute, tunables, self._states(), phase, probe, still is not None)

    def _carry_out(self, directive: Directive) -> None:
        """Action first, then values; then say what is in force."""
        refusal, session = "", self._session
        if self.probing is not None and not isinstance(directive.probe, Ruling):
            self.probing.make_way(directive)
        match directive.action:
            case Action.rollback:
                refusal = self._rollback(directive)
            case Action.checkpoint if session.poisoned:
                refusal = "the last step was not finite; such a step is not checkpointed"
            case Action.checkpoint if not self._checkpoint():
                refusal = "the checkpoint could not be written"
            case Action.probe:
                refusal = self._probe(directive)
            case Action.pause | Action.resume:
                self._paused = directive.action is Action.pause
                self._diary.event(session.state, directive.action.value, decision_id=directive.decision_id)
            case Action.stop:
                session.stopping = session.stopping or f"decision {directive.decision_id}"
        if not refusal:
            session.tunables.update(directive.values)
        answer = AckState.rejected if refusal else AckState.applied
        self._control.acknowledge(directive, answer, session.state.step, dict(session.tunables), refusal)

    def _probe(self, directive: Directive) -> str:
        """Begin a probe, or take a ruling on the one under way. Returns why not."""
        assert self.probing is not None
        return (self.probing.begin if isinstance(directive.probe, Probe) else self.probing.rule)(directive)

    def _rollback(self, directive: Directive) -> str:
        """Returns why not, with nothing changed; empty when done."""
        assert directive.target is not None
        self._watch.switch(Phase.checkpointing)
        try:
            done = self._savepoints.rollback(directive.target, directive.values)
        except CheckpointError as error:
            return str(error)
        self._publish()
        state = self._session.state
        self._diary.event(state, "checkpoint", name=done.checkpoint, digest=done.digest)
        fields = {**vars(done), "skipped": [list(item) for item in done.skipped]}
        self._diary.event(
            state,
            "rollback",
            decision_id=directive.decision_id,
            reason=directive.reason,
            tunables=dict(directive.values),
            **fields,
        )
        return ""
