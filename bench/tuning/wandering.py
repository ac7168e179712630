"""The noise that measured pairs of arms show, in the judge's own model: how persistent, and how large in units of a step's sampling
noise (controlplane/tune/evidence.py: `Noise`). Pure.

Each pair has its own effect and its own scale, as for the judge: both are integrated out, and what is left is the likelihood of the
noise alone (restricted maximum likelihood). Pairs are taken as independent, so their logarithms add up.
"""

from dataclasses import dataclass

import numpy as np

from controlplane.tune.evidence import Noise, whitening
from controlplane.tune.pairing import Paired
from controlplane.tune.planner import information

PERSISTENCE = (0.0, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.999)
WANDERING = (0.0, 0.02, 0.05, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)
LEVEL = 2.3
"""Points whose log likelihood lies less than this below the best are in the 90 % region of two parameters (chi-square, 4.6 / 2)."""


@dataclass(frozen=True)
class Fit:
    """The best noise on the grid, and the one that would mislead most of those that the pairs do not rule out at 90 %."""

    best: Noise
    worst: Noise
    points: int
    """Points of the grid that are not ruled out."""


def log_likelihood(pair: Paired, noise: Noise, steps: int) -> float:
    """Of the noise, given one pair; arms that never parted say nothing."""
    if len(pair) < 3 or not pair.difference.any():
        return 0.0
    x, d = pair.standardised(steps)
    white = whitening(noise, tuple(int(t) for t in pair.t))
    wx, wd = white @ x, white @ d
    xx = float(wx @ wx)
    rest = float(wd @ wd) - float(wx @ wd) ** 2 / xx
    return float(np.log(np.diag(white)).sum() - 0.5 * np.log(xx) - (len(d) - 1) / 2 * np.log(rest))


def fit(pairs: list[Paired], steps: int = 60) -> Fit:
    """The noise that explains the pairs best."""
    grid = [Noise(p, w) for p in PERSISTENCE for w in WANDERING if w or p == PERSISTENCE[0]]
    found = np.array([sum(log_likelihood(pair, noise, steps) for pair in pairs) for noise in grid])
    near = [noise for noise, value in zip(grid, found, strict=True) if value > found.max() - LEVEL]
    return Fit(grid[int(found.argmax())], min(near, key=lambda noise: information(steps, noise)), len(near))
