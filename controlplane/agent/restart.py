"""Rollback by ending: for trainers that cannot restore a checkpoint in the process that they are.

    Agent.leave -> control/resume.json -> exit RESUME_EXIT -> scalerl supervise -> new process, Agent(resumed_at=...) -> ack

The decision stays open while the trainer is down and is closed by the new process: `applied` if it came up at the target,
`failed` otherwise. So a decision is still answered once, whatever dies on the way.
"""

from collections.abc import Mapping

from pydantic import ValidationError

from controlplane.agent.boundary import Directive
from controlplane.agent.mailbox import read_key
from controlplane.agent.memory import Answered, Received
from controlplane.contract.documents import Ack, AckState, Resume
from controlplane.contract.rundir import RunDir, write_atomic

RESUME_EXIT = 85
"""Exit code of a trainer that wants to be started again with `control/resume.json`. No shell or signal uses it."""


def write(rundir: RunDir, run_uid: str, directive: Directive, checkpoint: str, step: int) -> None:
    """Leave the message for the supervisor, signed, on the disk when this returns."""
    assert directive.target is not None
    resume = Resume(
        run_uid=run_uid,
        decision_id=directive.decision_id,
        generation=directive.generation,
        target=directive.target,
        checkpoint=checkpoint,
        values=dict(directive.values),
        handed_out_at=step,
        reason=directive.reason,
    )
    write_atomic(rundir.resume, resume.signed(read_key(rundir)).model_dump_json() + "\n", durable=True)


def read(rundir: RunDir) -> Resume | None:
    """The message, if there is one that the key of this run has signed."""
    try:
        resume = Resume.model_validate_json(rundir.resume.read_bytes())
        return resume if resume.verified(read_key(rundir)) else None
    except (OSError, ValidationError, ValueError):
        return None


def closing(
    open_: Received, left: Resume | None, resumed_at: int | None, values: Mapping[str, float], step: int, at: float
) -> Answered:
    """The answer to a decision that the last process left open. Pure."""

    def answer(state: AckState, reason: str, at_step: int) -> Ack:
        return Ack(
            decision_id=open_.decision_id, generation=open_.generation, state=state, reason=reason, at_step=at_step
        )

    if left is None or left.decision_id != open_.decision_id:
        reason = "the process ended before this decision was acknowledged; it is not tried again"
        return Answered(at=at, ack=answer(AckState.failed, reason, step), action=open_.action)
    if resumed_at != left.target.step:
        where = "without saying from which step" if resumed_at is None else f"at step {resumed_at}"
        reason = f"the trainer was to come up again at step {left.target.step}, and came up {where}"
        return Answered(at=at, ack=answer(AckState.failed, reason, step), action=open_.action)
    ack = answer(AckState.applied, left.reason, left.target.step)
    return Answered(
        at=at,
        ack=ack.model_copy(update={"readback": left.values}),
        action=open_.action,
        epoch=open_.epoch,
        before={name: values[name] for name in left.values if name in values},
        after=left.values,
        set=tuple(left.values),
        handed_out_at=left.handed_out_at,
        target_step=left.target.step,
    )
