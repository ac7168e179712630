"""What a probe will cost and what it can detect, before it begins. Pure.

    fixed test     1^2 + ... + L^2 >= (s (z_a + z_b) / delta)^2      s: sd of a step's difference, delta: its growth per step
    anytime        the same with the judge's own boundary instead of z_a, and with the wandering of equally good arms

The fixed test is the textbook's, for one look at the end. The judge may look after every step and does not know the scale of
the noise, which costs steps; `plan` promises what the judge can do, and bench/tuning/judge.py holds it to that.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, exp, log, log1p, sqrt

import numpy as np
from scipy.special import log_ndtr, ndtr, ndtri

from controlplane.tune.evidence import SPREAD, Noise, whitening

MOST_STEPS = 2000
"""Longest arm that is considered."""


@dataclass(frozen=True)
class Plan:
    """A probe as promised."""

    steps: int
    """Of each arm."""
    power: float
    """Probability of adopting an arm whose true advantage is `effect`."""
    effect: float
    """Advantage in pass rate by the end of the probe."""
    device_seconds: float
    """Of the arms that are given up again: with one adopted one fewer."""

    def sentence(self) -> str:
        """For people."""
        return (
            f"{self.steps} steps per arm find an advantage of {self.effect:.3f} with a probability of {self.power:.2f}, "
            f"for up to {self.device_seconds:.0f} device-seconds that may be given up again"
        )


def fixed_steps(slope: float, share: float, step_sd: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Steps per arm at which one test at the end finds a change of `share` in the slope of the pass rate.

    Args:
        slope: gain in pass rate per step of the run as it is.
        share: smallest change of it to be found, 0.25 for a quarter.
        step_sd: standard deviation of a step's difference between the arms: sqrt(2) s_w with shared prompts,
            sqrt(2 (s_w^2 + s_b^2)) without, for sampling noise s_w and prompt-mix noise s_b.
    """
    delta = abs(slope) * share
    quantiles = float(ndtri(1 - alpha) + ndtri(power))
    wanted, steps = (step_sd * quantiles / delta) ** 2, 1
    while steps * (steps + 1) * (2 * steps + 1) / 6 < wanted:
        steps += 1
    return steps


@lru_cache(maxsize=4096)
def information(steps: int, noise: Noise) -> float:
    """Inverse variance of the estimated effect after all steps, in units of the noise of a step."""
    whitened = whitening(noise, tuple(range(1, steps + 1))) @ (np.arange(1, steps + 1) / steps)
    return float(whitened @ whitened)


def crossing(information_: float, needed: float) -> float:
    """The z at which the evidence reaches exp(`needed`), were the scale of the noise known."""

    def evidence(z: float) -> float:
        parts = []
        for tau in SPREAD:
            kept = tau**2 * information_ / (1 + tau**2 * information_)
            above = log(2.0) + float(log_ndtr(z * sqrt(kept)))
            parts.append(kept * z * z / 2 - log1p(tau**2 * information_) / 2 + above)
        top = max(parts)
        return top + log(sum(exp(part - top) for part in parts) / len(parts))

    low, high = 0.0, 2.0
    while evidence(high) < needed:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if evidence(middle) < needed else (low, middle)
    return high


def power(steps: int, effect: float, step_sd: float, arms: int, confidence: float, noise: Noise) -> float:
    """Probability that the judge adopts an arm with a true advantage of `effect` above the smallest one worth having."""
    known = information(steps, noise)
    needed = log(arms / (1 - confidence))
    return float(ndtr(effect / step_sd * sqrt(known) - crossing(known, needed)))


def plan(
    slope: float,
    share: float,
    step_sd: float,
    *,
    arms: int = 1,
    confidence: float = 0.95,
    target_power: float = 0.8,
    noise: Noise | None = None,
    step_device_seconds: float = 0.0,
    most_steps: int = MOST_STEPS,
) -> Plan:
    """The shortest probe that finds a change of `share` in the slope with `target_power`, or the longest one allowed."""
    noise = noise or Noise()
    steps = 4
    while steps < most_steps:
        if power(steps, abs(slope) * share * steps, step_sd, arms, confidence, noise) >= target_power:
            break
        steps = min(most_steps, max(steps + 1, ceil(steps * 1.03)))
    effect = abs(slope) * share * steps
    reached = power(steps, effect, step_sd, arms, confidence, noise)
    return Plan(steps, reached, effect, arms * steps * step_device_seconds)


def detectable(known: float, step_sd: float, arms: int, confidence: float, power_: float) -> float:
    """The advantage by the end of a probe that the judge adopts with probability `power_`; `known` is its information."""
    return float((crossing(known, log(arms / (1 - confidence))) + ndtri(power_)) * step_sd / sqrt(known))
