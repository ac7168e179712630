"""Point fits behind the forecaster's interface, for comparison: what papers and notebooks use, with the interval they give.

    scalerl           the paper's protocol exactly, compute in GPU-hours: A .450 to .800, 100 C_mid from 100 to 40,000, B by
                      `curve_fit`, points before 1,500 dropped; A +- 0.02
    scalerl-relative  the same on a grid sized to the budget, for any unit: A 0 to 1, 100 C_mid from 0.001 to 1 x budget, points
                      before 3 % of the budget dropped
    curve_fit         four parameters by weighted least squares, interval from its covariance (delta method)
    power_law         A - D (C / budget)^-b by `curve_fit`, the same cut
    last_value        the mean of the last tenth of the points

R_0 of the protocol is the evaluation at compute 0 if there is one, else the mean of the first tenth (at most 3) of the points.
A fit that fails is the mean of the last 5 points with an sd of 0.2.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.special import ndtri

from controlplane.forecast.law import Array
from controlplane.forecast.protocol import CUT, Fit, fit_scalerl, scan_scalerl

Method = Literal["posterior", "scalerl", "scalerl-relative", "curve_fit", "power_law", "last_value"]
METHODS: tuple[Method, ...] = ("posterior", "scalerl", "scalerl-relative", "curve_fit", "power_law", "last_value")

MARGIN_SD = 0.02 / 1.96
"""The paper's margin on A as a 95 % interval."""
FAILED_SD = 0.2
RELATIVE_CUT = 0.03
Normal = tuple[float, float]


@dataclass(frozen=True, eq=False)
class PointFit:
    """A fitted curve. `predict(compute)` gives mean and sd, (H,) each; `parameters` has (value, sd), NaN where there is none."""

    predict: Callable[[Array], tuple[Array, Array]]
    A: Normal
    B: Normal
    C_mid: Normal
    R0: Normal
    failed: bool = False


