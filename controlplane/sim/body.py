"""What a policy is besides its skill, what faults do to it, and how that shows in the metrics. Pure.

    strain    sampler and learner drift apart: the mismatch rises first, gradients next, the pass ratio last
    pressure  completions grow into the length limit (shape of a public run: .004 to .31 truncated in a hundred steps)
    stretch   completions grow, the limit is far
    flatness  entropy is gone, groups are alike, nothing is learnt
    hack      the verifier is fooled: training reward up, held-out accuracy down

Each is 0 in a healthy policy. A rollback restores all of them, because all of them sit in the weights.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from controlplane.sim.faults import Fault
from controlplane.sim.learner import CLIFF, WORST, Skill

_START = 0.01
"""Odds from which a truncation explosion grows."""
_CEILING = 0.6
"""Truncated share that it ends at."""
_STRAIN_HURTS = 0.012
"""Damage per step and e-fold of mismatch."""


@dataclass(frozen=True)
class Body:
    """Skill and injuries of a policy: everything that a checkpoint restores."""

    skill: Skill = field(default_factory=Skill)
    strain: float = 0.0
    pressure: float = 0.0
    stretch: float = 0.0
    flatness: float = 0.0
    hack: float = 0.0

    @property
    def pass_ratio(self) -> float:
        """Expected pass ratio in training."""
        honest = self.skill.pass_ratio * (1.0 - 0.5 * self.pressure)
        return honest + (0.97 - honest) * self.hack if honest < 0.97 else honest

    @property
    def held_out(self) -> float:
        """Expected pass ratio on prompts with an honest verifier."""
        return self.skill.pass_ratio * (1.0 - 0.5 * self.pressure) * (1.0 - 0.6 * self.hack)

    @property
    def truncated(self) -> float:
        """Share of completions cut by the limit, beside what the healthy run has."""
        collapsed = 0.8 * (1.0 - math.exp(-((self.skill.damage / 3.8) ** 4)))
        return min(1.0, self.pressure + collapsed)

    @property
    def length(self) -> float:
        """Factor on the length of completions."""
        return math.exp(self.stretch) * (1.0 + 2.5 * self.pressure) * (1.0 + 0.3 * self.skill.damage)

    def grad_norm(self, rate: float) -> float:
        """Factor on the gradient norm of a step at `rate`. Truncated completions teach little, so it falls with them."""
        return (
            (1.0 + self.skill.damage) * math.exp(0.6 * self.strain)
            * (1.0 - 0.7 * self.pressure) * (1.7 if rate > CLIFF else 1.0) * math.exp(-0.5 * self.flatness)
        )  # fmt: skip

    @property
    def mismatch(self) -> float:
        """Factor on the divergence of sampler and learner."""
        return math.exp(self.strain) * (1.0 + self.skill.damage)

    @property
    def entropy(self) -> float:
        """Factor on the entropy."""
        return math.exp(-self.flatness) * (1.0 - 0.3 * self.pressure) * (1.0 + 0.6 * self.skill.damage)

    def after(self, rate: float, prompts: int, faults: Iterable[Fault] = ()) -> "Body":
        """The body after one step at `rate` (in units of the best learning rate) under these faults."""
        learning = rate * math.exp(-0.5 * self.flatness)
        skill = self.skill.after(rate if rate > CLIFF else learning, prompts)
        if self.strain > 0.0:
            harmed = max(skill.damage, self.skill.damage) + _STRAIN_HURTS * self.strain  # nothing heals meanwhile
            skill = replace(skill, damage=min(harmed, WORST))
        body = self if skill is self.skill else replace(self, skill=skill)
        for fault in faults:
            body = _injured(body, fault, rate)
        return body


def _injured(body: Body, fault: Fault, rate: float) -> Body:
    match fault.kind:
        case "collapse":
            # A lower rate slows the drift down, and below half of the best one there is none.
            return replace(body, strain=min(body.strain + fault.factor * max(0.0, 2.0 * min(rate, 1.0) - 1.0), 6.0))
        case "truncation":
            odds = max(body.pressure, _START * _CEILING) / max(_CEILING - body.pressure, 1e-6) * math.exp(fault.factor)
            return replace(body, pressure=_CEILING * odds / (1.0 + odds))
        case "length":
            return replace(body, stretch=body.stretch + fault.factor)
        case "entropy":
            return replace(body, flatness=min(body.flatness + fault.factor, 5.0))
        case "hacking":
            return replace(body, hack=body.hack + fault.factor * (1.0 - body.hack))
    return body
