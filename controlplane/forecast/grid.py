"""Shapes (B, C_mid), noise settings (kappa, phi) and priors: the fixed frame of the posterior.

    cells    G = n_b x n_mid     B log-spaced on [0.35, 6], C_mid log-spaced on [0.015, 4] x budget
    settings K = 6 x 3           kappa: sd of the random walk per sqrt(log compute); phi: factor on the known variance
    beta     normal, independent, integrated in closed form; truncated later by rejecting draws

The defaults come from 176 published runs of 22 families (docs/forecast.md); changing them changes the calibration.
"""

import math
from dataclasses import dataclass

import numpy as np

from controlplane.forecast.law import Array

B_RANGE = (0.35, 6.0)
B_CENTRE, B_SPREAD = 1.8, 0.55
MID_RANGE = (0.015, 4.0)
KAPPA = (0.0, 0.01, 0.02, 0.04, 0.08, 0.16)
PHI = (0.75, 1.0, 1.35)
PHI_SPREAD = 0.35

BETA_MEAN, BETA_VAR = (0.3, 0.7), (0.3**2, 0.35**2)
CHANGE_VAR = (0.06**2, 0.15**2)
"""Prior variance of a change-point's level jump and extra gain; both have mean 0."""

TRUNCATED_SD_A = 0.207
"""Prior sd of A once draws outside the support are rejected (untruncated it is 0.35)."""


Window = tuple[int, int, int, int]
"""First and last node of B, first and last of C_mid, on the whole grid."""
OUTSIDE = 1e-4
"""Share of the posterior that may lie beyond each edge of a window before it is widened by one more node."""
WORTH_IT = 0.5
"""A window is looked at more closely where it holds at most this share of the whole grid."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Flattened grid. `b`, `log_mid`, `log_cell`: shape (G,); `kappa`, `phi`, `log_setting`: shape (K,)."""

    b: Array
    log_mid: Array
    log_cell: Array
    step_b: float
    step_mid: float
    kappa: Array
    phi: Array
    log_setting: Array
    shape: tuple[int, int]
    part_of: "Grid | None" = None
    """The whole grid, of which this is a part with as many cells."""

    @property
    def whole(self) -> "Grid":
        return self.part_of or self


def make_grid(budget: float, shape: tuple[int, int] = (16, 32)) -> Grid:
    """The default grid for a run that ends at `budget`; `shape` is the number of values of (B, C_mid)."""
    log_b = np.linspace(math.log(B_RANGE[0]), math.log(B_RANGE[1]), shape[0])
    log_mid = np.linspace(math.log(MID_RANGE[0] * budget), math.log(MID_RANGE[1] * budget), shape[1])
    return _grid(log_b, log_mid, None)


def window_of(grid: Grid, mass: Array) -> Window | None:
    """Where the posterior `mass` of the cells, (G,), is; None where a closer look would not be much closer.

    The edges are nodes of the grid, so that they stay where they are while points arrive that change little.
    """
    by_b, by_mid = mass.reshape(grid.shape).sum(axis=1), mass.reshape(grid.shape).sum(axis=0)
    (b0, b1), (m0, m1) = _edges(by_b), _edges(by_mid)
    share = (b1 - b0) * (m1 - m0) / ((grid.shape[0] - 1) * (grid.shape[1] - 1))
    return (b0, b1, m0, m1) if share <= WORTH_IT else None


def look_closer(grid: Grid, window: Window) -> Grid:
    """A grid of the same number of cells over `window` of `grid`."""
    log_b, log_mid = np.log(grid.b.reshape(grid.shape)[:, 0]), grid.log_mid.reshape(grid.shape)[0]
    b0, b1, m0, m1 = window
    return _grid(
        np.linspace(log_b[b0], log_b[b1], grid.shape[0]), np.linspace(log_mid[m0], log_mid[m1], grid.shape[1]), grid
    )


def _edges(mass: Array) -> tuple[int, int]:
    share = np.cumsum(mass) / mass.sum()
    first, last = int(np.searchsorted(share, OUTSIDE)), int(np.searchsorted(share, 1.0 - OUTSIDE))
    return max(first - 1, 0), min(last + 1, len(mass) - 1)


def _grid(log_b: Array, log_mid: Array, whole: Grid | None) -> Grid:
    """All cells of two axes."""
    cell_b, cell_mid = (axis.ravel() for axis in np.meshgrid(log_b, log_mid, indexing="ij"))
    phi_weight = np.exp(-0.5 * (np.log(PHI) / PHI_SPREAD) ** 2)
    phi_weight /= phi_weight.sum()
    return Grid(
        b=np.exp(cell_b),
        log_mid=cell_mid,
        log_cell=-0.5 * ((cell_b - np.log(B_CENTRE)) / B_SPREAD) ** 2,
        step_b=float(log_b[1] - log_b[0]),
        step_mid=float(log_mid[1] - log_mid[0]),
        kappa=np.repeat(KAPPA, len(PHI)),
        phi=np.tile(PHI, len(KAPPA)),
        log_setting=np.tile(np.log(phi_weight), len(KAPPA)) - np.log(len(KAPPA)),
        shape=(len(log_b), len(log_mid)),
        part_of=whole,
    )
