"""What is believed about a run before its first evaluation: the default, or what finished runs of the same recipe showed.

A prior made from runs is a mixture (Schmidli et al. 2014, robust meta-analytic-predictive prior): one component says
"like those runs, as far as those agree among themselves", the other is the default. Their weights are updated by the
evidence like everything else, so a run that goes its own way is soon judged on its own.

    run j: posterior means m_j and variances w_j of R0, A, ln B, ln C_mid
    between-run variance t^2 = (3 s^2 + sum max((m_j - m)^2 - w_j, 0)) / (2 + J)       s: see BETWEEN_SD
    next run ~ N(m, (t^2 (1 + 1/J) + mean(w) / J) nu / (nu - 2)),   nu = 2 + J         the variance of a t

Compute of the finished runs is in the unit of the run that is forecast.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from controlplane.forecast.grid import BETA_MEAN, BETA_VAR, Grid
from controlplane.forecast.law import Array

if TYPE_CHECKING:
    from controlplane.forecast.forecaster import Forecaster

BETWEEN_SD = np.array([0.02, 0.02, 0.15, 0.2])
"""Expected sd between runs of one recipe, of R0, A, ln B, ln C_mid: ScaleRL's margin on A, its three seeds for the others.
It counts as much as three runs."""
PSEUDO_RUNS = 3
ROBUST = 0.2
"""Prior probability that the run is like none of the finished ones."""


@dataclass(frozen=True)
class Component:
    """Normal beliefs. `mean`, `variance` of (R0, A); `log_b`, `log_mid`: (mean, sd) of ln B, ln C_mid, None for the grid's own."""

    weight: float
    mean: tuple[float, float] = BETA_MEAN
    variance: tuple[float, float] = BETA_VAR
    log_b: tuple[float, float] | None = None
    log_mid: tuple[float, float] | None = None

    def log_cell(self, grid: Grid) -> Array:
        """Log weight of every cell, (G,). All components sum to the same over the whole grid, so that evidences compare."""
        if self.log_b is None or self.log_mid is None:
            return grid.log_cell + math.log(self.weight)
        whole = grid.whole
        level = _log_sum(whole.log_cell) - _log_sum(self._shape(whole)) + math.log(self.weight)
        return self._shape(grid) + level

    def _shape(self, grid: Grid) -> Array:
        """Log density up to a constant. A belief narrower than the whole grid can hold is as wide as one of its steps."""
        assert self.log_b is not None
        assert self.log_mid is not None
        z_b = (np.log(grid.b) - self.log_b[0]) / max(self.log_b[1], grid.whole.step_b)
        z_mid = (grid.log_mid - self.log_mid[0]) / max(self.log_mid[1], grid.whole.step_mid)
        shape: Array = -0.5 * (z_b**2 + z_mid**2)
        return shape


@dataclass(frozen=True)
class Prior:
    """A mixture of components; weights sum to 1."""

    components: tuple[Component, ...] = (Component(1.0),)

    @classmethod
    def from_runs(cls, runs: Sequence["Forecaster"], robust: float = ROBUST) -> "Prior":
        """The prior of one more run of the recipe that `runs` are finished runs of.

        Raises:
            ValueError: no run, one without points, or `robust` not in (0, 1).
        """
        if not runs or any(not run.points for run in runs):
            raise ValueError("prior: finished runs with observed points are needed")
        if not 0.0 < robust < 1.0:
            raise ValueError(f"prior: robust share {robust} is not in (0, 1)")
        found = np.array([_moments(run) for run in runs])  # (J, 2, 4)
        means, within = found[:, 0], found[:, 1]
        middle = np.average(means, axis=0, weights=1.0 / (within + BETWEEN_SD**2).sum(axis=1))
        freedom = PSEUDO_RUNS + len(runs) - 1
        spread = np.maximum((means - middle) ** 2 - within, 0.0).sum(axis=0)
        between = (PSEUDO_RUNS * BETWEEN_SD**2 + spread) / freedom
        variance = between * (1.0 + 1.0 / len(runs)) + within.mean(axis=0) / len(runs)
        variance *= freedom / (freedom - 2) if freedom > 2 else float(PSEUDO_RUNS)
        sd = np.sqrt(variance)
        like = Component(
            1.0 - robust,
            mean=(float(middle[0]), float(middle[1])),
            variance=(float(variance[0]), float(variance[1])),
            log_b=(float(middle[2]), float(sd[2])),
            log_mid=(float(middle[3]), float(sd[3])),
        )
        return cls((like, Component(robust)))


def _moments(run: "Forecaster") -> tuple[Array, Array]:
    """Posterior mean and variance of (R0, A, ln B, ln C_mid)."""
    found = run.parameters()
    draws = np.array([found.R0.values, found.A.values, np.log(found.B.values), np.log(found.C_mid.values)])
    return draws.mean(axis=1), draws.var(axis=1)


def _log_sum(values: Array) -> float:
    top = float(values.max())
    return top + math.log(float(np.exp(values - top).sum()))
