"""The control of a run with a tracker beside it: reports go to the agent first, then into the queue."""

from controlplane.agent import BoundaryState, Directive
from controlplane.contract.documents import AckState
from controlplane.contract.reports import CheckpointReport, EvalReport, StepReport
from trainer.control import Control
from trainer.logs.figures import of_evaluation, of_step
from trainer.logs.queue import LogQueue


class Logged:
    """Implements `Control` around another one."""

    def __init__(self, control: Control, queue: LogQueue) -> None:
        self._control, self._queue = control, queue

    def step(self, report: StepReport) -> None:
        self._control.step(report)
        self._queue.put(of_step(report))

    def evaluation(self, report: EvalReport) -> None:
        self._control.evaluation(report)
        self._queue.put(of_evaluation(report))

    def checkpoint(self, report: CheckpointReport) -> None:
        self._control.checkpoint(report)

    def boundary(self, state: BoundaryState) -> Directive | None:
        return self._control.boundary(state)

    def acknowledge(
        self, directive: Directive, state: AckState, at_step: int, readback: dict[str, float], reason: str = ""
    ) -> None:
        self._control.acknowledge(directive, state, at_step, readback, reason)
