"""One curve fitted: parameters, forecast, economics; as data and as text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from controlplane.fitting.series import Given
from controlplane.forecast import Distribution, Economics, Forecast, Forecaster, Method, Prior
from controlplane.forecast.economics import LEAST_GAIN

NAMES = ("A", "B", "C_mid", "R0")
LEVELS = (0.8, 0.95)


@dataclass(frozen=True)
class Question:
    """What is asked of every curve. Compute in the unit of the curve; None where it is left to the defaults."""

    budget: float | None = None
    at: tuple[float, ...] = ()
    upto: float | None = None
    method: Method = "posterior"
    target: float | None = None
    least_gain: float = LEAST_GAIN
    price: float | None = None
    per_hour: float | None = None
    changes: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Fitted:
    """The answer. `known` was fitted, `given` is all there is."""

    given: Given
    known: Given
    forecaster: Forecaster
    forecast: Forecast
    economics: Economics | None
    notes: tuple[str, ...]

    @property
    def budget(self) -> float:
        return self.forecaster.budget


def fit(curve: Given, question: Question, prior: Prior | None = None) -> Fitted:
    """Fit one curve.

    Raises:
        ValueError: the method cannot be fitted to these points, or a question lies before the last of them.
    """
    known = curve if question.upto is None else curve.upto(question.upto)
    if len(known.compute) == 0:
        raise ValueError(f"{curve.name}: no point at or before compute {question.upto:g}")
    last, notes = float(known.compute[-1]), list(curve.notes)
    budget = question.budget
    if budget is None:
        later = float(curve.compute[-1])
        budget = later if later > last else 2.0 * last
        if budget <= 0.0:
            raise ValueError(f"{curve.name}: every point is at compute 0; name the end with --budget")
        notes.append(f"budget: {budget:g}, {'where the curve ends' if later > last else 'twice the compute so far'}")
    forecaster = Forecaster(budget=budget, method=question.method, prior=prior)
    for change in question.changes:
        forecaster.intervene(change)
    for compute, rate in zip(known.compute, known.rate, strict=True):
        forecaster.observe(float(compute), float(rate), samples=known.samples)
    at = question.at or (max(budget, last),)
    try:
        asked = forecaster.forecast(at)
        worth = None
        if question.method == "posterior":
            worth = forecaster.economics(
                target=question.target,
                least_gain=question.least_gain,
                units_per_hour=question.per_hour,
                price_per_unit=question.price,
            )
    except ValueError as error:
        raise ValueError(f"{curve.name}: {error}") from None
    return Fitted(curve, known, forecaster, asked, worth, tuple(notes))


def as_data(fitted: Fitted, now: datetime | None = None, prior: Prior | None = None) -> dict[str, Any]:
    """Everything as JSON-ready numbers; infinite and missing ones are null. `prior` in the words of a policy."""
    p, found = fitted.forecast, fitted.forecaster.parameters()
    intervals = {level: p.interval(level) for level in LEVELS}
    return {
        "name": fitted.given.name,
        "method": fitted.forecaster.method,
        "unit": fitted.known.unit,
        "points": len(fitted.known.compute),
        "last_compute": float(fitted.known.compute[-1]),
        "budget": fitted.budget,
        "notes": list(fitted.notes),
        "parameters": {name: _three(getattr(found, name)) for name in NAMES},
        "changes": [change._asdict() for change in fitted.forecaster.changes],
        "forecast": [
            {
                "compute": float(c),
                "median": float(p.quantile(0.5)[i]),
                "mean": float(p.mean[i]),
                "sd": float(p.sd[i]),
                **{f"interval{level * 100:g}": [float(edge[i]) for edge in intervals[level]] for level in LEVELS},
                "came": _came(fitted, float(c)),
            }
            for i, c in enumerate(p.compute)
        ],
        "prior": None if prior is None else _policy_words(prior),
        "refused": p.refused,
        "reason": p.reason,
        "economics": None if fitted.economics is None else _worth(fitted.economics, now),
    }


def _policy_words(prior: Prior) -> dict[str, Any]:
    """The component of the finished runs, as `forecast.prior` of a policy takes it."""
    like = prior.components[0]
    (r0, a), (var_r0, var_a) = like.mean, like.variance
    found = {"R0": (r0, math.sqrt(var_r0)), "A": (a, math.sqrt(var_a)), "ln_B": like.log_b, "ln_C_mid": like.log_mid}
    return {name: [round(x, 5) for x in pair] for name, pair in found.items() if pair} | {"weight": like.weight}


def _three(values: Distribution) -> list[float | None]:
    """Quantiles .1, .5, .9."""
    return [_number(values.quantile(q)) for q in (0.1, 0.5, 0.9)]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _came(fitted: Fitted, compute: float) -> float | None:
    """Mean of the given points within 7 % of `compute` that were not fitted."""
    given, last = fitted.given, float(fitted.known.compute[-1])
    near = (abs(given.compute - compute) <= 0.07 * compute) & (given.compute > last)
    return float(given.rate[near].mean()) if near.any() else None


def _worth(worth: Economics, now: datetime | None) -> dict[str, Any]:
    return {
        "now": _three(worth.now),
        "end": _three(worth.end),
        "gain_left": _three(worth.gain_left),
        "gain_per_unit": _three(worth.gain_per_unit),
        "cost_left": worth.cost_left,
        "doublings": [
            {
                "compute": d.compute,
                "level": _three(d.level),
                "gain": _three(d.gain),
                "roi": _three(d.roi),
                "ratio": d.ratio,
            }
            for d in worth.doublings
        ],
        "stages": [
            {
                "target": s.target,
                "probability": s.probability,
                "compute": _three(s.compute),
                "hours": None if s.hours is None else _three(s.hours),
                "date": date_of(s.hours, now),
                "reached": s.reached,
            }
            for s in worth.stages
        ],
        "verdict": worth.verdict,
        "sentence": worth.sentence,
    }


def date_of(hours: Distribution | None, now: datetime | None) -> str | None:
    """When the median comes, to the minute; None without a pace, or where it never does."""
    if hours is None or now is None:
        return None
    middle = hours.quantile(0.5)
    # Beyond a century no run is planned, and the calendar ends.
    return (now + timedelta(hours=middle)).isoformat(timespec="minutes") if middle < 876_600 else None


def prior_of(curves: Sequence[Given]) -> Prior | None:
    """The prior of one more run of the recipe whose finished runs are given."""
    if not curves:
        return None
    runs = []
    for curve in curves:
        run = Forecaster(budget=max(float(curve.compute[-1]), 1e-9))
        for compute, rate in zip(curve.compute, curve.rate, strict=True):
            run.observe(float(compute), float(rate), samples=curve.samples)
        runs.append(run)
    return Prior.from_runs(runs)
