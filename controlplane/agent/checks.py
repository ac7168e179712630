"""What a trainer hands to its agent must make sense; a mistake there is a programming error and raises at once. Pure."""

import math
from collections.abc import Mapping

from controlplane.agent.boundary import Directive
from controlplane.agent.guardrails import GuardRails
from controlplane.contract.documents import AckState
from controlplane.contract.tunables import TUNABLES


def check_values(values: Mapping[str, float], rails: GuardRails) -> None:
    """Tunables of a trainer: known, inside the rails, and none missing that the rails name. Raises ValueError."""
    for name, value in values.items():
        if name not in TUNABLES:
            raise ValueError(f"unknown tunable {name!r}; known are {', '.join(TUNABLES)}")
        bounds = rails.of(name)
        if not bounds.min <= value <= bounds.max:
            raise ValueError(f"{name} is {value:g}, outside its guard rails {bounds.min:g} to {bounds.max:g}")
    for name in rails.bounds:
        if name not in values:
            raise ValueError(f"guard rails name {name}, which this trainer does not have")


def check_answer(
    directive: Directive, state: AckState, readback: Mapping[str, float], known: Mapping[str, float]
) -> None:
    """A trainer's answer to a directive: a final state, and every value read back. Raises ValueError."""
    if state not in (AckState.applied, AckState.rejected, AckState.failed, AckState.reverted):
        raise ValueError(f"acknowledge: a trainer answers applied, rejected or failed, not {state}")
    for name, value in readback.items():
        if name not in known or not math.isfinite(value):
            raise ValueError(f"acknowledge: readback of {name} is {value}; it must be a known tunable and finite")
    missing = sorted(directive.values.keys() - readback.keys())
    if missing:
        raise ValueError(f"acknowledge: readback lacks {', '.join(missing)}")