def fit(method: Method, compute: Array, rate: Array, variance: Array, budget: float) -> PointFit:
    """Fit `method` to points in order of compute, shapes (n,).

    Raises:
        ValueError: too few points for the method, or none after its cut.
    """
    if len(rate) == 0:
        raise ValueError(f"{method}: no point was observed; there is nothing to fit")
    if method == "last_value":
        return _last_value(rate, variance)
    if method == "curve_fit":
        return _curve_fit(compute, rate, variance, budget)
    if method == "power_law":
        return _power_law(compute, rate, variance, budget)
    exact = method == "scalerl"
    start = compute <= 0.0
    r0 = float(rate[start].mean() if start.any() else rate[: min(3, len(rate) // 10 + 1)].mean())
    later = compute >= (CUT if exact else RELATIVE_CUT * budget)
    if int((later & ~start).sum()) < 3:
        raise ValueError(f"{method}: fewer than 3 points after its cut; it fits three parameters")
    c, y = compute[later & ~start], rate[later & ~start]
    found = fit_scalerl(c.tolist(), y.tolist(), r0) if exact else scan_scalerl(c, y, r0, budget)
    return _protocol(found)


def _protocol(found: Fit) -> PointFit:
    def predict(compute: Array) -> tuple[Array, Array]:
        return found.predict(compute), np.full(len(compute), MARGIN_SD)

    return PointFit(predict, (found.A, MARGIN_SD), (found.B, 0.0), (found.C_mid, 0.0), (found.R0, 0.0))


def _last_value(rate: Array, variance: Array) -> PointFit:
    last = rate[-max(3, len(rate) // 10) :]
    value, sd = float(last.mean()), math.sqrt(float(variance[-1]))
    nothing = (math.nan, math.nan)
    return PointFit(_constant(value, sd), (value, sd), nothing, nothing, nothing)


def _constant(value: float, sd: float) -> Callable[[Array], tuple[Array, Array]]:
    return lambda compute: (np.full(len(compute), value), np.full(len(compute), sd))


def _failure(rate: Array) -> PointFit:
    value, nothing = float(rate[-5:].mean()), (math.nan, math.nan)
    return PointFit(_constant(value, FAILED_SD), (value, FAILED_SD), nothing, nothing, nothing, failed=True)


def _curve_fit(compute: Array, rate: Array, variance: Array, budget: float) -> PointFit:
    """(R0, A, ln B, ln C_mid), bounded, weighted by the relative variances."""

    def law(c: Array, r0: float, a: float, log_b: float, log_mid: float) -> Array:
        with np.errstate(divide="ignore", over="ignore"):
            value: Array = r0 + (a - r0) / (1.0 + np.exp(np.exp(log_b) * (log_mid - np.log(c))))
        return value

    r0 = float(rate[: max(2, len(rate) // 20)].mean())
    positive = compute[compute > 0.0]
    middle = float(np.median(positive)) if len(positive) else 0.1 * budget
    start = [r0, min(max(float(rate[-5:].mean()), r0 + 0.05), 0.98), math.log(1.5), math.log(middle)]
    low = [-0.05, 0.0, math.log(0.2), math.log(0.001 * budget)]
    high = [1.0, 1.0, math.log(10.0), math.log(20.0 * budget)]
    return _least_squares(law, start, low, high, compute, rate, variance, names=(1, 2, 3, 0))


def _power_law(compute: Array, rate: Array, variance: Array, budget: float) -> PointFit:
    def law(c: Array, a: float, d: float, b: float) -> Array:
        value: Array = a - d * (c / budget) ** -b
        return value

    used = (compute >= RELATIVE_CUT * budget) & (compute > 0.0)
    if int(used.sum()) < 3:
        return _failure(rate)
    start = [min(max(float(rate[-5:].mean()) + 0.05, 0.05), 0.98), 0.1, 0.5]
    return _least_squares(
        law,
        start,
        [0.0, 0.0, 0.01],
        [1.0, 5.0, 5.0],
        compute[used],
        rate[used],
        variance[used],
        names=(0, 2, None, None),
    )


def _least_squares(
    law: Callable[..., Array],
    start: list[float],
    low: list[float],
    high: list[float],
    compute: Array,
    rate: Array,
    variance: Array,
    names: tuple[int | None, ...],
) -> PointFit:
    """`names`: positions of A, B, C_mid, R0 among the parameters; in a four-parameter law B and C_mid are fitted as logs."""
    if len(compute) < len(start):
        return _failure(rate)
    try:
        with warnings.catch_warnings(action="ignore", category=OptimizeWarning):
            found, covariance = curve_fit(
                law,
                compute,
                rate,
                p0=np.clip(start, low, high),
                bounds=(low, high),
                sigma=np.sqrt(variance),
                max_nfev=4000,
            )
    except RuntimeError:
        return _failure(rate)

    def predict(at: Array) -> tuple[Array, Array]:
        value = law(at, *found)
        steps = 1e-5 * np.eye(len(found))
        slope = np.array([(law(at, *(found + h)) - law(at, *(found - h))) / 2e-5 for h in steps])
        with np.errstate(invalid="ignore"):
            spread = np.sqrt(np.einsum("ph,pq,qh->h", slope, covariance, slope))
        return value, np.where(np.isfinite(spread), spread, FAILED_SD)

    def of(name: int, logarithm: bool) -> Normal:
        place = names[name]
        if place is None:
            return math.nan, math.nan
        sd = math.sqrt(covariance[place, place]) if np.isfinite(covariance[place, place]) else math.nan
        value = float(found[place])
        return (math.exp(value), math.exp(value) * sd) if logarithm else (value, sd)

    logs = len(found) == 4
    return PointFit(predict, of(0, False), of(1, logs), of(2, True), of(3, False))


def normals(mean: Array, sd: Array, count: int) -> Array:
    """(H, N) evenly spread quantiles of H normals."""
    z = ndtri((np.arange(count) + 0.5) / count)
    values: Array = mean[:, None] + sd[:, None] * z[None, :]
    return values


def spread_normals(mean: Array, sd: Array, count: int) -> Array:
    """The same, clipped to [0, 1]: forecasts of pass rates."""
    values: Array = np.clip(normals(mean, sd, count), 0.0, 1.0)
    return values
