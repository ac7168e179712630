"""Two published ways to fit the law, for comparison only: the ScaleRL paper's protocol and plain least squares.

Neither gives an honest interval: on published runs the covariance of `curve_fit` covers 57 % at a nominal 80 %, and
the paper's margin of 0.02 on A was measured on large runs past their bend (docs/forecast.md).
"""

import warnings
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

from controlplane.forecast.law import Array

A_GRID = np.linspace(0.45, 0.8, 71)
C_MID_GRID = np.linspace(100.0, 40_000.0, 100)
CUT = 1_500.0
"""ScaleRL, appendix A.7: points before 1.5k GPU-hours are off the trend."""


class Fit(NamedTuple):
    """A fitted law; `rmse` is the root mean squared residual of the points used."""

    A: float
    B: float
    C_mid: float
    R0: float
    rmse: float

    def predict(self, compute: Sequence[float] | Array) -> Array:
        """Pass rate at each compute, which must be above 0."""
        return _law(np.asarray(compute, dtype=float), self.R0, self.A, self.B, self.C_mid)


def _law(compute: Array, r0: float, a: float, b: float, c_mid: float) -> Array:
    with np.errstate(over="ignore"):
        value: Array = r0 + (a - r0) / (1.0 + (c_mid / compute) ** b)
    return value


def _columns(compute: Sequence[float], pass_rate: Sequence[float], cut: float, least: int) -> tuple[Array, Array]:
    c, y = np.asarray(compute, dtype=float), np.asarray(pass_rate, dtype=float)
    if c.shape != y.shape or not (np.isfinite(c).all() and np.isfinite(y).all() and (c > 0.0).all()):
        raise ValueError("fit: compute (above 0) and pass rate must be finite and of equal length")
    used = c >= cut
    if int(used.sum()) < least:
        raise ValueError(f"fit: {int(used.sum())} points at or after compute {cut:g}; at least {least} are needed")
    return c[used], y[used]


def fit_scalerl(
    compute: Sequence[float],
    pass_rate: Sequence[float],
    r0: float,
    *,
    cut: float = CUT,
    a_grid: Array = A_GRID,
    c_mid_grid: Array = C_MID_GRID,
) -> Fit:
    """ScaleRL, appendix A.5: for each (A, C_mid) fit B alone with `curve_fit`, keep the least squared residual.

    Unweighted; points with compute below `cut` are dropped. The paper prints linspace(100, 40000, 100) for C_mid, but
    most of its published values lie on linspace(100, 4000, 100). ValueError if fewer than 2 points remain.
    """
    c, y = _columns(compute, pass_rate, cut, least=2)
    best: Fit | None = None
    for a, c_mid in product(a_grid, c_mid_grid):
        try:
            with warnings.catch_warnings(action="ignore", category=OptimizeWarning):  # the covariance is not used
                (b,), _ = curve_fit(lambda x, b, a=a, m=c_mid: _law(x, r0, a, b, m), c, y, p0=[1.0])
        except RuntimeError:  # B runs away where this pair cannot follow the points at all
            continue
        rmse = float(np.sqrt(np.mean((_law(c, r0, a, b, c_mid) - y) ** 2)))
        if b > 0.0 and (best is None or rmse < best.rmse):
            best = Fit(float(a), float(b), float(c_mid), r0, rmse)
    if best is None:
        raise ValueError("fit_scalerl: no pair (A, C_mid) of the grid could be fitted to these points")
    return best


def fit_curve(compute: Sequence[float], pass_rate: Sequence[float], *, budget: float, cut: float = 0.0) -> Fit:
    """Plain four-parameter `curve_fit` in (R0, A, ln B, ln C_mid), bounded. RuntimeError if it does not converge."""
    c, y = _columns(compute, pass_rate, cut, least=4)
    r0 = float(np.mean(y[: max(2, len(y) // 20)]))
    start = [r0, min(max(float(np.mean(y[-5:])), r0 + 0.05), 0.98), np.log(1.5), np.log(np.median(c))]
    bounds = ([-0.05, 0.0, np.log(0.2), np.log(0.001 * budget)], [1.0, 1.0, np.log(10.0), np.log(20.0 * budget)])
    found, _ = curve_fit(
        lambda x, r, a, lb, lm: _law(x, r, a, np.exp(lb), np.exp(lm)),
        c, y, p0=np.clip(start, *bounds), bounds=bounds, max_nfev=4000,
    )  # fmt: skip
    r0, a, b, c_mid = found[0], found[1], np.exp(found[2]), np.exp(found[3])
    rmse = float(np.sqrt(np.mean((_law(c, r0, a, b, c_mid) - y) ** 2)))
    return Fit(float(a), float(b), float(c_mid), float(r0), rmse)
