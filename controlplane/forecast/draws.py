"""Deterministic draws from the posterior: no generator, no seed, the same bits for the same data.

Cells come from systematic resampling, normals from van der Corput sequences by the polar transform. Several models
are one mixture: their cells share one set of weights, so a model is drawn as often as its Bayes factor says.
Draws outside the support of (R0, A) are rejected, which imposes the truncated prior exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from controlplane.forecast.filter import Filter
from controlplane.forecast.law import Array, elapsed, progress, regressors, supported
from controlplane.forecast.posterior import Posterior

GOLDEN = 0.61803398875
MIN_KEPT = 64
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


def van_der_corput(count: int, base: int) -> Array:
    """Radical inverses of 1..count: evenly filling (0, 1)."""
    index = np.arange(1, count + 1)
    value, scale = np.zeros(count), 1.0 / base
    while index.any():
        value += scale * (index % base)
        index //= base
        scale /= base
    return value


@cache
def _normals(count: int, dimensions: int) -> Array:
    """Standard normals, shape (dimensions, count); each pair of prime bases gives two."""
    rows: list[Array] = []
    for pair in range(0, dimensions, 2):
        radius = np.sqrt(-2.0 * np.log(van_der_corput(count, PRIMES[pair])))
        angle = 2.0 * np.pi * van_der_corput(count, PRIMES[pair + 1])
        rows += [radius * np.cos(angle), radius * np.sin(angle)]
    z = np.array(rows[:dimensions])
    z.setflags(write=False)
    return z


@cache
def _shuffle(count: int) -> Array:
    """Positions of systematic resampling in an order that does not follow the low-discrepancy sequences."""
    t = (np.arange(count) + 0.5) / count
    shuffled: Array = t[np.argsort((GOLDEN * np.arange(count)) % 1.0, kind="stable")]
    shuffled.setflags(write=False)
    return shuffled


@dataclass(frozen=True, eq=False)
class Draws:
    """N kept draws. `beta`: (p, N); the others (N,). `level` is g at the last point (mean), `level_var` its variance."""

    beta: Array
    b: Array
    log_mid: Array
    kappa: Array
    level: Array
    level_var: Array
    level_z: Array
    spread_b: Array
    spread_log_mid: Array
    reliable: bool
    last_u: float | None
    changes: tuple[float, ...]

    def at(self, u: float) -> Array:
        """Mean pass rate at log compute `u` at or after the last point, shape (N,), clipped to [0, 1]."""
        x = regressors(u, self.b, self.log_mid, self.changes)
        value: Array = np.clip(np.einsum("pn,pn->n", x, self.beta) + self.discrepancy(u), 0.0, 1.0)
        return value

    def discrepancy(self, u: float) -> Array:
        """The level g at log compute `u` at or after the last point, (N,): what the run adds to the law."""
        ahead = self.kappa**2 * elapsed(self.last_u, u)
        value: Array = self.level + np.sqrt(self.level_var + ahead) * self.level_z
        return value

    def current_law(self) -> tuple[Array, Array]:
        """(base, slope), (N,) each: after the last change-point the law is `base + slope s`."""
        base, slope = self.beta[0].copy(), self.beta[1] - self.beta[0]
        for j, change in enumerate(self.changes):
            jump, gain = self.beta[2 + 2 * j], self.beta[3 + 2 * j]
            base += jump - gain * progress(change, self.b, self.log_mid)
            slope += gain
        return base, slope

    def asymptote(self) -> Array:
        """A of the current regime, (N,), clipped to [0, 1]."""
        base, slope = self.current_law()
        return np.clip(base + slope, 0.0, 1.0)


def draw(state: Filter, models: Sequence[Posterior], count: int) -> Draws:
    """`count` joint draws of model, setting, cell, beta and level, less those outside the support."""
    grid, p = state.grid, state.p
    log_weight = np.concatenate([m.log_weight.ravel() for m in models])
    cumulative = np.cumsum(np.exp(log_weight - log_weight.max()))
    flat = np.minimum(np.searchsorted(cumulative, _shuffle(count) * cumulative[-1], side="right"), len(cumulative) - 1)
    model_of, inside = np.divmod(flat, models[0].log_weight.size)
    setting, cell = np.divmod(inside, len(grid.b))
    z = _normals(count, p + 1)
    beta = np.zeros((p, count))
    for number, model in enumerate(models):
        mine = np.flatnonzero(model_of == number)
        if len(mine):
            at = (setting[mine], cell[mine])
            chol, white = model.chol[:, :, *at], model.white[:, *at]
            for i in reversed(range(len(model.rows))):
                rest = white[i] + z[i, mine]
                for j in range(i + 1, len(model.rows)):
                    rest -= chol[j, i] * beta[model.rows[j], mine]
                beta[model.rows[i], mine] = rest / chol[i, i]
    keep = supported(beta[0], beta[1])
    reliable = int(keep.sum()) >= MIN_KEPT
    keep = keep if reliable else np.ones_like(keep)
    beta, setting, cell = beta[:, keep], setting[keep], cell[keep]
    b, log_mid = grid.b[cell], grid.log_mid[cell]
    return Draws(
        beta=beta,
        b=b,
        log_mid=log_mid,
        kappa=grid.kappa[setting],
        level=state.level_y[setting] - np.einsum("pn,pn->n", state.level_x[:, setting, cell], beta),
        level_var=state.level_var[setting],
        level_z=z[p, keep],
        spread_b=b * np.exp(grid.step_b * (van_der_corput(count, PRIMES[-2])[keep] - 0.5)),
        spread_log_mid=log_mid + grid.step_mid * (van_der_corput(count, PRIMES[-1])[keep] - 0.5),
        reliable=reliable,
        last_u=state.last_u,
        changes=state.changes,
    )
