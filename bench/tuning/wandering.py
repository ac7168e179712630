"""The noise that measured pairs of arms show, in the judge's own model: how persistent, and how large in units of a step's sampling
noise (controlplane/tune/evidence.py: `Noise`).

Each pair has its own effect and its own scale, as for the judge: both are integrated out, and what is left is the likelihood of the
noise alone (restricted maximum likelihood). Pairs are taken as independent, so their logarithms add up.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from controlplane.contract.rundir import read_lines
from controlplane.tune.evidence import Noise, whitening
from controlplane.tune.pairing import Paired
from controlplane.tune.planner import information

SHARED = ("near", "near2")
"""Arms of twins.py with the prompts and seeds of the control, and a tenth more or less of its learning rate."""
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


def pairs(out: Path, arms: tuple[str, ...]) -> list[Paired]:
    """The pairs with shared prompts, for the judge."""
    columns = ("t", "difference", "error", "prompts")
    return [Paired(*(np.array(row[c], dtype=float) for c in columns)) for row in read_lines(out) if row["arm"] in arms]


def residuals(out: Path) -> list[Paired]:
    """What is left of the pairs with shared prompts once the mean over the seeds of their arm is taken out: a tenth more or less of the
    learning rate has an effect, with a course of its own, and that is no noise. With n seeds the rest is sqrt(n / (n - 1)) too small."""
    found = []
    for arm in SHARED:
        mine = pairs(out, (arm,))
        if len(mine) > 1:
            common, correction = np.mean([p.difference for p in mine], axis=0), (len(mine) / (len(mine) - 1)) ** 0.5
            found += [replace(p, difference=(p.difference - common) * correction) for p in mine]
    return found


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
