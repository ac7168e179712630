"""One curve of held-out pass rate against compute, fitted twice. Pure.

    protocol   ScaleRL, appendix A.5: grid over (A, C_mid), B by least squares, R_0 given. A point, without uncertainty
    posterior  controlplane.forecast: draws of (A, B, C_mid), from which intervals come, also at a given A

R_0 is the evaluation at compute 0, a measurement (the paper takes it as given too). Compute is whatever axis the study
uses; C_mid is in its unit. Comparisons of B are made at a common A (ScaleRL, section 4), because in a short run a
higher A can be traded for a lower B.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from controlplane.forecast import Forecaster
from controlplane.forecast.law import Array
from controlplane.forecast.protocol import A_GRID, C_MID_GRID, CUT, Fit, fit_scalerl

LEAST = 4
"""Points after the cut below which three parameters are not fitted."""
DRAWS = 16_384
LEVEL = 0.8
"""Nominal coverage of every interval here."""
NEAR_A = 0.01
"""Width (sd) of the window of A in which draws count as being at a given A: half the paper's margin."""
LEAST_NEAR = 100.0
"""Draws in that window below which nothing is said about B at a given A."""


@dataclass(frozen=True)
class Curve:
    """Held-out evaluations of one run after its start, in order; `r0` is the one at compute 0."""

    compute: tuple[float, ...]
    pass_rate: tuple[float, ...]
    r0: float
    samples: int
    """Completions per evaluation."""

    @property
    def end(self) -> float:
        return self.compute[-1]


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the protocol looks. `c_mid` is relative to the longest curve's end unless `absolute`; so is `cut`."""

    name: str
    a_step: float = 0.005
    c_mid: tuple[float, float, int] = (0.03, 2.0, 240)
    """First, last, number; spaced evenly in log, 1.8 % apart: at the 5 % of a hundred values A is off by half the margin."""
    cut: float = 0.0
    """Points before this share of the end are dropped."""
    absolute: bool = False

    def values(self, curve: Curve, end: float) -> tuple[Array, Array, float]:
        """A, C_mid and cut for one curve in a study whose longest curve ends at `end`."""
        if self.absolute:
            return A_GRID, C_MID_GRID, CUT
        first, last, number = self.c_mid
        lowest = max(round(max(curve.pass_rate) / self.a_step) * self.a_step - 0.05, self.a_step)
        a = np.arange(lowest, min(lowest + 0.35, 1.0) + self.a_step / 2, self.a_step)
        return a, np.geomspace(first * end, last * end, number), self.cut * end


RELATIVE = Grid("relative")
PAPER = Grid("paper", absolute=True)


@dataclass(frozen=True)
class Interval:
    """Median and the central `LEVEL` of posterior draws."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True, eq=False)
class Draws:
    """Joint posterior draws, equal shapes (N,)."""

    A: Array
    B: Array
    C_mid: Array

    def interval(self, name: str) -> Interval:
        return _interval(getattr(self, name), np.ones_like(self.A))

    def at(self, a: float, name: str) -> Interval | None:
        """Interval of B or C_mid at asymptote `a`; None where the posterior hardly knows such an A."""
        weight = np.exp(-0.5 * ((self.A - a) / NEAR_A) ** 2)
        if weight.sum() < LEAST_NEAR:
            return None
        return _interval(getattr(self, name), weight)


def _interval(values: Array, weight: Array) -> Interval:
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weight[order]) / weight.sum()
    places = np.searchsorted(share, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    low, middle, high = values[order][np.minimum(places, len(values) - 1)]
    return Interval(float(low), float(middle), float(high))


@dataclass(frozen=True, eq=False)
class FittedCurve:
    """A curve with its fits. `end`: where the study's longest curve ends, which sets grid and prior."""

    curve: Curve
    end: float
    grid: Grid = RELATIVE

    @cached_property
    def free(self) -> Fit:
        """The protocol with A, B and C_mid free. ValueError where the points do not allow it."""
        self._enough()
        a, c_mid, cut = self.grid.values(self.curve, self.end)
        return self._fit(a, c_mid, cut)

    @cached_property
    def edges(self) -> tuple[str, ...]:
        """Which parameters of the free fit lie at an edge of their grid, and so are bounds. A = 1 is a fact, not an edge."""
        a, c_mid, _ = self.grid.values(self.curve, self.end)
        found = []
        if _at_edge(self.free.A, a) and not np.isclose(self.free.A, 1.0):
            found.append("A")
        if _at_edge(self.free.C_mid, c_mid):
            found.append("C_mid")
        return tuple(found)

    def at(self, a: float) -> Fit:
        """The protocol with A fixed to `a`."""
        self._enough()
        _, c_mid, cut = self.grid.values(self.curve, self.end)
        return self._fit(np.array([a]), c_mid, cut)

    def _fit(self, a: Array, c_mid: Array, cut: float) -> Fit:
        return fit_scalerl(self.curve.compute, self.curve.pass_rate, self.curve.r0, cut=cut, a_grid=a, c_mid_grid=c_mid)

    def _enough(self) -> None:
        _, _, cut = self.grid.values(self.curve, self.end)
        left = sum(c >= cut for c in self.curve.compute)
        if left < LEAST:
            raise ValueError(f"{left} evaluations at or after {cut:.4g}; a fit needs {LEAST}")
        if max(self.curve.pass_rate) <= self.curve.r0:
            raise ValueError(
                f"the pass rate never rose above its start of {self.curve.r0:.3f}: there is no curve to fit"
            )

    @cached_property
    def draws(self) -> Draws:
        """The posterior after the same points, without a cut: its discrepancy term makes room for an early regime."""
        forecaster = Forecaster(budget=self.end, draws=DRAWS)
        forecaster.observe(0.0, self.curve.r0, samples=self.curve.samples)
        for compute, rate in zip(self.curve.compute, self.curve.pass_rate, strict=True):
            forecaster.observe(compute, rate, samples=self.curve.samples)
        found = forecaster.parameters()
        return Draws(found.A.values, found.B.values, found.C_mid.values)


def _at_edge(value: float, grid: Array) -> bool:
    return bool(np.isclose(value, grid[0]) or np.isclose(value, grid[-1]))


def together(draws: Sequence[Draws]) -> Draws:
    """The mixture of several runs' posteriors: one more run is as likely to be like any of them."""
    return Draws(*(np.concatenate([getattr(d, name) for d in draws]) for name in ("A", "B", "C_mid")))


def linear(curve: Curve, fit: Fit) -> tuple[Array, Array]:
    """(C, F) of ScaleRL, Fig. 7: F(R) = C_mid^B / ((A - R_0) / (R - R_0) - 1), which the law makes C^B.

    Points at or beyond R_0 or A have no F and are left out.
    """
    c, r = np.asarray(curve.compute), np.asarray(curve.pass_rate)
    inside = (r > fit.R0) & (r < fit.A)
    share = (r[inside] - fit.R0) / (fit.A - fit.R0)
    return c[inside], fit.C_mid**fit.B * share / (1.0 - share)
