"""What the agent says: the answer to a directive, and the observed document. Pure; the agent writes it down and shows it."""

from collections.abc import Mapping
from dataclasses import dataclass

from controlplane.agent.boundary import BoundaryState, Directive
from controlplane.agent.guardrails import GuardRails
from controlplane.agent.memory import Answered, Memory
from controlplane.contract.documents import Ack, AckState, Action, Desired, Lease, Observed, TunableState
from controlplane.contract.rundir import RunInfo


@dataclass(frozen=True)
class HandedOut:
    """A directive that waits for its acknowledgement; `desired` is None for a lapsed lease."""

    directive: Directive
    desired: Desired | None
    step: int


def ack_of(desired: Desired, state: AckState, step: int, reason: str) -> Ack:
    """The answer to a document that the trainer was not given, or not yet."""
    return Ack(decision_id=desired.decision_id, generation=desired.generation, state=state, reason=reason, at_step=step)


def answered(
    out: HandedOut,
    state: AckState,
    at_step: int,
    readback: Mapping[str, float],
    reason: str,
    before: Mapping[str, float],
    rails: GuardRails,
    at: float,
) -> Answered:
    """What became of a directive, as the journal keeps it.

    Args:
        state: what the trainer says.
        readback: values in force after it; `before`: those the agent knew.
        at: Unix seconds.
    """
    directive, desired = out.directive, out.desired
    if desired is None and state is AckState.applied:
        state = AckState.reverted
    after = {name: float(value) for name, value in readback.items()}
    rolled_back = directive.target is not None and state is AckState.applied
    return Answered(
        at=at,
        ack=Ack(
            decision_id=directive.decision_id,
            generation=directive.generation,
            state=state,
            reason=reason or directive.reason,
            at_step=at_step,
            readback=after,
        ),
        action=directive.action,
        source="controller" if desired else "lease",
        epoch=desired.epoch if desired else None,
        before={name: before[name] for name in after},
        after=after,
        lease=_inside(rails, desired.lease) if desired else None,
        set=tuple(desired.set) if desired else (),
        handed_out_at=out.step,
        target_step=directive.target.step if rolled_back and directive.target else None,
    )


def observed(
    info: RunInfo,
    incarnation: str,
    state: BoundaryState,
    memory: Memory,
    last_ack: Ack | None,
    rails: GuardRails,
    actions: tuple[Action, ...],
    at: float,
) -> Observed:
    """The observed document: what is true at this boundary."""
    bounds = {name: rails.of(name) for name in state.values}
    return Observed(
        run_uid=info.run_uid,
        incarnation=incarnation,
        branch=state.branch,
        step=state.step,
        planned_steps=info.planned_steps,
        compute=state.compute,
        written_at=at,
        epoch=memory.epoch,
        applied_generation=memory.applied_generation,
        last_ack=last_ack,
        tunables={
            name: TunableState(value=value, min=bounds[name].min, max=bounds[name].max)
            for name, value in state.values.items()
        },
        actions=actions,
        rollbacks_left=max(0, rails.max_rollbacks - memory.rollbacks),
        checkpoints=state.checkpoints,
        phase=state.phase,
        probe=state.probe,
        standing_still=state.standing_still,
    )


def _inside(rails: GuardRails, lease: Lease | None) -> Lease | None:
    if lease is None:
        return None
    revert_to = {name: rails.inside(name, value) for name, value in lease.revert_to.items()}
    return lease.model_copy(update={"revert_to": revert_to})
