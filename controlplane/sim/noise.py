"""Noise of a simulated run: how strong (drawn per run) and the noise itself, one row per executed step.

The ranges span what the public curves show, family by family; `bench/guard/noise.py` prints both beside each other.
Batch means of completions that come in groups vary more than their number says (design effect); part of that is slow,
because neighbouring batches share a mix of prompts. Gradient norms, losses and mismatches have tails far heavier than
normal, and now and then a single step spikes for no reason that lasts.
"""

from dataclasses import dataclass
from math import asin, pi, sin, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import t

Series = NDArray[np.float64]
SIGNALS = ("pass_rate", "truncation", "gen_length", "grad_norm", "entropy", "mismatch_kl", "loss")


@dataclass(frozen=True)
class Levels:
    """Noise of one run. Spreads of positive quantities are of their logarithm."""

    pass_effect: float
    """Variance of a batch's pass ratio over its binomial variance."""
    slow_share: float
    """Share of that variance which lasts for several steps."""
    truncation_effect: float
    gen_length: float
    grad_norm: float
    grad_freedom: float
    """Degrees of freedom of the t distribution: 3 is heavy, 30 is nearly normal."""
    spike_rate: float
    """Share of steps with a lone spike of gradient norm and loss."""
    entropy: float
    mismatch_kl: float
    loss: float
    loss_freedom: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Levels":
        """Levels of a run, from the ranges of the public curves."""

        def between(low: float, high: float) -> float:
            return float(np.exp(rng.uniform(np.log(low), np.log(high))))

        return cls(
            pass_effect=between(0.9, 3.0),
            slow_share=float(rng.uniform(0.0, 0.4)),
            truncation_effect=between(1.3, 6.0),
            gen_length=between(0.04, 0.25),
            grad_norm=between(0.05, 0.7),
            grad_freedom=between(2.5, 30.0),
            spike_rate=float(rng.choice((0.0, 0.001, 0.004, 0.01))),
            entropy=between(0.03, 0.10),
            mismatch_kl=between(0.1, 0.5),
            loss=between(0.0005, 0.01),
            loss_freedom=between(2.5, 10.0),
        )


@dataclass(frozen=True)
class Noise:
    """Standardised noise, one array of `steps` values per signal; multiply by the level, or add in `arcsine`."""

    pass_rate: Series
    truncation: Series
    gen_length: Series
    grad_norm: Series
    entropy: Series
    mismatch_kl: Series
    loss: Series
    held_out: Series

    @classmethod
    def draw(cls, levels: Levels, steps: int, rng: np.random.Generator) -> "Noise":
        """Noise for `steps` executed steps."""
        slow = correlated(rng, steps, 0.9)
        share = levels.slow_share
        spikes = (rng.random(steps) < levels.spike_rate) * rng.exponential(1.2, steps)
        return cls(
            pass_rate=np.sqrt(1 - share) * rng.standard_normal(steps) + np.sqrt(share) * slow,
            truncation=rng.standard_normal(steps),
            # Longer completions and harder prompts come together.
            gen_length=np.sqrt(1 - share) * rng.standard_normal(steps) - np.sqrt(share) * slow,
            grad_norm=heavy(rng, steps, levels.grad_freedom) + spikes / levels.grad_norm,
            entropy=correlated(rng, steps, float(rng.uniform(0.0, 0.4))),
            mismatch_kl=heavy(rng, steps, 4.0) + 0.5 * spikes / levels.mismatch_kl,
            loss=heavy(rng, steps, levels.loss_freedom) + np.sign(rng.standard_normal(steps)) * 10 * spikes,
            held_out=rng.standard_normal(steps),
        )


def correlated(rng: np.random.Generator, steps: int, phi: float) -> Series:
    """AR(1) noise with standard deviation 1."""
    shocks = rng.standard_normal(steps) * np.sqrt(1 - phi**2)
    return np.asarray(lfilter([1.0], [1.0, -phi], shocks))


def heavy(rng: np.random.Generator, steps: int, freedom: float) -> Series:
    """t noise whose quartiles are those of normal noise, so that `freedom` sets the tails alone."""
    return np.asarray(rng.standard_t(freedom, steps) * (0.6745 / t.ppf(0.75, freedom)))


def arcsine(ratio: float, z: float, effect: float, n: float) -> float:
    """A noisy proportion: `z` standard deviations of a batch of `n` with that design effect, never outside [0, 1].

    On the arcsine scale the variance of a proportion does not depend on it, so this stays skewed as it must near 0 and 1.
    """
    angle = asin(sqrt(min(max(ratio, 0.0), 1.0))) + 0.5 * z * sqrt(effect / n)
    return sin(min(max(angle, 0.0), pi / 2)) ** 2
