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


def make_grid(budget: float, shape: tuple[int, int] = (16, 32)) -> Grid:
    """The default grid for a run that ends at `budget`; `shape` is the number of values of (B, C_mid)."""
    log_b = np.linspace(math.log(B_RANGE[0]), math.log(B_RANGE[1]), shape[0])
    log_mid = np.linspace(math.log(MID_RANGE[0] * budget), math.log(MID_RANGE[1] * budget), shape[1])
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
    )
