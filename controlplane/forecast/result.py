"""What the forecaster hands out: posterior draws with the summaries people ask for."""

from dataclasses import dataclass
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
        return float(np.quantile(self.values, _share(q), method="inverted_cdf"))


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
        """Posterior quantile at every horizon, (H,), as the model says it."""
        return np.asarray(np.quantile(self.draws, _share(q), axis=1))

    def interval(self, level: float = 0.8) -> tuple[Array, Array]:
        """Calibrated (lower, upper), (H,) each, for level 0.8, 0.9 or 0.95: conformal factors on the 80 % half-widths."""
        low, middle, high = np.quantile(self.draws, [0.1, 0.5, 0.9], axis=1)
        k = factor(level, self.stretch)
        return np.clip(middle - k * (middle - low), 0.0, 1.0), np.clip(middle + k * (high - middle), 0.0, 1.0)


class Parameters(NamedTuple):
    """Posterior of the law's parameters; A and R0 are pass rates, A that of the current regime, C_mid is compute."""

    A: Distribution
    B: Distribution
    C_mid: Distribution
    R0: Distribution
