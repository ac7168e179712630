"""Exact posterior of beta in every grid cell, and the evidence that weighs cells, settings and change-point models.

    L = info + diag(1 / v0) = T T'        w = T^-1 (info_y + m0 / v0)
    beta | cell ~ N(T'^-1 w, L^-1)        ln Z = -1/2 [log_det + quad + m0'm0/v0 - w'w + ln det L + sum ln v0]

Cholesky factors are written out over whole arrays: a library call per 2 x 2 cell would cost a hundred times more.
Evidences ignore the truncation of (R0, A): a small bias near the bounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from controlplane.forecast.filter import Filter
from controlplane.forecast.grid import CHANGE_VAR
from controlplane.forecast.law import Array
from controlplane.forecast.prior import Component, Prior


@dataclass(frozen=True, eq=False)
class Posterior:
    """One model. `rows`: which regressors it has; `chol`: (p, p, K, G) lower; `white`: (p, K, G); `log_weight`: (K, G),
    log evidence plus log prior of each setting and cell."""

    rows: tuple[int, ...]
    chol: Array
    white: Array
    log_weight: Array

    @property
    def log_evidence(self) -> float:
        top = float(self.log_weight.max())
        return top + float(np.log(np.exp(self.log_weight - top).sum()))


def cholesky(lower: Array, diagonal: Array) -> Array:
    """Lower factor of `lower + diag(diagonal)`, elementwise over the trailing axes; `lower` is (p, p, ...)."""
    p = len(diagonal)
    t = np.zeros((p, p, *lower.shape[2:]))
    for j in range(p):
        pivot = lower[j, j] + diagonal[j]
        for k in range(j):
            pivot -= t[j, k] ** 2
        np.sqrt(pivot, out=t[j, j])
        for i in range(j + 1, p):
            entry = lower[i, j].copy()
            for k in range(j):
                entry -= t[i, k] * t[j, k]
            np.divide(entry, t[j, j], out=t[i, j])
    return t


def posterior(
    state: Filter, rows: tuple[int, ...], prior: Component, information: tuple[Array, Array] | None = None
) -> Posterior:
    """Posterior of the model that has only the regressors `rows` (increasing, starting with 0, 1).

    `information`: that of `state`, where it has been worked out already.
    """
    info, info_y = information or state.information()
    mean = np.array(prior.mean + (0.0, 0.0) * len(state.changes))[list(rows)]
    var = np.array(prior.variance + CHANGE_VAR * len(state.changes))[list(rows)]
    t = cholesky(info[np.ix_(rows, rows)] if len(rows) < len(info) else info, 1.0 / var)
    white = np.empty((len(rows), *t.shape[2:]))
    fit = np.zeros(t.shape[2:])
    root_det = np.ones(t.shape[2:])
    for i, row in enumerate(rows):
        rest = info_y[row] + mean[i] / var[i]
        for k in range(i):
            rest -= t[i, k] * white[k]
        np.divide(rest, t[i, i], out=white[i])
        fit += white[i] ** 2
        root_det *= t[i, i]
    constant = state.log_det + state.quad + float(np.sum(mean**2 / var) + np.sum(np.log(var)))
    log_evidence = 0.5 * (fit - constant[:, None]) - np.log(root_det)
    return Posterior(rows, t, white, log_evidence + prior.log_cell(state.grid) + state.grid.log_setting[:, None])


def posteriors(state: Filter, prior: Prior) -> list[Posterior]:
    """One posterior for every component of the prior and subset of the change-points, those without any first.

    Prior odds of the subsets are even.
    """
    numbers = range(len(state.changes))
    subsets = [subset for size in range(len(state.changes) + 1) for subset in combinations(numbers, size)]
    rows = [(0, 1, *(2 + 2 * j + e for j in subset for e in (0, 1))) for subset in subsets]
    information = state.information()
    return [posterior(state, chosen, component, information) for chosen in rows for component in prior.components]


def change_probabilities(models: Sequence[Posterior]) -> tuple[float, ...]:
    """Posterior probability of each change-point, from the evidences of all subsets at even prior odds."""
    log_odds = np.array([model.log_evidence for model in models])
    share = np.exp(log_odds - log_odds.max())
    share /= share.sum()
    changes = range((len(models[-1].rows) - 2) // 2)
    return tuple(float(share[[2 + 2 * j in model.rows for model in models]].sum()) for j in changes)


def cell_mass(models: Sequence[Posterior]) -> Array:
    """Posterior mass of every cell over all models and settings, (G,), up to a factor."""
    log_weight = np.array([model.log_weight for model in models])
    mass: Array = np.exp(log_weight - log_weight.max()).sum(axis=(0, 1))
    return mass
