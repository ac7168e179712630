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

One trajectory that takes turns (switchback.py) is the same with its own trend in the way, which the whitening takes out.
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

    def covariance(self, places: tuple[int, ...]) -> Array:
        """Between readings at these steps, from 1; the wandering starts at zero before the first step."""
        t = np.array(places)
        lag, first = np.abs(t[:, None] - t), np.minimum(t[:, None], t)
        p = self.persistence
        grown = (1 - p ** (2 * first)) / (1 - p * p) if p < 1 else first.astype(float)
        return np.asarray(np.eye(len(t)) + self.wandering**2 * p**lag * grown)


@lru_cache(maxsize=256)
def whitening(noise: Noise, places: tuple[int, ...], trend: int = 0, span: int = 1) -> Array:
    """What makes independent noise of variance 1 out of readings at `places`: [readings - trend, readings]; row t uses no reading
    after the t-th but `trend`.

    With `trend` parameters (3: level, slope, curvature, over `span` steps) a polynomial of unknown size is taken out as well, by
    recursive residuals: each reading against what those before it predict (Brown, Durbin, Evans, 1975).
    """
    white = np.asarray(solve_triangular(np.linalg.cholesky(noise.covariance(places)), np.eye(len(places)), lower=True))
    if not trend:
        return white
    z = white @ np.vander(np.array(places) / span, trend, increasing=True)
    rows = [_against_those_before(z, t) for t in range(trend, len(places))]
    return np.asarray(np.stack(rows) @ white) if rows else np.zeros((0, len(places)))


def _against_those_before(z: Array, t: int) -> Array:
    """Weights of the recursive residual at reading `t` for regressors `z`."""
    row = np.zeros(len(z))
    row[:t] = -np.linalg.pinv(z[:t]).T @ z[t]
    row[t] = 1.0
    return row / np.linalg.norm(row)


@dataclass(frozen=True)
class Sums:
    """Whitened sums up to each step, [..., steps]: all that evidence about any limit needs."""

    xx: Array
    xd: Array
    dd: Array

    @classmethod
    def of(cls, x: Array, d: Array, noise: Noise) -> "Sums":
        """`x` and `d` of shape [..., steps], in units of the noise of a step."""
        return cls.whitened(x, d, whitening(noise, tuple(range(1, d.shape[-1] + 1))))

    @classmethod
    def whitened(cls, x: Array, d: Array, white: Array) -> "Sums":
        """The same with a matrix of `whitening`."""
        wx, wd = x @ white.T, d @ white.T
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
