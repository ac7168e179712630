"""Forecast of a run's pass rate at its compute budget, with honest uncertainty, from the points seen so far.

    observe, intervene -> points -> variances -> filter -> posteriors (one per change-point subset) -> closer look -> draws
                                                                                  -> forecast, parameters, advice

Invariants: deterministic to the bit (no clock, no generator, no state outside the object); streaming gives exactly
what a refit gives, because a point whose variance estimate has moved triggers one; bad input raises and changes nothing.
"""

import math
from bisect import insort
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from controlplane.forecast.advice import Advice, advise
from controlplane.forecast.calibration import fallen, refusal
from controlplane.forecast.draws import Draws, draw
from controlplane.forecast.economics import LEAST_GAIN, STAGES, Economics, economics
from controlplane.forecast.grid import Window, look_closer, make_grid, window_of
from controlplane.forecast.methods import METHODS, Method, PointFit, normals, spread_normals
from controlplane.forecast.methods import fit as fit_points
from controlplane.forecast.noise import MAX_POINTS, Point, condense
from controlplane.forecast.posterior import cell_mass, change_probabilities, posteriors
from controlplane.forecast.prior import Prior
from controlplane.forecast.result import Distribution, Forecast, Parameters
from controlplane.forecast.stream import Stream, log

MAX_CHANGES = 3
"""Change-points kept: the latest. Older ones are left to the random walk, so the cost of a forecast stays bounded."""

FIRST_GLANCE = 0.01
"""Share of the budget at which gains are stated while nothing has been observed (the verdict is refused anyway)."""


class Change(NamedTuple):
    """A known change of regime and the posterior probability that it changed the curve (Bayes factor, even odds)."""

    compute: float
    probability: float


