"""The trainer's own limits, and the one place where a desired document is admitted or refused. Pure.

    desired document --admit--> Directive   carry it out now
                            \\-> Wait        valid, but meant for a later step
                            \\-> Refusal     rejected or expired, with one sentence that says why

Nobody can loosen the rails from outside: every value that leaves `admit` lies inside the bounds and within the largest
relative change, whoever asked. docs/contract.md lists the checks in order.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from controlplane.agent.boundary import BoundaryState, Directive
from controlplane.agent.memory import Memory
from controlplane.contract.documents import AckState, Action, Desired, Health, Probe, Target
from controlplane.contract.tunables import TUNABLES


class Bounds(BaseModel):
    """Closed interval in the unit of the tunable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: float = Field(allow_inf_nan=False)
    max: float = Field(allow_inf_nan=False)

    @model_validator(mode="after")
    def _ordered(self) -> "Bounds":
        if self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class GuardRails(BaseModel):
    """Limits that the trainer's recipe sets and no controller can loosen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bounds: dict[str, Bounds] = {}
    """Bounds by tunable; a tunable without an entry has the widest bounds of `contract.tunables`."""
    max_relative_change: float = Field(default=2.0, gt=1, allow_inf_nan=False)
    """Largest factor, up or down, by which one decision may change a tunable; whole tunables may always move by one."""
    cooldown_steps: int = Field(default=10, ge=0)
    """Steps between two changes of tunables; a rollback, an action without new values and a lapsed lease do not wait."""
    max_rollbacks: int = Field(default=2, ge=0)
    """Rollbacks per run, failed ones included; after that a person has to look."""

    @model_validator(mode="after")
    def _inside_specs(self) -> "GuardRails":
        for name, bounds in self.bounds.items():
            spec = TUNABLES.get(name)
            if spec is None:
                raise ValueError(f"unknown tunable {name!r}; known are {', '.join(TUNABLES)}")
            if bounds.min < spec.lowest or bounds.max > spec.highest:
                raise ValueError(f"bounds of {name} must lie within {spec.lowest:g} and {spec.highest:g}")
            if spec.whole and not (bounds.min.is_integer() and bounds.max.is_integer()):
                raise ValueError(f"bounds of {name} must be whole numbers")
        return self

    def of(self, name: str) -> Bounds:
        """Bounds in force for a tunable."""
        spec = TUNABLES[name]
        return self.bounds.get(name) or Bounds(min=spec.lowest, max=spec.highest)

    def inside(self, name: str, value: float) -> float:
        """The nearest value inside the bounds, rounded where the tunable is whole."""
        bounds = self.of(name)
        clipped = min(max(value, bounds.min), bounds.max)
        return float(round(clipped)) if TUNABLES[name].whole else clipped

    def step_to(self, name: str, wanted: float, current: float) -> float:
        """As near to `wanted` as one decision may go from `current`: relative change first, then the bounds."""
        low, high = current / self.max_relative_change, current * self.max_relative_change
        if TUNABLES[name].whole:
            low, high = math.ceil(min(low, current - 1)), math.floor(max(high, current + 1))
        elif current == 0:
            high = math.inf  # no factor leads away from zero
        return self.inside(name, min(max(wanted, low), high))


@dataclass(frozen=True)
class Situation:
    """Everything `admit` looks at beside the document."""

    run_uid: str
    incarnation: str
    actions: tuple[Action, ...]
    boundary: BoundaryState
    memory: Memory


@dataclass(frozen=True)
class Wait:
    """Valid, but `apply_from_step` is still to come."""


@dataclass(frozen=True)
class Refusal:
    """Not carried out, now or later. `fenced`: not believed to come from the controller in charge of this process."""

    reason: str
    state: Literal[AckState.rejected, AckState.expired] = AckState.rejected
    fenced: bool = False


Verdict = Directive | Wait | Refusal


def admit(desired: Desired, state: Situation, rails: GuardRails) -> Verdict:
    """Whether a document, whose signature was checked before, may be carried out at this boundary."""
    return (
        _not_ours(desired, state)
        or _out_of_order(desired, state.memory)
        or _out_of_time(desired, state.boundary.step)
        or _not_possible(desired, state, rails)
        or _directive(desired, state, rails)
    )


def _not_ours(desired: Desired, state: Situation) -> Refusal | None:
    memory = state.memory
    if desired.run_uid != state.run_uid:
        return Refusal(f"written for run {desired.run_uid}; this is {state.run_uid}", fenced=True)
    if desired.incarnation != state.incarnation:
        return Refusal(f"written for incarnation {desired.incarnation}; this is {state.incarnation}", fenced=True)
    if desired.epoch < memory.epoch:
        return Refusal(
            f"epoch {desired.epoch} is fenced off; a controller with epoch {memory.epoch} is in charge", fenced=True
        )
    return None


def _out_of_order(desired: Desired, memory: Memory) -> Refusal | None:
    if desired.decision_id in memory.answers:
        return Refusal(
            f"decision {desired.decision_id} was answered before: {memory.answers[desired.decision_id].state}"
        )
    newest = max(memory.newest_generation if desired.epoch == memory.epoch else 0, memory.applied_generation)
    if desired.generation <= newest and desired.decision_id != memory.waiting:
        return Refusal(f"generation {desired.generation} is not newer than {newest}")
    if desired.base_generation != memory.applied_generation:
        return Refusal(f"based on generation {desired.base_generation}, but {memory.applied_generation} is in force")
    return None


def _out_of_time(desired: Desired, step: int) -> Refusal | Wait | None:
    if step > desired.expires_at_step:
        return Refusal(f"expired at step {desired.expires_at_step}; this is step {step}", AckState.expired)
    return Wait() if desired.apply_from_step > step else None


def _not_possible(desired: Desired, state: Situation, rails: GuardRails) -> Refusal | None:
    if state.memory.poisoned and not (desired.action is Action.stop and not desired.set and desired.lease is None):
        return Refusal(f"only stop is accepted until the trainer is restarted: {state.memory.poisoned}")
    if desired.action is not Action.none and desired.action not in state.actions:
        return Refusal(
            f"action {desired.action} is not supported; this trainer can {', '.join(state.actions) or 'do none'}"
        )
    if desired.target is not None and (refusal := _bad_target(desired.target, state, rails)):
        return refusal
    return _bad_values(desired, state, rails)


def _bad_target(target: Target, state: Situation, rails: GuardRails) -> Refusal | None:
    at_step = [checkpoint for checkpoint in state.boundary.checkpoints if checkpoint.step == target.step]
    found = [checkpoint for checkpoint in at_step if checkpoint.digest == target.digest]
    if not at_step:
        return Refusal(f"there is no checkpoint of step {target.step}")
    if not found:
        return Refusal(f"the checkpoint of step {target.step} has digest {at_step[0].digest}, not {target.digest}")
    if found[0].health is not Health.good:
        return Refusal(f"the checkpoint of step {target.step} is {found[0].health}; a rollback goes to a good one only")
    if target.step > state.boundary.step:
        return Refusal(f"the checkpoint of step {target.step} lies ahead of step {state.boundary.step}")
    if state.memory.rollbacks >= rails.max_rollbacks:
        return Refusal(f"all {rails.max_rollbacks} rollbacks of this run are used up")
    return None


def _bad_values(desired: Desired, state: Situation, rails: GuardRails) -> Refusal | None:
    memory, boundary = state.memory, state.boundary
    arms = desired.probe.arms.values() if isinstance(desired.probe, Probe) else ()
    for name in {*desired.set, *(desired.lease.revert_to if desired.lease else {}), *(n for arm in arms for n in arm)}:
        if name not in boundary.values:
            return Refusal(f"tunable {name} is not supported; this trainer has {', '.join(boundary.values) or 'none'}")
    # A lease that starts with a rollback counts in steps of the new branch.
    starts = boundary.step if desired.target is None else desired.target.step
    if desired.lease and desired.lease.until_step <= starts:
        return Refusal(f"the lease ends at step {desired.lease.until_step}, which is not after step {starts}")
    if desired.action is Action.rollback or memory.last_change is None:
        return None
    until = memory.last_change + rails.cooldown_steps
    changes = [
        name for name, value in _values(desired, boundary.values, rails).items() if value != boundary.values[name]
    ]
    if changes and boundary.step < until:
        return Refusal(f"tunables changed at step {memory.last_change}; the cooldown lasts until step {until}")
    return None


def _values(desired: Desired, current: Mapping[str, float], rails: GuardRails) -> dict[str, float]:
    return {
        name: rails.step_to(name, setting.resolve(current[name]), current[name])
        for name, setting in desired.set.items()
    }


def _arms(desired: Desired, current: Mapping[str, float], rails: GuardRails) -> dict[str, dict[str, float]]:
    if not isinstance(desired.probe, Probe):
        return {}
    return {
        arm: {
            name: rails.step_to(name, setting.resolve(current[name]), current[name]) for name, setting in sets.items()
        }
        for arm, sets in desired.probe.arms.items()
    }


def _directive(desired: Desired, state: Situation, rails: GuardRails) -> Directive:
    return Directive(
        decision_id=desired.decision_id,
        generation=desired.generation,
        values=_values(desired, state.boundary.values, rails),
        action=desired.action,
        target=desired.target,
        probe=desired.probe,
        arms=_arms(desired, state.boundary.values, rails),
        reason=desired.reason,
    )
