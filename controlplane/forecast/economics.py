"""What more compute buys: the marginal pass rate, what each doubling adds, when each stage target comes, and the verdict.

    ROI = gain in pass rate / compute spent for it        (of a doubling: R(2C) - R(C) over C)

Everything is computed per draw and then summarised, so that a gain is certain where the level is not. Levels include the
discrepancy; a gain is the law's, because a random walk is as likely to fall as to rise.

    verdict with a target      that of `advice`
            without            "stop" if the budget is spent or even the upper end of the gain left (95 %) is below `least_gain`,
                               "go on" if at least that much is as likely as not, else "not yet known"
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controlplane.forecast.advice import LIKELY, REACHED, Advice, Verdict, compute_to
from controlplane.forecast.draws import Draws
from controlplane.forecast.law import Array, progress
from controlplane.forecast.result import Distribution, Forecast

STAGES = (0.60, 0.75, 0.85, 0.90)
"""Staged targets of the first documents (a pass rate each)."""
LEAST_GAIN = 0.01
"""Pass rate that the compute left must still bring to be worth spending, where no target is given."""
MOST_DOUBLINGS = 4


@dataclass(frozen=True, eq=False)
class Doubling:
    """One row of the table: what going from half of `compute` to `compute` brings."""

    compute: float
    level: Distribution
    """Pass rate there."""
    gain: Distribution
    """Pass rate more than at half the compute, by the law."""
    roi: Distribution
    """The gain over the compute it takes."""
    ratio: float
    """Median level over the median level at half the compute: 2 doubles the pass rate, 1.05 hardly moves it."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One target on the way."""

    target: float
    probability: float
    """P(pass rate >= target at the budget)."""
    compute: Distribution
    """Total compute at which it is reached; infinite where it never is."""
    hours: Distribution | None
    """Hours from now until then; None where the pace is not known."""
    reached: bool
    """The present level is at the target with probability of at least 0.9."""


@dataclass(frozen=True, eq=False)
class Economics:
    """What the compute left is worth. Gains are pass rate, compute is in the unit of the points."""

    here: float
    budget: float
    now: Distribution
    end: Distribution
    gain_left: Distribution
    """Pass rate that the law still adds until the budget."""
    gain_per_unit: Distribution
    """Marginal pass rate per unit of compute, now."""
    cost_left: float | None
    doublings: tuple[Doubling, ...]
    stages: tuple[Stage, ...]
    verdict: Verdict
    sentence: str


def economics(
    draws: Draws,
    end: Forecast,
    *,
    here: float,
    budget: float,
    stages: Sequence[float],
    advice: Advice | None,
    least_gain: float,
    units_per_hour: float | None,
    price_per_unit: float | None,
) -> Economics:
    """Economics of a run at compute `here`, with the forecast `end` at its budget and, if a target is given, its `advice`."""
    base, slope = draws.current_law()
    law_here, law_end = (base + slope * _progress(draws, c) for c in (here, max(budget, here)))
    now = draws.at(float(np.log(here)))
    s = _progress(draws, here)
    left = Distribution(law_end - law_here)
    cost = None if price_per_unit is None else max(budget - here, 0.0) * price_per_unit
    verdict, sentence = (
        (advice.verdict, advice.sentence) if advice else _verdict(end, left, budget - here, least_gain, cost)
    )
    start = base + draws.discrepancy(float(np.log(max(budget, here))))
    return Economics(
        here=here,
        budget=budget,
        now=Distribution(now),
        end=Distribution(end.draws[0]),
        gain_left=left,
        gain_per_unit=Distribution(slope * draws.b * s * (1.0 - s) / here),
        cost_left=cost,
        doublings=_doublings(draws, here, budget, base, slope),
        stages=tuple(_stage(t, draws, end, now, here, start, slope, units_per_hour) for t in stages),
        verdict=verdict,
        sentence=sentence,
    )


def _progress(draws: Draws, compute: float) -> Array:
    return progress(float(np.log(compute)), draws.b, draws.log_mid)


def _doublings(draws: Draws, here: float, budget: float, base: Array, slope: Array) -> tuple[Doubling, ...]:
    """The doubling that ended here, then those ahead, until the budget lies behind."""
    rows = []
    before = np.clip(base + slope * _progress(draws, here / 2.0), 0.0, 1.0)
    for power in range(MOST_DOUBLINGS + 1):
        compute = here * 2.0**power
        level = draws.at(float(np.log(compute)))
        gain = slope * (_progress(draws, compute) - _progress(draws, compute / 2.0))
        ratio = float(np.median(level) / max(float(np.median(before)), 1e-9))
        rows.append(
            Doubling(compute, Distribution(level), Distribution(gain), Distribution(gain / (compute / 2.0)), ratio)
        )
        before = level
        if compute >= budget:
            break
    return tuple(rows)


def _stage(
    target: float,
    draws: Draws,
    end: Forecast,
    now: Array,
    here: float,
    start: Array,
    slope: Array,
    units_per_hour: float | None,
) -> Stage:
    needed = np.where(now >= target, here, np.maximum(compute_to(target, draws, start, slope), here))
    hours = None if units_per_hour is None else Distribution((needed - here) / units_per_hour)
    reached = float((now >= target).mean()) >= REACHED
    return Stage(target, float((end.draws[0] >= target).mean()), Distribution(needed), hours, reached)


def _verdict(
    end: Forecast, left: Distribution, units_left: float, least: float, cost: float | None
) -> tuple[Verdict, str]:
    price = "" if cost is None else f" for {cost:,.0f}"
    if units_left <= 0.0:
        return "stop", "Stop: the budget is spent."
    if end.reason is not None:
        return "not yet known", f"Not yet known: {end.reason[0].lower()}{end.reason[1:]}"
    low, middle, high = (left.quantile(q) for q in (0.1, 0.5, 0.9))
    upper = left.quantile(0.975)
    gain = f"the compute left brings {middle:+.3f} [{low:+.3f}, {high:+.3f}] in pass rate{price}"
    if upper < least:
        return "stop", f"Stop: {gain}; at best {upper:+.3f}, less than the {least:g} asked for."
    if float((left.values >= least).mean()) >= LIKELY:
        return "go on", f"Go on: {gain}."
    return (
        "not yet known",
        f"Not yet known: {gain}; {least:g} or more has probability {(left.values >= least).mean():.0%}.",
    )