class Forecaster:
    """Exact grid posterior of the ScaleRL law with a random-walk discrepancy (docs/forecast.md)."""

    def __init__(
        self,
        budget: float,
        *,
        method: Method = "posterior",
        prior: Prior | None = None,
        grid: tuple[int, int] = (16, 32),
        draws: int = 4096,
    ) -> None:
        """`budget`: compute at which the run would end, any unit; `grid`: number of values of (B, C_mid).

        `method`: the posterior, or a point fit to compare it with (see `methods`): those know no change-points, no prior,
        no refusal and no advice. `prior`: what is believed beforehand, for example `Prior.from_runs` of finished runs of
        the same recipe.
        """
        if method not in METHODS:
            raise ValueError(f"forecaster: method {method!r}; allowed are {', '.join(METHODS)}")
        self.method: Method = method
        self.budget = _positive("budget", budget)
        if min(grid) < 2 or draws < 64:
            raise ValueError(f"forecaster: grid {grid} and {draws} draws given; allowed are 2 x 2 and 64 or more")
        self._grid = make_grid(self.budget, grid)
        self._count = draws
        self._points: list[Point] = []
        self._changes: list[float] = []
        self._prior = prior or Prior()
        self._wide: Stream | None = None
        self._close: Stream | None = None
        self._window: Window | None = None
        self._draws: Draws | None = None
        self._fit: PointFit | None = None
        self._probabilities: tuple[float, ...] = ()

    @property
    def points(self) -> tuple[Point, ...]:
        """Every observed point, in order."""
        return tuple(self._points)

    @property
    def changes(self) -> tuple[Change, ...]:
        """The change-points that the forecast carries, at most `MAX_CHANGES`, in order."""
        self._posterior_draws()
        return tuple(map(Change, self._changes[-MAX_CHANGES:], self._probabilities))

    def observe(
        self, compute: float, pass_rate: float, variance: float | None = None, *, samples: float | None = None
    ) -> None:
        """Add one evaluation; compute must not decrease.

        `variance`: the full variance of the point, taken as it is. `samples`: effective number of samples (prompts x
        generations on a fixed held-out set, prompts where they are fresh); the larger of binomial and Rice is used.
        """
        _compute("observe", compute)
        if self._points and compute < self._points[-1].compute:
            raise ValueError(
                f"observe: compute {compute:g} is less than the last point's {self._points[-1].compute:g}; "
                "points must arrive in order of compute"
            )
        if not 0.0 <= pass_rate <= 1.0:
            raise ValueError(f"observe: pass rate {pass_rate} at compute {compute:g} is not in [0, 1]")
        if variance is not None:
            _positive(f"observe: variance at compute {compute:g}", variance)
        if samples is not None:
            _positive(f"observe: samples at compute {compute:g}", samples)
        self._points.append(Point(float(compute), float(pass_rate), variance, samples))
        self._draws = self._fit = None

    def intervene(self, compute: float) -> None:
        """Tell of a known change of regime: points after `compute` may follow another level and gain. Idempotent."""
        _compute("intervene", compute)
        if compute not in self._changes:
            insort(self._changes, float(compute))
            self._wide = self._close = self._draws = None

    def forecast(self, computes: Sequence[float]) -> Forecast:
        """Mean pass rate at each compute, at or after the last point. One refused horizon refuses the whole answer."""
        last = self._points[-1].compute if self._points else 0.0
        for c in computes:
            if not _compute("forecast", c) >= last:
                raise ValueError(f"forecast: compute {c:g} lies before the last observed point at {last:g}")
        if len(computes) == 0:
            raise ValueError("forecast: no compute given; at least one is needed")
        horizon = np.array(computes, dtype=float)
        ratio = np.maximum(horizon / last, 1.0) if last > 0.0 else np.full(len(horizon), np.inf)
        if self.method != "posterior":
            mean, sd = self._point_fit().predict(horizon)
            return Forecast(horizon, spread_normals(mean, sd, self._count), mean, sd, False, None, ratio)
        draws = self._posterior_draws()
        values = np.array([draws.at(log(c)) for c in horizon])
        p = Forecast(horizon, values, values.mean(axis=1), values.std(axis=1), False, None, ratio)
        low, high = p.quantile(0.1), p.quantile(0.9)
        widest = int(np.argmax(high - low))
        sd_a, width = float(draws.asymptote().std()), float((high - low)[widest])
        why = refusal(len(self._points), width, sd_a, float(ratio.max()), draws.reliable, self._fall())
        reason = why and (
            f"{why[0].upper()}{why[1:]}; with 80 % probability the pass rate at compute "
            f"{horizon[widest]:g} lies between {low[widest]:.2f} and {high[widest]:.2f}."
        )
        return p if reason is None else p.refuse(reason)

    def covers(self, compute: float, pass_rate: float, levels: Sequence[float] = (0.8, 0.95)) -> dict[float, bool]:
        """Whether an evaluation at `compute`, not yet observed, falls inside its calibrated intervals; empty while refused.

        The interval of the mean is widened by the noise of one evaluation, taken to be that of the last point.
        """
        p = self.forecast([compute])
        if p.refused:
            return {}
        middle, noise = float(p.quantile(0.5)[0]), math.sqrt(float(condense(self._points, self._changes)[2][-1]))
        inside = {}
        for level in levels:
            (low,), (high,) = p.interval(level)
            z = NormalDist().inv_cdf((1.0 + level) / 2.0)
            below, above = math.hypot(middle - low, z * noise), math.hypot(high - middle, z * noise)
            inside[level] = bool(middle - below <= pass_rate <= middle + above)
        return inside

    def parameters(self) -> Parameters:
        """Posterior of A, B, C_mid and R0; B and C_mid spread (in log) over their grid cell. NaN where a point fit has none."""
        if self.method != "posterior":
            found = self._point_fit()
            pairs = np.array([found.A, found.B, found.C_mid, found.R0])
            return Parameters(*map(Distribution, normals(pairs[:, 0], pairs[:, 1], self._count)))
        draws = self._posterior_draws()
        mid = np.exp(draws.spread_log_mid)
        return Parameters(*map(Distribution, (draws.asymptote(), draws.spread_b, mid, draws.beta[0])))

    def advice(self, *, target: float, price_per_unit: float | None = None) -> Advice:
        """Is it worth going on to the budget for pass rate `target`? Price is per unit of compute, any currency."""
        self._probabilistic("advice")
        if not 0.0 < target <= 1.0:
            raise ValueError(f"advice: target {target} is not a pass rate in (0, 1]")
        if price_per_unit is not None:
            _positive("advice: price per unit", price_per_unit)
        last = self._points[-1].compute if self._points else 0.0
        return advise(
            self._posterior_draws(),
            self.forecast([max(self.budget, last)]),
            here=last if last > 0.0 else FIRST_GLANCE * self.budget,
            left=self.budget - last,
            target=target,
            price_per_unit=price_per_unit,
        )

    def economics(
        self,
        *,
        stages: Sequence[float] = STAGES,
        target: float | None = None,
        least_gain: float = LEAST_GAIN,
        units_per_hour: float | None = None,
        price_per_unit: float | None = None,
    ) -> Economics:
        """What the compute left until the budget buys; `units_per_hour` is the pace of the run, for dates of the stages.

        With a `target` the verdict is that of `advice`; without one it asks for `least_gain` more pass rate.
        """
        self._probabilistic("economics")
        for what, number in (("units per hour", units_per_hour), ("price per unit", price_per_unit)):
            if number is not None:
                _positive(f"economics: {what}", number)
        for stage in stages:
            if not 0.0 < stage <= 1.0:
                raise ValueError(f"economics: stage {stage} is not a pass rate in (0, 1]")
        advice = self.advice(target=target, price_per_unit=price_per_unit) if target is not None else None
        last = self._points[-1].compute if self._points else 0.0
        return economics(
            self._posterior_draws(),
            self.forecast([max(self.budget, last)]),
            here=last if last > 0.0 else FIRST_GLANCE * self.budget,
            budget=self.budget,
            stages=stages,
            advice=advice,
            least_gain=least_gain,
            units_per_hour=units_per_hour,
            price_per_unit=price_per_unit,
        )

    def _fall(self) -> tuple[float, float] | None:
        """Levels before and after a fall since the last change-point, which would have explained it."""
        since = self._changes[-1] if self._changes else -math.inf
        compute, rate, variance = condense(self._points, self._changes)
        return fallen(rate[compute > since], variance[compute > since])

    def _probabilistic(self, what: str) -> None:
        if self.method != "posterior":
            raise ValueError(f"{what}: the point fit {self.method!r} knows no probabilities; use the posterior")

    def _point_fit(self) -> PointFit:
        if self._fit is None:
            compute, rate, variance = condense(self._points, ())
            self._fit = fit_points(self.method, compute, rate, variance, self.budget)
        return self._fit

    def _posterior_draws(self) -> Draws:
        """Draws for the present points."""
        if self._draws is None:
            changes = self._changes[-MAX_CHANGES:]
            table, growing = np.column_stack(condense(self._points, self._changes)), len(self._points) > MAX_POINTS
            if self._wide is None:
                self._wide = Stream(self._grid, changes)
            state = self._wide.after(table, growing)
            models = posteriors(state, self._prior)
            window = window_of(self._grid, cell_mass(models)) if len(changes) < 2 else None
            if window is not None:
                if self._close is None or window != self._window:
                    self._window, self._close = window, Stream(look_closer(self._grid, window), changes)
                state = self._close.after(table, growing)
                models = posteriors(state, self._prior)
            self._probabilities = change_probabilities(models)
            self._draws = draw(state, models, self._count)
        return self._draws


def _compute(where: str, compute: float) -> float:
    if not (math.isfinite(compute) and compute >= 0.0):
        raise ValueError(f"{where}: compute {compute} is not a finite number of at least 0")
    return compute


def _positive(what: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError(f"{what}: {value} is not a finite number above 0")
    return float(value)
