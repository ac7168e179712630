"""One filter that follows a table of points: new rows are absorbed, and only a changed old row starts it again."""

import math
from collections.abc import Sequence

import numpy as np

from controlplane.forecast.filter import Filter
from controlplane.forecast.grid import Grid
from controlplane.forecast.law import Array


class Stream:
    """The state after any table of (compute, pass rate, variance) rows is the one that a batch over it gives, bit for bit."""

    def __init__(self, grid: Grid, changes: Sequence[float]) -> None:
        """`changes`: compute of the change-points, increasing."""
        self.grid = grid
        self._changes = [log(c) for c in changes]
        self._filter = Filter(grid, self._changes)
        self._absorbed: Array = np.zeros((0, 3))

    def after(self, table: Array, growing: bool) -> Filter:
        """The filter after `table`, (n, 3). `growing`: the last row is a bin that may still change, so it goes into a copy."""
        known = len(self._absorbed)
        if not np.array_equal(table[:known], self._absorbed):
            known, self._filter = 0, Filter(self.grid, self._changes)
        settled = len(table) - int(growing)
        for compute, rate, variance in table[known:settled]:
            self._filter.absorb(log(compute), rate, variance)
        self._absorbed = table[:settled]
        if not growing:
            return self._filter
        state = self._filter.copy()
        compute, rate, variance = table[-1]
        state.absorb(log(compute), rate, variance)
        return state


def log(compute: float) -> float:
    """Natural logarithm; -inf at 0."""
    return math.log(compute) if compute > 0.0 else -math.inf
