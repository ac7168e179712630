"""The variance of an observed pass rate, and how many points become few.

Real evaluation noise is two to three times binomial, so the binomial value is only a lower bound; the Rice estimate
from successive differences needs no sample count. On a steep window Rice also contains the slope: an over-estimate,
on the safe side. A variance that the caller states is taken as it is.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from controlplane.forecast.law import Array

MIN_DIFFERENCES = 3
MAX_POINTS = 100
LADDER = 1.25
"""Ratio of the steps to which the Rice estimate is rounded. Its sampling error is larger, and in return a new point seldom
moves the variances of the old ones, which would mean to fit again."""
NORMAL_MEDIAN = 0.6745
"""Median of |z| for a standard normal: turns a median difference into a standard deviation."""


class Point(NamedTuple):
    """One evaluation. `variance` is the full variance if known; `samples` the effective number of samples if known."""

    compute: float
    pass_rate: float
    variance: float | None = None
    samples: float | None = None


def binomial(pass_rate: float, samples: float) -> float:
    """Sampling variance of a mean of `samples` outcomes; the floor 0.02 keeps a rate of 0 or 1 from looking certain."""
    return max(pass_rate * (1.0 - pass_rate), 0.02) / samples


def rice(pass_rates: Sequence[float]) -> float:
    """Variance from successive differences: the mean of a least-squares and a robust (median) estimate."""
    y = np.asarray(pass_rates, dtype=float)
    d = np.diff(y)
    if len(d) < MIN_DIFFERENCES:
        return float(np.var(y)) + 1e-6
    robust = float(np.median(np.abs(d))) / NORMAL_MEDIAN
    return max((float(np.mean(d * d)) / 2.0 + robust**2 / 2.0) / 2.0, 1e-8)


def on_ladder(variance: float) -> float:
    """The nearest power of `LADDER`."""
    return LADDER ** round(math.log(variance) / math.log(LADDER))


def variances(points: Sequence[Point]) -> list[float]:
    """Variance of every point: as stated, otherwise the larger of binomial (if `samples` is known) and Rice."""
    if all(p.variance is not None for p in points):
        return [p.variance for p in points if p.variance is not None]
    common = on_ladder(rice([p.pass_rate for p in points]))
    return [
        p.variance
        if p.variance is not None
        else max(common, binomial(p.pass_rate, p.samples) if p.samples is not None else 0.0)
        for p in points
    ]


def condense(points: Sequence[Point], changes: Sequence[float], limit: int = MAX_POINTS) -> tuple[Array, Array, Array]:
    """Compute, pass rate and variance, shape (n,) each; above `limit` points merged into bins of 2, 4, 8, ... points.

    A bin is an inverse-variance mean, and does not change once it is full. It never straddles a change-point or mixes
    compute 0 with what comes after it, so `n <= limit + len(changes) + 1`.
    """
    c = np.array([p.compute for p in points], dtype=float)
    y = np.array([p.pass_rate for p in points], dtype=float)
    v = np.array(variances(points), dtype=float)
    if len(points) <= limit:
        return c, y, v
    size = 2 ** math.ceil(math.log2(len(points) / limit))
    regime = np.searchsorted(changes, c, side="left") + (c > 0.0)
    key = np.arange(len(points)) // size
    starts = np.flatnonzero(np.diff(key, prepend=-1) + np.diff(regime, prepend=-1) != 0)
    weight = 1.0 / v
    total = np.add.reduceat(weight, starts)
    return np.add.reduceat(c * weight, starts) / total, np.add.reduceat(y * weight, starts) / total, 1.0 / total
