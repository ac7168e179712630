"""Fleets: the real evaluator on many fast runs, and what became of each. `play` is one run; deterministic by seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt

import numpy as np

from controlplane.contract.documents import Action
from controlplane.decide import Decision, Evaluator, Kind, Purpose
from controlplane.detect import Outcome
from controlplane.policy import Policy
from controlplane.sim import faults as make
from controlplane.sim.course import Course
from controlplane.sim.fast import FastRun
from controlplane.sim.faults import Fault
from controlplane.snapshot import Snapshot

TELLING = (Kind.page, Kind.advise, Kind.waiting, Kind.act)
RECOVERED = 0.95
"""Share of the held-out ability before a fault at which a run counts as recovered."""


@dataclass(frozen=True)
class Told:
    """A decision that a person or the trainer heard of."""

    executed: int
    """Steps the trainer had executed, over all branches."""
    at: float
    decision: Decision

    @property
    def rolls_back(self) -> bool:
        change = self.decision.change
        return self.decision.kind is Kind.act and change is not None and change.action is Action.rollback

    @property
    def changes(self) -> bool:
        """Whether it answered an alarm by changing the run without going back; ways back to the old values do not count."""
        answers = self.decision.kind is Kind.act and self.decision.purpose is Purpose.answer
        return answers and not self.rolls_back


@dataclass
class Story:
    """What happened in one run."""

    course: Course
    faults: tuple[Fault, ...]
    looks: int = 0
    told: list[Told] = field(default_factory=list)
    breaches: dict[str, int] = field(default_factory=dict)
    """Detector -> executed step of its first breach after the first fault; over the whole run where there is none."""
    onset: int | None = None
    """Executed step at which the first fault was active, and the clock then."""
    onset_at: float = 0.0
    ability: float = 0.0
    """Held-out ability just before the fault, and at the end."""
    final: float = 0.0

    @property
    def heard(self) -> list[Told]:
        """What was told after the fault began."""
        return [each for each in self.told if self.onset is None or each.executed >= self.onset]

    @property
    def delay(self) -> int | None:
        """Executed steps from the fault to the first telling, the first faulty step counted as 1."""
        return self.heard[0].executed - self.onset + 1 if self.heard and self.onset is not None else None

    @property
    def seconds(self) -> float | None:
        """The same in virtual seconds."""
        return self.heard[0].at - self.onset_at if self.heard and self.onset is not None else None

    @property
    def rollbacks(self) -> int:
        return sum(each.rolls_back for each in self.heard)

    @property
    def changes(self) -> int:
        return sum(each.changes for each in self.heard)

    @property
    def recovered(self) -> bool:
        return self.final >= RECOVERED * self.ability


def play(
    course: Course,
    policy: Policy,
    faults: Sequence[Fault] = (),
    steps: int | None = None,
    watch: Callable[[FastRun, Snapshot, Decision], None] | None = None,
) -> Story:
    """One run under a policy, to its end or for `steps` executed steps. Decisions to act are carried out."""
    run, evaluator = FastRun(course, faults), Evaluator(policy)
    story = Story(course, tuple(faults))
    first = min((fault.at_step for fault in faults), default=None)
    while steps is None or run.executed < steps:
        if first is not None and story.onset is None and run.step + 1 >= first:
            story.onset, story.onset_at, story.ability = run.executed + 1, run.now, run.body.held_out
        looks = run.advance()
        if not looks:
            break
        for snapshot in looks:
            judgement, decision = evaluator.look(snapshot)
            story.looks += 1
            if decision.kind in TELLING:
                story.told.append(Told(run.executed, snapshot.at, decision))
            if story.onset is not None or first is None:
                for name, finding in judgement.findings.items():
                    if finding.outcome is Outcome.breach:
                        story.breaches.setdefault(name, run.executed)
            if watch is not None:
                watch(run, snapshot, decision)
            if decision.kind is Kind.act:
                run.apply(decision)
    story.final = run.body.held_out
    return story


Draw = Callable[[np.random.Generator, int], Fault]


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


DRAWS: Mapping[str, Draw] = {
    "LR fault": lambda rng, at: make.lr_fault(at, _between(rng, 6, 30), steps=int(rng.integers(10, 60))),
    "NaN burst": lambda rng, at: make.nan(at, steps=int(rng.integers(3, 30))),
    "slow collapse": lambda rng, at: make.slow_collapse(at, _between(rng, 0.02, 0.1)),
    "truncation explosion": lambda rng, at: make.truncation_explosion(at, _between(rng, 0.03, 0.3)),
    "length explosion": lambda rng, at: make.length_explosion(at, _between(rng, 0.02, 0.1)),
    "entropy collapse": lambda rng, at: make.entropy_collapse(at, _between(rng, 0.02, 0.1)),
    "reward hacking": lambda rng, at: make.reward_hacking(at, _between(rng, 0.005, 0.05)),
    "generator stall": lambda rng, at: make.stall(at, _between(rng, 3600, 6 * 3600)),
    "metric loss": lambda rng, at: make.metric_loss(at, _between(rng, 1800, 4 * 3600)),
    "clock jump": lambda rng, at: make.clock_jump(at, float(rng.choice((-1, 1))) * _between(rng, 60, 86_400)),
    "trainer restart": lambda rng, at: make.restart(at),
    "stale checkpoint": lambda rng, at: make.stale_checkpoint(at),
}
"""Kinds of fault, each with a severity drawn at random."""
ROLLBACK_HELPS = ("LR fault", "NaN burst", "slow collapse", "truncation explosion")
"""Faults that sit in the weights or the data and cost ability: going back with a lower rate undoes them."""
HARMLESS = ("metric loss", "clock jump", "trainer restart")
"""Faults of the surroundings, in which any change of the run would be wrong."""


def broken(kind: str, seed: int, policy: Policy, after: int = 400) -> Story:
    """A run with one fault of a kind, played until `after` executed steps behind it."""
    rng = np.random.default_rng((seed, 3))
    at = int(rng.integers(250, 700))
    return play(Course.draw(seed), policy, (DRAWS[kind](rng, at),), steps=at + after)


def wilson(part: int, whole: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    if whole == 0:
        return 0.0, 1.0
    share, scale = part / whole, 1 + z**2 / whole
    middle = (share + z**2 / (2 * whole)) / scale
    half = z * sqrt(share * (1 - share) / whole + z**2 / (4 * whole**2)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)
