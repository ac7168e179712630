"""Anytime-valid evidence that one arm gains on another faster than a limit. Pure.

    d_t = beta x_t + s (u_t + w_t)        t = 1, 2, ...; the arms start from one snapshot, so that u_0 = 0

`w` is sampling noise, `u` the wandering apart of two trainings that are equally good: an autoregression that starts at zero, with a
declared persistence and size (`Noise`; bench/tuning/twins.py measures them). The common scale s is unknown: it is integrated
out with the invariant prior. For "beta <= limit" the evidence is the ratio

    E_t(limit) = m1(d_1..t) / m0(d_1..t)

of the marginal likelihoods with beta spread half-normally above the limit, and with beta at it. At the limit E is a non-negative
martingale that starts at 1, so P(E_t >= 1/a at any t) <= a (Ville): one may look after every step and stop when one likes.
Source: Hendriksen, de Heide, Gruenwald, "Optional stopping with Bayes factors" (2021). Whitening with a Cholesky factor is
causal: row t uses d_1..t only, so one matrix product serves every t.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.special import stdtr

Array = NDArray[np.float64]

SPREAD = (0.5, 2.0)
"""Standard deviations of beta above the limit, in units of the noise of one step; an even mixture of both."""
TINY = 1e-300


@dataclass(frozen=True)
class Noise:
    """Wandering beside sampling noise of variance 1."""

    persistence: float = 0.9
    """Share of the wandering that is left one step later, 0 to 1."""
    wandering: float = 0.2
    """Standard deviation of one step of the wandering."""

    def covariance(self, steps: int) -> Array:
        """[steps, steps]; the wandering starts at zero before the first step."""
        t = np.arange(1, steps + 1)
        lag, first = np.abs(t[:, None] - t), np.minimum(t[:, None], t)
        p = self.persistence
        grown = (1 - p ** (2 * first)) / (1 - p * p) if p < 1 else first.astype(float)
        return np.asarray(np.eye(steps) + self.wandering**2 * p**lag * grown)


@lru_cache(maxsize=64)
def whitening(noise: Noise, steps: int) -> Array:
    """Inverse of the Cholesky factor, [steps, steps], lower triangular."""
    factor = np.linalg.cholesky(noise.covariance(steps))
    return np.asarray(solve_triangular(factor, np.eye(steps), lower=True))


@dataclass(frozen=True)
class Sums:
    """Whitened sums up to each step, [..., steps]: all that evidence about any limit needs."""

    xx: Array
    xd: Array
    dd: Array

    @classmethod
    def of(cls, x: Array, d: Array, noise: Noise) -> "Sums":
        """`x` and `d` of shape [..., steps], in units of the noise of a step."""
        inverse = whitening(noise, d.shape[-1])
        wx, wd = x @ inverse.T, d @ inverse.T
        return cls(np.cumsum(wx * wx, -1), np.cumsum(wx * wd, -1), np.cumsum(wd * wd, -1))

    @property
    def effect(self) -> Array:
        """Generalised least-squares estimate of beta at each step; NaN before anything was seen."""
        return np.asarray(np.where(self.xx > 0, self.xd / np.maximum(self.xx, TINY), np.nan))

    def last(self) -> "Sums":
        """Those at the newest step alone."""
        return Sums(self.xx[..., -1:], self.xd[..., -1:], self.dd[..., -1:])


def log_evidence(sums: Sums, limit: float | Array, upwards: bool = True, steps: int | None = None) -> Array:
    """log E_t against "beta <= limit", or with `upwards` false against "beta >= limit"; shape of the sums.

    With `steps`, the number of the newest step, `sums` holds that one alone, and `limit` may be several.
    """
    n = np.arange(1, sums.xx.shape[-1] + 1) if steps is None else np.array([steps])
    xe = sums.xd - limit * sums.xx
    ee = np.maximum(sums.dd - 2 * limit * sums.xd + limit**2 * sums.xx, TINY)
    parts = []
    for tau in SPREAD:
        shrink = tau**2 / (1 + tau**2 * sums.xx)
        rest = np.maximum(ee - shrink * xe**2, TINY)
        ratio = -0.5 * np.log1p(tau**2 * sums.xx) - n / 2 * (np.log(rest) - np.log(ee))
        # Posterior of beta: Student's t with n degrees of freedom; the half on our side counts twice.
        t = (1 if upwards else -1) * shrink * xe / np.sqrt(shrink * rest / n)
        parts.append(ratio + np.log(np.maximum(2 * stdtr(n, t), TINY)))
    return np.asarray(np.logaddexp.reduce(np.stack(parts), axis=0) - np.log(len(parts)))


def bound(sums: Sums, steps: int, alpha: float, side: int) -> float:
    """The lowest (`side` -1) or highest (+1) beta that the evidence at the newest step does not rule out: a bound that holds at
    all times with probability 1 - alpha. Infinite while nothing is ruled out."""
    newest = sums.last()
    middle, bar = float(newest.effect[0]), -np.log(alpha)
    if not np.isfinite(middle):
        return side * np.inf

    def first_ruled_out(distances: Array) -> int:
        over = log_evidence(newest, middle + side * distances, side < 0, steps) >= bar
        return int(over.argmax()) if over.any() else -1

    distances = np.concatenate([[0.0], 2.0 ** np.arange(-3, 30) / np.sqrt(float(newest.xx[0]))])
    for _ in range(6):  # each round narrows the gap sixteenfold
        at = first_ruled_out(distances)
        if at < 0:
            return side * np.inf
        distances = np.linspace(distances[max(at - 1, 0)], distances[at], 17)
    return float(middle + side * distances[-1])
