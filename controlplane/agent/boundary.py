"""What the trainer hands over at a step boundary, and what it gets back."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.contract.documents import Action, CheckpointState, Phase, Probe, Ruling, Target


@dataclass(frozen=True)
class BoundaryState:
    """What is true in the trainer between two optimiser steps."""

    step: int
    """Optimiser step of the weights in force."""
    branch: int
    """Raised by one at each rollback."""
    compute: float
    """Device-seconds behind the weights in force."""
    values: Mapping[str, float]
    """Tunables in force, all of them."""
    checkpoints: tuple[CheckpointState, ...] = ()
    phase: Phase = Phase.training
    probe: str = ""
    """The probe that is under way."""
    standing_still: bool = False
    """Arms of it are trained in place of the run: everything else here stays as it was."""


@dataclass(frozen=True)
class Directive:
    """What the trainer shall do at this boundary: carry out `action`, then set `values`. Answered by `acknowledge`.

    `values` are absolute and final: already resolved, rounded and inside the guard rails. With a rollback they are set
    after the restore; tunables that are not named stay as they are in force, not as the checkpoint had them.
    """

    decision_id: str
    generation: int
    values: Mapping[str, float] = field(default_factory=dict)
    action: Action = Action.none
    target: Target | None = None
    probe: Probe | Ruling | None = None
    arms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Of a probe: arm -> tunables, absolute and final like `values`."""
    reason: str = ""
