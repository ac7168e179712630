"""The grid posterior against emcee on the same posterior: quantiles of A and of the forecast, and the time both take.

    pip install -r bench/forecast/requirements.txt
    OMP_NUM_THREADS=1 python bench/forecast/against_emcee.py [--curves 6] [--steps 6000]

emcee samples (ln B, ln C_mid, R0, A) with the noise settings (kappa, phi) summed out and the same priors and truncation; its
likelihood is given every help: the covariance of a setting does not depend on the parameters, so it is whitened once.
"""

import argparse
import math
import time

import emcee
import numpy as np

from controlplane.forecast import Forecaster
from controlplane.forecast.grid import B_CENTRE, B_RANGE, B_SPREAD, BETA_MEAN, BETA_VAR, MID_RANGE, make_grid
from controlplane.forecast.law import supported

BUDGET, WALKERS = 100.0, 24
SETTINGS = make_grid(BUDGET)
QUANTILES = (0.1, 0.5, 0.9)


class Target:
    """The posterior of one curve."""

    def __init__(self, c: np.ndarray, y: np.ndarray, v: np.ndarray) -> None:
        self.u, self.y = np.log(c), y
        span = np.minimum.outer(self.u - self.u[0], self.u - self.u[0])
        walk = SETTINGS.kappa[:, None, None] ** 2 * span
        noise = walk + SETTINGS.phi[:, None, None] * np.diag(v)
        chol = np.linalg.cholesky(noise)
        self.white = np.linalg.inv(chol)  # (K, n, n)
        self.constant = SETTINGS.log_setting - np.log(np.diagonal(chol, axis1=1, axis2=2)).sum(axis=1)
        self.gain = np.linalg.solve(noise, walk[:, :, -1:])[..., 0]  # (K, n): level at the end from the residuals
        self.level_var = np.maximum(walk[:, -1, -1] - np.einsum("kn,kn->k", self.gain, walk[:, :, -1]), 0.0)

    def settings(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals (W, n) and log likelihood by setting (W, K)."""
        s = 1.0 / (1.0 + np.exp(-np.exp(theta[:, :1]) * (self.u - theta[:, 1:2])))
        rest = self.y - theta[:, 2:3] * (1.0 - s) - theta[:, 3:] * s
        z = np.einsum("knm,wm->wkn", self.white, rest)
        return rest, self.constant - 0.5 * (z * z).sum(axis=-1)

    def log_probability(self, theta: np.ndarray) -> np.ndarray:
        log_b, log_mid, r0, a = theta.T
        inside = supported(r0, a) & (log_b > math.log(B_RANGE[0])) & (log_b < math.log(B_RANGE[1]))
        inside &= (log_mid > math.log(MID_RANGE[0] * BUDGET)) & (log_mid < math.log(MID_RANGE[1] * BUDGET))
        prior = -0.5 * ((log_b - math.log(B_CENTRE)) / B_SPREAD) ** 2
        prior -= 0.5 * ((r0 - BETA_MEAN[0]) ** 2 / BETA_VAR[0] + (a - BETA_MEAN[1]) ** 2 / BETA_VAR[1])
        _, by_setting = self.settings(theta)
        top = by_setting.max(axis=1)
        value = prior + top + np.log(np.exp(by_setting - top[:, None]).sum(axis=1))
        return np.where(inside, value, -np.inf)

    def forecast(self, theta: np.ndarray, at: float, rng: np.random.Generator) -> np.ndarray:
        rest, by_setting = self.settings(theta)
        # One setting for each draw, by its posterior weight (the Gumbel trick).
        k = (by_setting + rng.gumbel(size=by_setting.shape)).argmax(axis=1)
        ahead = SETTINGS.kappa[k] ** 2 * (math.log(at) - self.u[-1])
        level = (self.gain[k] * rest).sum(axis=1) + np.sqrt(self.level_var[k] + ahead) * rng.normal(size=len(k))
        s = 1.0 / (1.0 + np.exp(-np.exp(theta[:, 0]) * (math.log(at) - theta[:, 1])))
        return np.clip(theta[:, 2] * (1.0 - s) + theta[:, 3] * s + level, 0.0, 1.0)


def main() -> None:
    """Print one line per curve and the totals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=int, default=6)
    parser.add_argument("--steps", type=int, default=6000)
    asked = parser.parse_args()
    rng = np.random.default_rng(5)
    differences, ratios = [], []
    print(
        "| curve | A: ours | A: emcee | end: ours | end: emcee | largest difference | ours, ms | emcee, ms | autocorrelation |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for number in range(asked.curves):
        r0 = rng.uniform(0.02, 0.4)
        a, b, mid = rng.uniform(r0 + 0.2, 0.9), rng.lognormal(math.log(1.6), 0.3), BUDGET * rng.uniform(0.08, 0.4)
        c = np.arange(1.0, 51.0)
        v = np.full(50, 1e-4)
        y = np.clip(r0 + (a - r0) / (1.0 + (mid / c) ** b) + 0.01 * rng.normal(size=50), 0.0, 1.0)
        ours, end, mine = by_grid(c, y, v)
        theirs, their_end, spent, tau = by_emcee(Target(c, y, v), r0, a, b, mid, asked.steps, rng)
        difference = np.abs(np.concatenate([ours - theirs, end - their_end]))
        differences.append(difference)
        ratios.append(spent / mine)
        texts = ["[" + ", ".join(f"{q:.3f}" for q in qs) + "]" for qs in (ours, theirs, end, their_end)]
        print(
            f"| {number} | {' | '.join(texts)} | {difference.max():.4f} | {mine:.1f} | {spent:,.0f} | {tau:.0f} |",
            flush=True,
        )
    every = np.concatenate(differences)
    print(
        f"differences of quantiles: median {np.median(every):.4f}, largest {every.max():.4f}; {min(ratios):.0f} to {max(ratios):.0f} times faster"
    )


def by_grid(c: np.ndarray, y: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Quantiles of A and of the end, and the CPU milliseconds of a full fit (best of 10)."""
    spent = []
    for _ in range(10):
        began = time.process_time_ns()
        f = Forecaster(BUDGET)
        for point in zip(c, y, v, strict=True):
            f.observe(*map(float, point))
        p, found = f.forecast([BUDGET]), f.parameters().A
        spent.append((time.process_time_ns() - began) / 1e6)
    return np.array([found.quantile(q) for q in QUANTILES]), np.array([p.quantile(q)[0] for q in QUANTILES]), min(spent)


def by_emcee(
    target: Target, r0: float, a: float, b: float, mid: float, steps: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """The same by emcee, started at the truth, the first quarter dropped; CPU milliseconds and autocorrelation time."""
    start = np.array([math.log(b), math.log(mid), r0, a]) + 0.02 * rng.normal(size=(WALKERS, 4))
    sampler = emcee.EnsembleSampler(WALKERS, 4, target.log_probability, vectorize=True)
    sampler.random_state = np.random.RandomState(number := 7).get_state()
    began = time.process_time_ns()
    sampler.run_mcmc(start, steps)
    spent = (time.process_time_ns() - began) / 1e6
    tau = float(np.max(sampler.get_autocorr_time(tol=0)))
    kept = sampler.get_chain(discard=steps // 4, flat=True)
    end = target.forecast(kept, BUDGET, np.random.default_rng(number))
    return np.quantile(kept[:, 3], QUANTILES), np.quantile(end, QUANTILES), spent, tau


if __name__ == "__main__":
    main()
