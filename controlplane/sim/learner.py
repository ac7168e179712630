"""A latent-skill learner: what a policy can do, what a step at some learning rate makes of it, and what it looks like. Pure.

    pass = (R0 + (A - R0) / (1 + (C_mid / progress)^B)) * exp(-damage)        ScaleRL's law, with an injury

`progress` counts steps at the best learning rate: a lower rate moves it slower. Above the cliff each step adds damage,
which heals so slowly that waiting does not help. The constants were set by eye on recordings of a half-million-parameter
model on arithmetic (16 prompts x 8 to 16 samples, learning rate 1e-4), healthy, at a tenth of the rate, and at 6, 10 and 30
times the rate.
"""

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Law:
    """ScaleRL's law: pass ratio at the start and at the end, steps to the middle, steepness; the batch that one step means."""

    r0: float = 0.11
    a: float = 0.96
    c_mid: float = 21.0
    b: float = 1.9
    prompts: int = 16


TINY = Law()
CLIFF = 4.0
"""Learning rate, in units of the best one, above which the policy comes apart."""
DAMAGE = 0.26
"""Damage per step and e-fold above the cliff, growing with the damage already done: ten times the rate brings .84 to
about .25 in five steps and .03 in ten."""
WORST = 4.5
"""Damage at which nothing is left to lose."""
HEALING = 0.03
"""Damage that heals per step below the cliff."""
CORRELATION = 0.33
"""Intra-group correlation of passes: prompts differ in difficulty, so a batch is noisier than its size says."""


@dataclass(frozen=True)
class Skill:
    """Everything that a checkpoint has to restore."""

    progress: float = 1.0
    damage: float = 0.0
    law: Law = TINY

    @property
    def potential(self) -> float:
        """Pass ratio without the damage."""
        law = self.law
        return law.r0 + (law.a - law.r0) / (1 + math.pow(law.c_mid / self.progress, law.b))

    @property
    def pass_ratio(self) -> float:
        """Expected pass ratio."""
        return self.potential * math.exp(-self.damage)

    @property
    def truncated_ratio(self) -> float:
        """Expected share of completions that run into the limit: few while learning, most after a collapse."""
        healthy = 0.002 + 0.11 * math.exp(-10 * (self.potential - self.law.r0))
        return min(1.0, healthy + 0.8 * (1 - math.exp(-((self.damage / 3.8) ** 4))))

    @property
    def entropy(self) -> float:
        """Mean token entropy in nats: falls while learning, rises with damage."""
        return 0.385 * math.exp(-3 * self.potential) + 0.05 * self.damage

    def grad_norm(self, rate: float, rng: random.Random) -> float:
        """Global gradient norm of a step at `rate`, before clipping."""
        middle = (0.2 + 0.25 * self.potential) * (1 + self.damage)
        return middle * (1.7 if rate > CLIFF else 1.0) * math.exp(rng.gauss(0, 0.25))

    def after(self, rate: float, prompts: int) -> "Skill":
        """The skill after one step at `rate` (in units of the best learning rate) on a batch of `prompts`."""
        speed = min(math.pow(rate, 0.75), 1.1) * math.pow(prompts / self.law.prompts, 0.15)
        harm = DAMAGE * math.log(rate / CLIFF) * (1 + 0.3 * self.damage) if rate > CLIFF else -HEALING
        damage = min(max(self.damage + harm, 0.0), WORST)
        return Skill(self.progress + speed * math.exp(-self.damage), damage, self.law)


def passes(ratio: float, prompts: int, samples: int, rng: random.Random) -> list[int]:
    """Passes per prompt: binomial around a difficulty of the prompt's own (beta), with the given mean."""
    spread = 1 / CORRELATION - 1
    ratio = min(max(ratio, 1e-4), 1 - 1e-4)
    difficulties = [rng.betavariate(ratio * spread, (1 - ratio) * spread) for _ in range(prompts)]
    return [sum(rng.random() < chance for _ in range(samples)) for chance in difficulties]
