"""Streaming sufficient statistics of the linear model under a random-walk discrepancy.

    y_i = x(C_i) . beta + g(u_i) + e_i,   e_i ~ N(0, phi v_i),   g(u_1) = 0,   g(u') - g(u) ~ N(0, kappa^2 (u' - u))

The level g is a local-level model whose gain depends on the setting (kappa, phi) only, never on the shape. Filtering
the observation and every regressor with that gain whitens them, so the information about beta just adds up: a point
costs O(K G p^2) and no history is kept. A sub-model with fewer change-points is a sub-block of the same statistics.

Invariant: points arrive in order of compute; equal compute is allowed. A point at compute 0 comes first and measures R0.
"""

from collections.abc import Sequence

import numpy as np

from controlplane.forecast.grid import Grid
from controlplane.forecast.law import elapsed, regressors


class Filter:
    """State after n points. `level_var`, `level_y`, `quad`, `log_det`: (K,); `level_x`, `info_y`: (p, K, G);
    `info`: (p, p, K, G), of which only `[i, j]` with `i >= j` is kept."""

    def __init__(self, grid: Grid, changes: Sequence[float] = ()) -> None:
        """`changes`: log compute of the known change-points, increasing."""
        self.grid = grid
        self.changes = tuple(changes)
        p, k, cells = 2 + 2 * len(self.changes), len(grid.kappa), len(grid.b)
        self.level_var, self.level_y, self.quad, self.log_det = (np.zeros(k) for _ in range(4))
        self.level_x, self.info_y = np.zeros((p, k, cells)), np.zeros((p, k, cells))
        self.info = np.zeros((p, p, k, cells))
        self.last_u: float | None = None

    def copy(self) -> "Filter":
        """An independent copy: what it absorbs is not seen here."""
        twin = object.__new__(Filter)
        twin.__dict__ = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in self.__dict__.items()}
        return twin

    def absorb(self, u: float, y: float, v: float) -> None:
        """Add one point at log compute `u` with pass rate `y` and variance `v`."""
        step = elapsed(self.last_u, u)
        self.last_u = u
        self.level_var = self.level_var + self.grid.kappa**2 * step
        innovation_var = self.level_var + self.grid.phi * v
        gain = self.level_var / innovation_var
        error_y = y - self.level_y
        weight = (1.0 / innovation_var)[:, None]
        weighted_y = (error_y / innovation_var)[:, None]
        # Change-points are ordered, so the regressors that have been non-zero so far are a prefix.
        active = 2 + 2 * sum(u > change for change in self.changes)
        x = regressors(u, self.grid.b, self.grid.log_mid, self.changes)
        error_x = [x[i] - self.level_x[i] for i in range(active)]
        for i, error in enumerate(error_x):
            weighted = error * weight
            for j in range(i + 1):
                self.info[i, j] += weighted * error_x[j]
            self.info_y[i] += error * weighted_y
            self.level_x[i] += error * gain[:, None]
        self.quad = self.quad + error_y**2 / innovation_var
        self.log_det = self.log_det + np.log(innovation_var)
        self.level_y = self.level_y + gain * error_y
        self.level_var = (1.0 - gain) * self.level_var
