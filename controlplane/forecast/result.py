"""What the forecaster hands out: posterior draws with the summaries people ask for."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from controlplane.forecast.calibration import factor
from controlplane.forecast.law import Array


def _share(q: float) -> float:
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"quantile: {q} is not in [0, 1]")
    return q


@dataclass(frozen=True, eq=False)
class Distribution:
    """Posterior draws of one quantity, `values` of shape (N,); they may be infinite, so quantiles do not interpolate."""

    values: Array

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def sd(self) -> float:
        return float(self.values.std())

    def quantile(self, q: float) -> float:
        """The smallest drawn value with at least a share `q` of the draws at or below it."""
        place = math.ceil(_share(q) * len(self.values) - 1e-9) - 1
        return float(self._ordered[max(place, 0)])

    @cached_property
    def _ordered(self) -> Array:
        return np.sort(self.values)


@dataclass(frozen=True, eq=False)
class Forecast:
    """Mean pass rate at each horizon: `compute`, `mean`, `sd` of shape (H,), `draws` (H, N).

    `refused`: the numbers are a bound, not a forecast; `reason` is one sentence and says the bound (None if not refused).
    """

    compute: Array
    draws: Array
    mean: Array
    sd: Array
    refused: bool
    reason: str | None
    stretch: Array
    """Target compute over last observed compute, (H,)."""

    def quantile(self, q: float) -> Array:
        """Posterior quantile at every horizon, (H,), as the model says it; linear between neighbouring draws."""
        rows = self._ordered
        place = _share(q) * (rows.shape[1] - 1)
        low = int(place)
        high = min(low + 1, rows.shape[1] - 1)
        value: Array = rows[:, low] + (place - low) * (rows[:, high] - rows[:, low])
        return value

    @cached_property
    def _ordered(self) -> Array:
        """Sorted once: every quantile of every horizon is asked for several times."""
        return np.sort(self.draws, axis=1)

    def refuse(self, reason: str) -> "Forecast":
        """The same numbers as a bound."""
        bound = replace(self, refused=True, reason=reason)
        bound.__dict__["_ordered"] = self._ordered
        return bound

    def interval(self, level: float = 0.8) -> tuple[Array, Array]:
        """Calibrated (lower, upper), (H,) each, for level 0.8, 0.9 or 0.95: conformal factors on the 80 % half-widths."""
        low, middle, high = map(self.quantile, (0.1, 0.5, 0.9))
        k = factor(level, self.stretch)
        return np.clip(middle - k * (middle - low), 0.0, 1.0), np.clip(middle + k * (high - middle), 0.0, 1.0)


class Parameters(NamedTuple):
    """Posterior of the law's parameters; A and R0 are pass rates, A that of the current regime, C_mid is compute."""

    A: Distribution
    B: Distribution
    C_mid: Distribution
    R0: Distribution
