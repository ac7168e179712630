"""One trajectory that takes turns between two values: its readings as evidence for the same judge. Pure.

    y_t = a + b t + c t^2 + beta E_t / steps + noise        E_t: steps that the arm has had until t

There is no second run to compare with, so the run's own progress is in the way: level, slope and curvature are taken out
(evidence.py), and prompts are not shared, so that their difficulty is noise too. What is left is far less evidence than in paired
arms; the intervals are as wide as that makes them. `beta` means the same: the advantage after as many steps as each arm has.

The first `washout` readings of a segment are left out: they are of completions that were begun under the other values, and the optimizer
still remembers those. Their steps count as exposure. The order is ABBA or BAAB by lot, so that what is no parabola in the
run's progress helps and hurts an arm equally often.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from controlplane.contract.documents import CONTROL
from controlplane.tune.evidence import Array, Noise, Sums, whitening
from controlplane.tune.pairing import Paired, step_errors

TREND = 3
"""Level, slope and curvature."""


def segments(probe_id: str, arm: str) -> tuple[str, ...]:
    """The order of turns, by lot: the same each time for a probe."""
    first = hashlib.sha256(probe_id.encode()).digest()[0] % 2
    a, b = (CONTROL, arm) if first else (arm, CONTROL)
    return (a, b, b, a)


@dataclass(frozen=True)
class Turns:
    """A switchback as planned: the arm's exposure at each step of the run, and which steps are read."""

    order: tuple[str, ...]
    segment_steps: int
    washout: int

    @property
    def steps(self) -> int:
        return len(self.order) * self.segment_steps

    def readings(self) -> tuple[tuple[int, ...], Array]:
        """Steps that are read, from 1, and the arm's exposure in steps at each of them: a step is read before it is taken."""
        arm = np.repeat([name != CONTROL for name in self.order], self.segment_steps)
        before = np.cumsum(arm) - arm
        read = [t for t in range(self.steps) if t % self.segment_steps >= self.washout]
        return tuple(t + 1 for t in read), before[read].astype(float)


@lru_cache(maxsize=64)
def information(turns: Turns, noise: Noise) -> float:
    """Inverse variance of the effect after all steps, in units of the noise of one step's pass rate."""
    places, exposure = turns.readings()
    white = whitening(noise, places, TREND, turns.steps) @ (exposure / (turns.steps / 2))
    return float(white @ white)


@dataclass(frozen=True)
class Alternated(Paired):
    """Readings of a switchback: `t` is the exposure, `difference` the pass rate itself, `error` its standard error."""

    turns: Turns = Turns((), 1, 0)
    places: tuple[int, ...] = ()

    @property
    def done(self) -> int:
        """Steps of the run so far."""
        return self.places[-1]

    def planned(self, steps: int) -> int:
        return self.turns.steps

    def sums(self, steps: int, noise: Noise) -> Sums:
        white = whitening(noise, self.places, TREND, self.turns.steps)
        return Sums.whitened(self.t / steps, self.difference / self.unit, white)

    def information(self, steps: int, noise: Noise) -> float:
        return information(self.turns, noise)


def alternated(record: Iterable[Mapping[str, Any]], turns: Turns) -> Alternated:
    """The readings in the record of a switchback."""
    places, exposure = turns.readings()
    exposed = dict(zip(places, exposure, strict=True))
    rates: dict[int, Sequence[float]] = {
        line["t"]: [passed / samples for *_, passed, samples in line["prompts"]]
        for line in record
        if line["kind"] == "step" and line["t"] in exposed
    }
    if not rates:
        return Alternated(*(np.zeros(0),) * 4, turns, ())
    read = tuple(sorted(rates))
    counts = np.array([len(rates[t]) for t in read], dtype=float)
    means = np.array([np.mean(rates[t]) for t in read])
    squares = np.array([float(np.sum(np.square(rates[t]))) for t in read])
    usual = float(np.mean(means))
    errors = step_errors(means, squares, counts, usual * (1 - usual))
    return Alternated(np.array([exposed[t] for t in read]), means, errors, counts, turns, read)
