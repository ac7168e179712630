"""What the designs of a probe are made of: arms, whose turn it is, the machine that trains them, and the way back to a snapshot."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from controlplane.agent import Directive
from controlplane.contract.documents import CONTROL, Ruling
from trainer.checkpoint.ring import Snapshot
from trainer.rollback import Savepoints
from trainer.session import Session
from trainer.stepper import Stepped, Stepper
from trainer.stopwatch import Stopwatch
from trainer.types import Version


@dataclass
class Arm:
    """What an arm has done so far."""

    sets: Mapping[str, float]
    taken: int = 0
    """Steps."""
    stopped: bool = False
    kept: list[Stepped] = field(default_factory=list)
    """Its steps, where they may become the run's own."""
    end: Snapshot | None = None
    """Where it stands, once it has ended and may be gone on from."""


TURNS = 6
"""Turns that an arm takes its steps in. With more, an arm that is proved early is adopted earlier; each costs two forks."""


def arms_of(sets: Mapping[str, Mapping[str, float]]) -> dict[str, Arm]:
    """The arms of a probe before their first step, `control` first."""
    return {CONTROL: Arm({}), **{name: Arm(dict(values)) for name, values in sets.items()}}


def turn(arms: Mapping[str, Arm], steps: int) -> tuple[str, int] | None:
    """Who trains now, and up to which of its steps; None when nobody has a step left to take.

    One arm at a time is compared with `control`, which goes on only when that arm has caught up with it. So an arm that is proved
    early costs as many steps of `control` as of its own, and when all arms were given up `control` needs no further step either.
    """
    control = arms[CONTROL]
    for name, arm in arms.items():
        if name != CONTROL and not arm.stopped and arm.taken < steps:
            if arm.taken < control.taken:
                return name, control.taken
            return None if control.stopped else (CONTROL, min(control.taken + -(-steps // TURNS), steps))
    return None


@dataclass(frozen=True)
class Standstill:
    """Where the run itself stands while another arm is trained in its place."""

    step: int
    branch: int
    compute: float
    tunables: dict[str, float]


@dataclass(frozen=True)
class Machine:
    """The parts of a run that take steps."""

    session: Session
    savepoints: Savepoints
    stepper: Stepper
    watch: Stopwatch

    def fork(self, snapshot: Snapshot, branch: int | None = None) -> None:
        """Put a snapshot in force under a version that was never used, and give its weights to the generator."""
        now = self.session.state.version
        unused = max(now.n, snapshot.version.n) + 1  # a fresh process has used none, but the snapshot has
        self.savepoints.fork(snapshot, Version(now.branch if branch is None else branch, unused))
        self.session.poisoned = False
        self.stepper.publish()
        self.session.collector.forget_counts()
        self.watch.lap()

    def train(self, arm: Arm, steps: int, each: Callable[[Stepped], bool]) -> None:
        """Steps of an arm, from where the machine stands, until it has all of them, is stopped, or `each` says no."""
        self.session.tunables.update(arm.sets)
        while arm.taken < steps and not arm.stopped:
            stepped = self.stepper.step()
            if stepped is None:
                return
            arm.taken += 1
            if not each(stepped):
                return


class Underway(Protocol):
    """A probe between its directive and its end, in one of the designs."""

    probe_id: str
    arms: dict[str, Arm]

    @property
    def standstill(self) -> Standstill | None:
        """Set while an arm is trained in place of the run."""
        ...

    @property
    def tunables(self) -> Mapping[str, float] | None:
        """What is in force in the run itself, where that is not what the session says."""
        ...

    def rule(self, ruling: Ruling) -> str:
        """Carry out a ruling whose arms are known, and whose document sets what the arm was trained with. Returns why not."""
        ...

    def disturbed_by(self, directive: Directive) -> bool:
        """Whether a directive that is not a ruling ends the probe first."""
        ...

    def look(self) -> None:
        """At every control point, before the agent is asked."""
        ...

    def before_step(self) -> None:
        """The run is about to take a step of its own."""
        ...

    def after_step(self, stepped: Stepped) -> None:
        """The run has taken a step of its own."""
        ...

    def cancel(self, reason: str) -> None:
        """End it: the run goes on as if there had been no probe."""
        ...
