"""What a forecast means for the budget: is it worth going on?

    verdict "stop"           the budget is spent, the target is reached already, or the target lies above the
                             calibrated 95 % interval at the budget (forecasts err low, so nothing narrower will do)
            "go on"          the target is at least as likely as not at the budget
            "not yet known"  the forecast is refused (before the budget nothing else counts then), or the target
                             lies between these two

Every quantity is computed per draw, so its uncertainty is the posterior's. Compute to target takes the law plus the
discrepancy drawn for the budget: it lies within the budget in just the draws that make up P(target), save where the
run stands at the target already.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from controlplane.forecast.draws import Draws
from controlplane.forecast.law import Array, progress
from controlplane.forecast.result import Distribution, Forecast

Verdict = Literal["stop", "go on", "not yet known"]

REACHED = 0.9
"""Probability that the present level is at the target from which it counts as reached."""
LIKELY = 0.5


@dataclass(frozen=True, eq=False)
class Advice:
    """Advice for one target. Gains are pass rate; compute is in the unit of the observed points."""

    target: float
    probability: float
    """P(mean pass rate at the budget >= target)."""
    gain_per_unit: Distribution
    """dR/dC at the last point."""
    gain_per_price: Distribution | None
    """The same per unit of currency; None without a price."""
    gain_per_doubling: Distribution
    """R(2C) - R(C) at the last point."""
    gain_left: Distribution
    """Share of the gain A - R0 still to come, 1 - s."""
    compute_to_target: Distribution
    """Total compute at which the target is reached; infinite where it never is."""
    unreachable: float
    """Share of draws in which no compute reaches the target."""
    cost_to_budget: float | None
    """Price of the compute left until the budget; None without a price."""
    verdict: Verdict
    sentence: str


def advise(
    draws: Draws,
    end: Forecast,
    *,
    here: float,
    left: float,
    target: float,
    price_per_unit: float | None,
) -> Advice:
    """Advice from `draws` and the forecast `end` at the budget, for a run at compute `here` with `left` units to go."""
    base, slope = draws.current_law()
    u = float(np.log(here))
    s = progress(u, draws.b, draws.log_mid)
    doubled = progress(u + float(np.log(2.0)), draws.b, draws.log_mid)
    per_unit = slope * draws.b * s * (1.0 - s) / here
    now = draws.at(u)
    start = base + draws.discrepancy(float(np.log(end.compute[0])))
    needed = compute_to(target, draws, start, slope)
    needed = np.where(now >= target, here, np.maximum(needed, here))
    probability = float((end.draws[0] >= target).mean())
    reached = float((now >= target).mean())
    verdict, why = _verdict(end, target, probability, reached, left)
    cost = None if price_per_unit is None else max(left, 0.0) * price_per_unit
    spend = "Stopping now saves" if verdict == "stop" else "The compute left costs"
    price = "" if cost is None or left <= 0.0 else f" {spend} {cost:,.0f}."
    return Advice(
        target=target,
        probability=probability,
        gain_per_unit=Distribution(per_unit),
        gain_per_price=None if price_per_unit is None else Distribution(per_unit / price_per_unit),
        gain_per_doubling=Distribution(slope * (doubled - s)),
        gain_left=Distribution(1.0 - s),
        compute_to_target=Distribution(needed),
        unreachable=float(np.isinf(needed).mean()),
        cost_to_budget=cost,
        verdict=verdict,
        sentence=why + price,
    )


def compute_to(target: float, draws: Draws, start: Array, slope: Array) -> Array:
    """Compute at which `start + slope s` reaches `target`, per draw; 0 where it starts there, inf where never."""
    with np.errstate(divide="ignore", invalid="ignore"):
        s = np.where(slope > 0.0, (target - start) / slope, np.inf)
        inside = np.clip(s, 0.0, 1.0)
        log_compute = draws.log_mid + (np.log(inside) - np.log1p(-inside)) / draws.b
    needed: Array = np.exp(np.minimum(log_compute, 700.0))
    return np.where(s >= 1.0, np.inf, needed)


def _verdict(end: Forecast, target: float, probability: float, reached: float, left: float) -> tuple[Verdict, str]:
    where = f"pass rate {target:g} at compute {end.compute[0]:g}"
    if left <= 0.0:
        return "stop", f"Stop: the budget is spent; target {target:g} is reached with probability {probability:.0%}."
    if end.reason is not None:
        return "not yet known", f"Not yet known: {end.reason[0].lower()}{end.reason[1:]}"
    if reached >= REACHED:
        return "stop", f"Stop: the target {target:g} is reached already ({reached:.0%} sure)."
    if probability >= LIKELY:
        return "go on", f"Go on: {where} has probability {probability:.0%}."
    upper = float(end.interval(0.95)[1][0])
    if upper < target:
        return "stop", f"Stop: {where} lies above the 95 % interval, which ends at {upper:.3f}."
    return "not yet known", f"Not yet known: {where} has probability {probability:.0%}, too much to stop."
