"""Desired and observed documents: the only way in which a controller and a trainer talk, and what people say to both.

    controller --desired.json--> agent --applies at a step boundary--> observed.json --> controller

The controller writes what it wants; the agent pulls it, applies it at a step boundary and says what is true. If the
controller is gone, nothing changes. A document is safe to read twice, late or out of order: `decision_id` makes it
idempotent, `generation` grows, `epoch` fences an old controller, `base_generation` is a compare-and-set, and past
`expires_at_step` it is refused. Same schema over every transport. See docs/contract.md.

People speak in a third one: `Said` carries an answer to a decision that waits for one, or an order to save, pause, go on or stop.
"""

import hashlib
import hmac
import json
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from controlplane.contract.approvals import Approval, Order
from controlplane.contract.tunables import TUNABLES


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Signed(_Document):
    """A document that is believed only with a signature: HMAC-SHA256 in hex over everything but the signature."""

    signature: str = Field(default="", max_length=200)

    def _payload(self) -> bytes:
        body = self.model_dump(mode="json", exclude={"signature"})
        return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()

    def signed(self, key: bytes) -> Self:
        """The same document with its signature."""
        return self.model_copy(update={"signature": hmac.new(key, self._payload(), hashlib.sha256).hexdigest()})

    def verified(self, key: bytes) -> bool:
        """Whether the signature was made with `key`; compares in constant time."""
        expected = hmac.new(key, self._payload(), hashlib.sha256).hexdigest()
        return hmac.compare_digest(expected.encode(), self.signature.encode(errors="replace"))


class Action(StrEnum):
    """What a desired document asks for, beside new values of tunables."""

    none = "none"
    checkpoint = "checkpoint"
    rollback = "rollback"
    pause = "pause"
    resume = "resume"
    stop = "stop"
    probe = "probe"


class Phase(StrEnum):
    """What the trainer is doing; also the states of `rl_trainer_state`."""

    generating = "generating"
    verifying = "verifying"
    training = "training"
    syncing_weights = "syncing_weights"
    checkpointing = "checkpointing"
    evaluating = "evaluating"
    idle = "idle"
    stopped = "stopped"


class Health(StrEnum):
    """Checkpoint health: `fresh` until later steps and evaluations prove it `good`, or something proves it `bad`."""

    fresh = "fresh"
    good = "good"
    bad = "bad"


class AckState(StrEnum):
    """What became of a decision. accepted: seen and valid, waits for its boundary. All others are final."""

    accepted = "accepted"
    applied = "applied"
    rejected = "rejected"
    expired = "expired"
    reverted = "reverted"
    failed = "failed"


class Setting(_Document):
    """New value of a tunable: exactly one of an absolute `value` or a `scale` on the value in force."""

    value: float | None = Field(default=None, allow_inf_nan=False)
    scale: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_of(self) -> "Setting":
        if (self.value is None) == (self.scale is None):
            raise ValueError("give exactly one of value and scale")
        return self

    def resolve(self, current: float) -> float:
        """The absolute value that this setting asks for, in the unit of the tunable."""
        if self.value is not None:
            return self.value
        assert self.scale is not None
        return current * self.scale


class Lease(_Document):
    """A temporary change: past `until_step` without renewal the agent sets the tunables back to `revert_to` by itself."""

    until_step: int = Field(ge=0)
    revert_to: dict[str, Annotated[float, Field(allow_inf_nan=False)]]


class Target(_Document):
    """The checkpoint to go back to. `digest` must match its manifest, so a rewritten checkpoint is never restored."""

    step: int = Field(ge=0)
    digest: str


CONTROL = "control"
"""The arm of a probe that goes on as the run would."""


class Design(StrEnum):
    """Where the arms of a probe are trained. inline: in place of the run, in turns with it; the run itself is the arm
    `control` and goes first. spare: all of them in a second process, while the run goes on. switchback: the run itself takes
    turns between `control` and the one other arm."""

    inline = "inline"
    spare = "spare"
    switchback = "switchback"


class Probe(_Document):
    """Arms to train with other tunables; inline and spare from the weights in force, with the same prompts and sampling seeds.

    Begins at the boundary at which it is applied.
    """

    probe_id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Names the record of the probe in the run directory."""
    arms: dict[str, dict[str, Setting]] = Field(min_length=1, max_length=4)
    """Arm -> what it sets; the trainer's guard rails hold for it too."""
    steps: int = Field(ge=1)
    """Optimiser steps of each arm."""
    where: Design = Design.inline
    segments: tuple[str, ...] = Field(default=(), max_length=64)
    """Of a switchback alone: the arms in the order of their turns, all of the same length."""
    wait_seconds: float = Field(default=120.0, ge=0, allow_inf_nan=False)
    """Longest time that the trainer waits for the ruling once all arms have ended; then the run goes on as it was."""

    @model_validator(mode="after")
    def _named(self) -> "Probe":
        if CONTROL in self.arms:
            raise ValueError(f"the arm {CONTROL!r} is the run itself and sets nothing")
        for arm, settings in self.arms.items():
            if not settings or settings.keys() - TUNABLES.keys():
                raise ValueError(f"arm {arm!r} must set tunables; known are {', '.join(TUNABLES)}")
        return self

    @model_validator(mode="after")
    def _turns(self) -> "Probe":
        if self.where is not Design.switchback:
            if self.segments:
                raise ValueError("only a switchback has segments")
            return self
        if len(self.arms) != 1:
            raise ValueError("a switchback has one arm beside the control")
        [arm] = self.arms
        turns = [self.segments.count(name) for name in (CONTROL, arm)]
        if sum(turns) != len(self.segments) or turns[0] != turns[1] or not turns[0] or self.steps % turns[0]:
            raise ValueError(
                "the segments of a switchback must name both arms equally often, and share out the steps evenly"
            )
        return self

    @property
    def segment_steps(self) -> int:
        """Steps of one segment of a switchback."""
        return self.steps * 2 // len(self.segments)

    @property
    def run_steps(self) -> int:
        """Steps of the run itself between the beginning and the last step of any arm."""
        return 2 * self.steps if self.where is Design.switchback else self.steps


