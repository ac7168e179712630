"""What forecasts would have been worth: fits on the first part of finished curves against what came. Pure.

    fit on the first 10, 25, 50 % of a curve (at least 6 points) -> forecast at 2, 4, 10 times that compute, where inside it
    truth   mean of the points within 7 % of the target compute (at the end: the last 7 %), at least the 3 nearest
    noise   of that mean, from successive differences, is added to every method's interval
    scores  absolute error; coverage of 80 and 95 %; width and Winkler score of the 80 % interval (lower is better)

Families weigh the same in every mean: runs of one family share code and data and are not independent.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from controlplane.forecast.forecaster import Forecaster
from controlplane.forecast.law import Array
from controlplane.forecast.methods import Method
from controlplane.forecast.noise import rice

FRACTIONS = (0.1, 0.25, 0.5)
HORIZONS = (2.0, 4.0, 10.0)
LEAST_POINTS = 6
TRUTH_WINDOW, TRUTH_POINTS = 0.07, 3
Z = {0.8: 1.2815515655446004, 0.95: 1.959963984540054}


@dataclass(frozen=True, eq=False)
class Series:
    """One finished curve: compute (increasing, from 0 on) and pass rate, shape (n,) each; `samples` per point if known."""

    name: str
    family: str
    compute: Array
    rate: Array
    samples: float | None = None


@dataclass(frozen=True)
class Scored:
    """One forecast against what came. Intervals are those of the method with the noise of the truth added."""

    family: str
    name: str
    method: str
    fraction: float
    horizon: float
    points: int
    truth: float
    middle: float
    low80: float
    high80: float
    low95: float
    high95: float
    refused: bool

    @property
    def error(self) -> float:
        return self.middle - self.truth

    @property
    def in80(self) -> bool:
        return self.low80 <= self.truth <= self.high80

    @property
    def in95(self) -> bool:
        return self.low95 <= self.truth <= self.high95

    @property
    def width(self) -> float:
        return self.high80 - self.low80

    @property
    def winkler(self) -> float:
        """Width of the 80 % interval, and 10 for each unit by which it misses."""
        return self.width + 10.0 * (max(self.low80 - self.truth, 0.0) + max(self.truth - self.high80, 0.0))


@dataclass(frozen=True)
class Score:
    """Means over forecasts, families weighted equally."""

    forecasts: int
    families: int
    mae: float
    bias: float
    cov80: float
    cov95: float
    width: float
    winkler: float


@dataclass(frozen=True)
class Rival:
    """How forecasts are made: a method, and whether its intervals are the calibrated ones (posterior only)."""

    name: str
    method: Method
    calibrated: bool = False


OURS = Rival("ours", "posterior", calibrated=True)
RIVALS = (
    OURS,
    Rival("ours, uncalibrated", "posterior"),
    Rival("ScaleRL protocol", "scalerl-relative"),
    Rival("curve_fit", "curve_fit"),
    Rival("power law", "power_law"),
    Rival("last value", "last_value"),
)


def run_backtest(
    curves: Iterable[Series],
    rivals: Sequence[Rival] = RIVALS,
    fractions: Sequence[float] = FRACTIONS,
    horizons: Sequence[float] = HORIZONS,
    told: Callable[[Series], None] = lambda _: None,
) -> list[Scored]:
    """Every forecast of every method. `told` is called before each curve."""
    found: list[Scored] = []
    for series in curves:
        told(series)
        for fraction in fractions:
            found += _one_window(series, rivals, fraction, horizons)
    return found


def summary(scored: Sequence[Scored]) -> Score:
    """Families weighted equally. ValueError without forecasts."""
    if not scored:
        raise ValueError("backtest: no forecast to average; a curve needs 6 points in the part that is fitted")
    families = sorted({s.family for s in scored})
    rows = np.array(
        [
            np.mean(
                [(abs(s.error), s.error, s.in80, s.in95, s.width, s.winkler) for s in scored if s.family == f], axis=0
            )
            for f in families
        ]
    )
    return Score(len(scored), len(families), *map(float, rows.mean(axis=0)))


def truth_at(series: Series, target: float) -> tuple[float, float]:
    """Mean pass rate around `target` and the sd of its noise."""
    end = float(series.compute[-1])
    distance = np.abs(series.compute - min(target, end))
    inside = distance <= TRUTH_WINDOW * target
    if int(inside.sum()) < TRUTH_POINTS:
        inside = np.zeros(len(distance), dtype=bool)
        inside[np.argsort(distance, kind="stable")[:TRUTH_POINTS]] = True
    noise = rice(series.rate.tolist())
    return float(series.rate[inside].mean()), math.sqrt(noise / int(inside.sum()))


def _one_window(series: Series, rivals: Sequence[Rival], fraction: float, horizons: Sequence[float]) -> list[Scored]:
    end = float(series.compute[-1])
    last = fraction * end
    seen = series.compute <= last + 1e-9 * end
    targets = [(h, h * last) for h in horizons if h * last <= end * (1.0 + 1e-9)]
    if int(seen.sum()) < LEAST_POINTS or not targets:
        return []
    truths = [truth_at(series, c) for _, c in targets]
    found: list[Scored] = []
    made: dict[Method, Forecaster] = {}
    for rival in rivals:
        if rival.method not in made:
            made[rival.method] = _fitted(series, seen, end, rival.method)
        for (horizon, compute), (truth, noise) in zip(targets, truths, strict=True):
            found.append(_score(series, made[rival.method], rival, fraction, horizon, min(compute, end), truth, noise))
    return found


def _fitted(
    series: Series, seen: "np.ndarray[tuple[int], np.dtype[np.bool_]]", end: float, method: Method
) -> Forecaster:
    forecaster = Forecaster(budget=end, method=method)
    for compute, rate in zip(series.compute[seen], series.rate[seen], strict=True):
        forecaster.observe(float(compute), float(rate), samples=series.samples)
    return forecaster


def _score(
    series: Series,
    forecaster: Forecaster,
    rival: Rival,
    fraction: float,
    horizon: float,
    compute: float,
    truth: float,
    noise: float,
) -> Scored:
    p = forecaster.forecast([compute])
    middle = float(p.quantile(0.5)[0])

    def interval(level: float) -> tuple[float, float]:
        if rival.calibrated:
            low, high = (float(edge[0]) for edge in p.interval(level))
        else:
            low, high = (float(p.quantile(q)[0]) for q in ((1 - level) / 2, (1 + level) / 2))
        extra = Z[level] * noise
        return middle - math.hypot(middle - low, extra), middle + math.hypot(high - middle, extra)

    (low80, high80), (low95, high95) = interval(0.8), interval(0.95)
    return Scored(
        series.family, series.name, rival.name, fraction, horizon, len(forecaster.points), truth, middle,
        low80, high80, low95, high95, p.refused,
    )  # fmt: skip
