"""Adopt, reject, or cannot tell: the verdict on the arms of a probe, at any time and as often as one likes. Pure.

An arm's effect is its advantage in pass rate over the control by the end of the probe, as grown in proportion to its steps.

    adopt          the lower bound of the effect lies above the smallest effect worth having
    reject         the upper bound lies below it
    inconclusive   neither, and no step is left or the steps left cannot change that (futility)
    undecided      neither yet

Bounds are anytime-valid (evidence.py): with m arms an arm needs evidence m/a (Holm, step by step: m/a, then (m-1)/a, ...), so
that the chance of adopting any arm that is no better stays below a = 1 - confidence, however often one looks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite, log, sqrt

import numpy as np
from scipy.special import ndtr

from controlplane.tune.evidence import Noise, Sums, bound, log_evidence
from controlplane.tune.pairing import Paired
from controlplane.tune.planner import crossing

DOUBT = 8.0
"""Steps of ordinary noise that an arm has to outweigh before it is given up: arms with shared seeds begin alike, and differences of
zero say nothing about how small an effect is."""


class Outcome(StrEnum):
    adopt = "adopt"
    reject = "reject"
    inconclusive = "inconclusive"
    undecided = "undecided"


@dataclass(frozen=True)
class Terms:
    """What counts as proof."""

    steps: int
    """Planned steps of each arm."""
    min_effect: float = 0.0
    """Smallest advantage in pass rate by the end of the probe that is worth a change."""
    confidence: float = 0.95
    futility: float = 0.02
    """An arm whose chance of being adopted, judged by what it has shown, is smaller than this needs no further step."""
    noise: Noise = field(default_factory=Noise)
    settle: int = 8
    """Steps before futility is judged."""


@dataclass(frozen=True)
class ArmVerdict:
    """One arm. Effects are differences in pass rate by the end of the probe."""

    outcome: Outcome
    effect: float
    low: float
    high: float
    evidence: float
    """log E against "no better than the smallest effect"; natural logarithm."""
    needed: float
    """log of the evidence that adoption needs."""
    steps: int
    reason: str

    @property
    def known(self) -> bool:
        """Whether the steps so far rule out anything at all."""
        return self.low > -1 or self.high < 1


def judge(arms: Mapping[str, Paired], terms: Terms) -> dict[str, ArmVerdict]:
    """The verdict on each arm from its steps so far. `arms` names all arms of the probe, also those that have no step yet."""
    sums = {name: _sums(paired, terms) for name, paired in arms.items()}
    found = {name: _evidence(summed, terms) for name, summed in sums.items()}
    alpha = 1 - terms.confidence
    needed = _needed(found, alpha)
    return {name: _verdict(arms[name], sums[name], found[name], needed[name], terms) for name in arms}


def winner(verdicts: Mapping[str, ArmVerdict]) -> str | None:
    """The arm to go on from: of those proved, the one with the largest effect."""
    proved = {name: v.effect for name, v in verdicts.items() if v.outcome is Outcome.adopt}
    return max(sorted(proved), key=lambda name: proved[name], default=None)


def _sums(paired: Paired, terms: Terms) -> tuple[Sums, float] | None:
    if not len(paired):
        return None
    sums = paired.sums(terms.steps, terms.noise)
    return (sums, paired.unit) if sums.xx.size and sums.xx[-1] > 0 else None


def _evidence(summed: tuple[Sums, float] | None, terms: Terms) -> float:
    """The largest evidence so far: once proved, proved."""
    if summed is None:
        return 0.0
    sums, unit = summed
    return float(np.max(log_evidence(sums, terms.min_effect / unit)))


def _needed(found: Mapping[str, float], alpha: float) -> dict[str, float]:
    """log of the evidence that each arm needs, by Holm's procedure."""
    left, needed, holds = len(found), {}, True
    for name in sorted(found, key=lambda each: (-found[each], each)):
        needed[name] = log(left / alpha)
        holds = holds and found[name] >= needed[name]
        left -= holds
    return needed


def _verdict(
    paired: Paired, summed: tuple[Sums, float] | None, found: float, needed: float, terms: Terms
) -> ArmVerdict:
    if summed is None:
        return ArmVerdict(Outcome.undecided, 0.0, -1.0, 1.0, 0.0, needed, 0, "no step yet")
    sums, unit = summed
    steps, rows = paired.done, sums.xx.shape[-1]
    # Each bound at the level of the arm, so that an interval above the smallest effect and "adopt" are the same thing.
    level, seen = float(np.exp(-needed)), rows + int(DOUBT)
    # Differences are in units of their standard errors, so DOUBT steps of noise have this sum of squares. They make no arm
    # look better: the lower bound does without.
    doubted = Sums(sums.xx, sums.xd, sums.dd + DOUBT)
    low, high = bound(sums, rows, level, -1) * unit, bound(doubted, seen, level, +1) * unit
    effect = float(sums.effect[-1]) * unit

    def say(outcome: Outcome, reason: str) -> ArmVerdict:
        return ArmVerdict(outcome, effect, max(low, -1.0), min(high, 1.0), found, needed, steps, reason)

    if found >= needed:
        return say(Outcome.adopt, f"better by more than {terms.min_effect:.3g} with {terms.confidence:.0%} confidence")
    # Giving an arm up is no error that has to be guarded against over all arms, so its bound has its own level.
    ceiling = bound(doubted, seen, terms.futility, +1) * unit
    if ceiling < terms.min_effect:
        return say(Outcome.reject, f"not better by {terms.min_effect:.3g}: at most {ceiling:.3g}")
    if steps >= paired.planned(terms.steps):
        return say(
            Outcome.inconclusive, f"after all {steps} steps the effect may lie on either side of {terms.min_effect:.3g}"
        )
    chance = _chance(doubted, seen, needed, paired.information(terms.steps, terms.noise), terms.min_effect / unit)
    if steps >= terms.settle and chance < terms.futility:
        return say(Outcome.inconclusive, f"the steps left would prove it with a probability of {chance:.0%} only")
    return say(Outcome.undecided, f"adopted in the end with a probability of {chance:.0%}")


def _chance(sums: Sums, seen: int, needed: float, at_end: float, limit: float) -> float:
    """Probability that the arm is proved by the end, when the information is `at_end`, by what its steps so far say (predictive power).

    Before any step the effect is taken to lie around the limit, as far from it as the smallest effect that the whole probe could
    prove. Without that, the first few readings decide: they allow any effect, also absurd ones, and looked at often enough
    one of them says that nothing will come of it (bench/tuning/judge.py measures what giving up costs).
    """
    now = float(sums.xx[-1])
    end = max(at_end, now)
    rest = float(sums.dd[-1] - sums.xd[-1] ** 2 / now)
    scale = max(rest / max(seen - 1, 1), 1e-12)
    proof, share = crossing(end, needed), now / end
    z = (float(sums.effect[-1]) - limit) * sqrt(end / scale)  # known with variance 1 / share
    kept = 1 / (share + proof**-2)  # variance of what is believed of it, in the same units
    expected = share * z * (1 + (1 - share) * kept)
    spread = sqrt((1 - share) ** 2 * kept + (1 - share)) or 1e-9
    chance = float(ndtr((expected - proof) / spread))
    return chance if isfinite(chance) else 0.0
