"""The ScaleRL paper's protocol (appendix A.5): a grid over A and C_mid, B by least squares. For comparison only.

It gives no interval: the paper's margin of 0.02 on A was measured on large runs past their bend (docs/forecast.md).
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

from controlplane.forecast.law import Array

A_GRID = np.linspace(0.45, 0.8, 71)
C_MID_GRID = np.linspace(100.0, 40_000.0, 100)
ITERATIONS, MOST_TRIED = 60, 20
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


def _columns(
    compute: Sequence[float] | Array, pass_rate: Sequence[float] | Array, cut: float, least: int
) -> tuple[Array, Array]:
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
    """ScaleRL, appendix A.5: for each (A, C_mid) fit B alone, keep the least squared residual.

    All pairs are fitted at once, the best then by `curve_fit` with its default start, as in the paper.

    Unweighted; points with compute below `cut` are dropped. The paper prints linspace(100, 40000, 100) for C_mid, but
    most of its published values lie on linspace(100, 4000, 100). ValueError if fewer than 2 points remain.
    """
    c, y = _columns(compute, pass_rate, cut, least=2)
    a, mid = np.asarray(a_grid, dtype=float), np.asarray(c_mid_grid, dtype=float)
    loss, b = _fit_b(np.log(c), y, r0, a, np.log(mid))
    for flat in np.argsort(np.where(b > 0.0, loss, np.inf), axis=None, kind="stable")[:MOST_TRIED]:
        i, j = np.unravel_index(int(flat), loss.shape)
        a_best, m_best = float(a[i]), float(mid[j])
        try:
            with warnings.catch_warnings(action="ignore", category=OptimizeWarning):  # the covariance is not used
                (fitted,), _ = curve_fit(lambda x, b, a=a_best, m=m_best: _law(x, r0, a, b, m), c, y, p0=[1.0])
        except RuntimeError:  # B runs away where this pair cannot follow the points at all
            continue
        if fitted > 0.0:
            rmse = float(np.sqrt(np.mean((_law(c, r0, a_best, fitted, m_best) - y) ** 2)))
            return Fit(a_best, float(fitted), m_best, r0, rmse)
    raise ValueError("fit_scalerl: no pair (A, C_mid) of the grid could be fitted to these points")


def _fit_b(log_c: Array, y: Array, r0: float, a: Array, log_mid: Array) -> tuple[Array, Array]:
    """Sum of squares and B of every pair, (A, C_mid) each, by Levenberg-Marquardt from B = 1 on all pairs at once.

    That is what `curve_fit` does pair by pair, which takes a hundred times longer; the best pair is given to it afterwards.
    """
    x = log_c - log_mid[:, None]  # (M, n)
    gain = (a - r0)[:, None, None]

    def residual(b: Array) -> tuple[Array, Array]:
        s = 1.0 / (1.0 + np.exp(-np.clip(b[..., None] * x, -60.0, 60.0)))
        return y - r0 - gain * s, gain * s * (1.0 - s) * x

    b = np.ones((len(a), len(log_mid)))
    rest, slope = residual(b)
    loss, damping = (rest**2).sum(axis=-1), np.full(b.shape, 1e-3)
    for _ in range(ITERATIONS):
        curvature = (slope**2).sum(axis=-1)
        step = (rest * slope).sum(axis=-1) / np.maximum(curvature * (1.0 + damping), 1e-300)
        trial = np.clip(b + np.clip(step, -1.0, 1.0), -50.0, 50.0)
        new_rest, new_slope = residual(trial)
        new_loss = (new_rest**2).sum(axis=-1)
        better = new_loss < loss
        damping = np.where(better, damping / 10.0, damping * 10.0)
        moved = float(np.abs(np.where(better, trial - b, 0.0)).max())
        b, loss = np.where(better, trial, b), np.where(better, new_loss, loss)
        rest, slope = np.where(better[..., None], new_rest, rest), np.where(better[..., None], new_slope, slope)
        if moved < 1e-9 and not (damping < 1e3).any():
            break
    return loss, b


def scan_scalerl(compute: Array, pass_rate: Array, r0: float, budget: float) -> Fit:
    """The protocol on a grid sized to the budget, for any unit of compute: A 0 to 1 by 0.005, 100 C_mid from 0.001 to 1 x budget.

    B is scanned over 80 values from 0.2 to 10 and then fitted at the best pair; for given (B, C_mid) the best A of the grid
    is the least-squares one rounded, so that all pairs cost one pass over an array.
    """
    c, y = _columns(compute, pass_rate, cut=0.0, least=2)
    b = np.geomspace(0.2, 10.0, 80)[:, None, None]
    mid = np.linspace(0.001, 1.0, 100)[None, :, None] * budget
    with np.errstate(over="ignore"):
        s = 1.0 / (1.0 + (mid / c) ** b)
    rest = y - r0 * (1.0 - s)
    a = np.clip(np.round((rest * s).sum(axis=-1) / np.maximum((s * s).sum(axis=-1), 1e-300) / 0.005) * 0.005, 0.0, 1.0)
    loss = ((rest - a[..., None] * s) ** 2).sum(axis=-1)
    i, j = np.unravel_index(int(loss.argmin()), loss.shape)
    a_best, m_best, b_best = float(a[i, j]), float(mid[0, j, 0]), float(b[i, 0, 0])
    try:
        with warnings.catch_warnings(action="ignore", category=OptimizeWarning):
            (fitted,), _ = curve_fit(lambda x, b: _law(x, r0, a_best, b, m_best), c, y, p0=[b_best])
    except RuntimeError:
        fitted = b_best
    b_best = float(fitted) if 0.2 <= fitted <= 10.0 else b_best
    rmse = float(np.sqrt(np.mean((_law(c, r0, a_best, b_best, m_best) - y) ** 2)))
    return Fit(a_best, b_best, m_best, r0, rmse)