class Ruling(_Document):
    """What becomes of a probe that is under way: arms stop early, or it ends.

    With `adopt` the run goes on from the weights of that arm, and the document sets the tunables of the arm. With `end` alone
    it goes on as if there had been no probe.
    """

    probe_id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    stop: tuple[str, ...] = ()
    """Arms that need no further step."""
    adopt: str | None = None
    end: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> "Ruling":
        if not (self.stop or self.adopt or self.end):
            raise ValueError("a ruling must stop, adopt or end")
        if self.adopt in self.stop:
            raise ValueError(f"a ruling cannot both stop and adopt arm {self.adopt}")
        return self


class Desired(Signed):
    """What the controller wants, in full. Written whole each time; `generation` tells old from new."""

    schema_version: Literal[1] = 1
    run_uid: str
    incarnation: str
    """The process start that the controller looked at; another incarnation refuses the document."""
    epoch: int = Field(ge=0)
    """Fencing number of the controller's lease on this run; the agent refuses one lower than it has seen."""
    generation: int = Field(ge=1)
    """Grows with every document; also the number the agent reports as applied."""
    base_generation: int = Field(ge=0)
    """Generation that must be in force for this document to apply (compare-and-set)."""
    decision_id: str
    issued_at: float
    """Unix seconds, for people; nothing is decided by it."""
    apply_from_step: int = Field(default=0, ge=0)
    expires_at_step: int = Field(ge=0)
    set: dict[str, Setting] = {}
    lease: Lease | None = None
    action: Action = Action.none
    target: Target | None = None
    probe: Probe | Ruling | None = None
    reason: str
    evidence: dict[str, float] = {}

    @model_validator(mode="after")
    def _coherent(self) -> "Desired":
        unknown = sorted(self.set.keys() - TUNABLES.keys())
        if unknown:
            raise ValueError(f"unknown tunable {unknown[0]!r}; known are {', '.join(TUNABLES)}")
        if (self.action is Action.rollback) != (self.target is not None):
            raise ValueError("a rollback, and nothing else, names a target checkpoint")
        if (self.action is Action.probe) != (self.probe is not None):
            raise ValueError("a probe, and nothing else, says what it is")
        if self.base_generation >= self.generation:
            raise ValueError("generation must be larger than base_generation")
        return self


class Ack(_Document):
    """What the agent did with a decision, with the values read back after it."""

    decision_id: str
    generation: int
    state: AckState
    reason: str = ""
    at_step: int
    readback: dict[str, float] = {}


class TunableState(_Document):
    """A tunable as the trainer has it: value in force and the trainer's own guard rails, which nobody can loosen."""

    value: float
    min: float
    max: float
    capability: Literal["runtime", "restart", "fixed"] = "runtime"


class CheckpointState(_Document):
    """One checkpoint on disk."""

    step: int
    branch: int
    digest: str
    health: Health


class Observed(_Document):
    """What is true in the trainer, written by the agent after every step boundary."""

    schema_version: Literal[1] = 1
    run_uid: str
    incarnation: str
    """UUID of this process start."""
    branch: int
    """Raised by one at each rollback; steps compare only within one branch."""
    step: int
    planned_steps: int
    """Step at which the run ends."""
    compute: float
    """Device-seconds behind the weights in force (this lineage; a rollback takes it back)."""
    written_at: float
    """Unix seconds."""
    epoch: int = 0
    """Highest controller epoch seen."""
    applied_generation: int = 0
    last_ack: Ack | None = None
    tunables: dict[str, TunableState]
    actions: tuple[Action, ...]
    """Actions this trainer can carry out."""
    rollbacks_left: int
    checkpoints: tuple[CheckpointState, ...] = ()
    phase: Phase
    probe: str = ""
    """The probe that is under way; its record in the run directory has the rest."""
    standing_still: bool = False
    """Arms of the probe are trained in place of the run: step, branch, compute and tunables stay as they are meanwhile."""

    @property
    def finished(self) -> bool:
        """The trainer has stopped at its planned end, and not before it."""
        return self.phase is Phase.stopped and self.step >= self.planned_steps


class Said(Signed):
    """What a person said, on its way to the controller of a run."""

    schema_version: Literal[1] = 1
    run_uid: str
    word: Approval | Order


class Resume(Signed):
    """What a trainer leaves behind when it ends in order to be started again elsewhere in its past (`control/resume.json`).

    Its agent writes it, `scalerl supervise` starts the trainer with it, and the agent of the new process answers the
    decision and takes it away.
    """

    schema_version: Literal[1] = 1
    run_uid: str
    decision_id: str
    generation: int
    target: Target
    checkpoint: str
    """What the trainer's own resume flag takes: a path or a name."""
    values: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    """Tunables to begin with."""
    handed_out_at: int
    """Step at which the trainer ended."""
    reason: str
