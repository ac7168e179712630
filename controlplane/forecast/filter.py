"""Streaming sufficient statistics of the linear model under a random-walk discrepancy.

    y_i = x(C_i) . beta + g(u_i) + e_i,   e_i ~ N(0, phi v_i),   g(u_1) = 0,   g(u') - g(u) ~ N(0, kappa^2 (u' - u))

The level g is a local-level model whose gain depends on the setting (kappa, phi) only, never on the shape. Filtering
the observation and every regressor with that gain whitens them, so the information about beta just adds up: a point
costs O(K G p^2) and no history is kept. A sub-model with fewer change-points is a sub-block of the same statistics.

The first two regressors are 1 - s and s, and the filter is linear: their levels sum to the level of a constant 1, which is
the same in every cell. So everything about the first follows from the others, and is not accumulated.

Invariant: points arrive in order of compute; equal compute is allowed. A point at compute 0 comes first and measures R0.
"""

from collections.abc import Sequence

import numpy as np

from controlplane.forecast.grid import Grid
from controlplane.forecast.law import Array, elapsed, regressors


class Filter:
    """State after n points, per setting (K,) and, for the regressors from the second on, per cell (p - 1, K, G)."""

    def __init__(self, grid: Grid, changes: Sequence[float] = ()) -> None:
        """`changes`: log compute of the known change-points, increasing."""
        self.grid = grid
        self.changes = tuple(changes)
        self.p = 2 + 2 * len(self.changes)
        k, cells = len(grid.kappa), len(grid.b)
        self.level_var, self.level_y, self.quad, self.log_det = (np.zeros(k) for _ in range(4))
        self._level_one, self._info_one, self._info_one_y = (np.zeros(k) for _ in range(3))
        self._level, self._info_with_one, self._info_y = (np.zeros((self.p - 1, k, cells)) for _ in range(3))
        self._info = np.zeros((self.p - 1, self.p - 1, k, cells))
        self.last_u: float | None = None

    @property
    def level_x(self) -> Array:
        """Filtered level of every regressor, (p, K, G)."""
        return np.concatenate([(self._level_one[:, None] - self._level[0])[None], self._level])

    def information(self) -> tuple[Array, Array]:
        """Information about beta: matrix (p, p, K, G), of which only `[i, j]` with `i >= j` is filled, and vector (p, K, G)."""
        info, info_y = np.zeros((self.p, self.p, *self._level.shape[1:])), np.empty((self.p, *self._level.shape[1:]))
        info[1:, 1:], info_y[1:] = self._info, self._info_y
        info_y[0] = self._info_one_y[:, None] - self._info_y[0]
        for i in range(1, self.p):
            info[i, 0] = self._info_with_one[i - 1] - self._info[i - 1, 0]
        info[0, 0] = self._info_one[:, None] - self._info_with_one[0] - info[1, 0]
        return info, info_y

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
        error_y, error_one = y - self.level_y, 1.0 - self._level_one
        weight, level_var = (1.0 / innovation_var)[:, None], self.level_var[:, None]
        # Change-points are ordered, so the regressors that have been non-zero so far are a prefix.
        active = 1 + 2 * sum(u > change for change in self.changes)
        x = regressors(u, self.grid.b, self.grid.log_mid, self.changes)
        errors = [x[i + 1] - self._level[i] for i in range(active)]
        for i, error in enumerate(errors):
            weighted = error * weight
            for j in range(i):
                self._info[i, j] += weighted * errors[j]
            self._info[i, i] += weighted * error
            self._info_with_one[i] += weighted * error_one[:, None]
            self._info_y[i] += weighted * error_y[:, None]
            self._level[i] += weighted * level_var
        self._info_one = self._info_one + error_one**2 / innovation_var
        self._info_one_y = self._info_one_y + error_one * error_y / innovation_var
        self._level_one = self._level_one + gain * error_one
        self.quad = self.quad + error_y**2 / innovation_var
        self.log_det = self.log_det + np.log(innovation_var)
        self.level_y = self.level_y + gain * error_y
        self.level_var = (1.0 - gain) * self.level_var
