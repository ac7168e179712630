"""The judge's error rate with a look after every step, and its power against the planner's promise.

Simulated probes with the noise of real ones: prompts of different difficulty (16 a step, 8 completions each), arms that share
prompts and seeds and so begin alike and forget it, binomial sampling, and equally good trainings that wander apart. Nothing
here knows the judge's model but the declared noise: the differences are discrete, their size changes from step to step, and
their scale is never told. Judged at every step; a probe errs if the judge would adopt at any of them.

    python bench/tuning/judge.py [--probes 10000] [--power-probes 2000]
"""

import argparse
from math import log

import numpy as np

from controlplane.tune.evidence import Array, Noise, Sums, log_evidence
from controlplane.tune.pairing import step_errors
from controlplane.tune.planner import power

PROMPTS, SAMPLES, CHUNK = 16, 8, 500


def simulate(
    rng: np.random.Generator, probes: int, steps: int, effect: float, wander: Noise, alike: float = 15.0
) -> tuple[Array, Array]:
    """Means [probes, steps] and standard errors of the steps' differences.

    `wander.wandering` is in units of a step's sampling noise, and `alike` the steps in which the arms forget that they began alike.
    """
    t = np.arange(1, steps + 1)
    level = rng.uniform(0.2, 0.8, (probes, 1, 1)) + 0.15 * (t / steps)[None, :, None]
    difficulty = rng.normal(0, 0.25, (probes, steps, PROMPTS))
    p = np.clip(level + difficulty, 0.02, 0.98)
    unit = np.sqrt(2 * np.mean(p * (1 - p), axis=(1, 2)) / (PROMPTS * SAMPLES))
    apart, drift = np.zeros(probes), np.zeros((probes, steps))
    for i in range(steps):
        apart = wander.persistence * apart + wander.wandering * unit * rng.standard_normal(probes)
        drift[:, i] = apart
    gain = drift + effect * t / steps
    forgotten = 1 - np.exp(-t / alike)
    control = rng.binomial(SAMPLES, p)
    fresh = rng.binomial(SAMPLES, np.clip(p + gain[:, :, None], 0, 1))
    new = rng.random((probes, steps, PROMPTS)) < forgotten[None, :, None]
    moved = control + (rng.random(p.shape) < np.abs(gain)[:, :, None] * SAMPLES) * np.sign(gain)[:, :, None]
    candidate = np.where(new, fresh, np.clip(moved, 0, SAMPLES))
    difference = (candidate - control) / SAMPLES
    means, squares = difference.mean(2), (difference**2).sum(2)
    rate = (candidate.sum((1, 2)) + control.sum((1, 2))) / (2 * steps * PROMPTS * SAMPLES)
    unpaired = 2 * rate * (1 - rate) / SAMPLES
    errors = np.stack(
        [step_errors(m, s, np.full(steps, float(PROMPTS)), u) for m, s, u in zip(means, squares, unpaired, strict=True)]
    )
    return means, errors


def proved(
    means: Array, errors: Array, declared: Noise, needed: float, limit: float = 0.0
) -> tuple[Array, float, float]:
    """Which probes are adopted at any step, the mean step at which they are, and the mean effect as estimated at the end."""
    steps = means.shape[1]
    unit = np.sqrt(np.mean(errors**2, axis=1, keepdims=True))
    weight = unit / errors
    x = np.arange(1, steps + 1) / steps * weight
    sums = Sums.of(x, means / unit * weight, declared)
    over = np.empty_like(means, dtype=bool)
    for i in range(len(means)):
        one = Sums(sums.xx[i], sums.xd[i], sums.dd[i])
        over[i] = log_evidence(one, limit / float(unit[i, 0])) >= needed
    hit = over.any(1)
    when = over.argmax(1)[hit] + 1
    effect = float(np.mean(sums.effect[:, -1] * unit[:, 0]))
    return hit, float(when.mean()) if hit.any() else float("nan"), effect


def rate(
    probes: int, steps: int, effect: float, wander: Noise, declared: Noise, arms: int = 1, seed: int = 0
) -> tuple[float, float, float, float]:
    """Share of probes in which any of the arms is adopted, mean step of adoption; and, for the planner, the noise of a step and
    the effect that came about (pass rates end at 1, so it is smaller than what was put in)."""
    rng = np.random.default_rng(seed)
    adopted, at, units, effects = [], [], [], []
    for _ in range(0, probes, CHUNK):
        hits = np.zeros(CHUNK, dtype=bool)
        for _ in range(arms):
            means, errors = simulate(rng, CHUNK, steps, effect, wander)
            hit, when, found = proved(means, errors, declared, log(arms / 0.05))
            hits |= hit
            at.append(when)
            effects.append(found)
            units.append(float(np.sqrt(np.mean(errors**2))))
        adopted.append(hits)
    return (
        float(np.concatenate(adopted).mean()),
        float(np.nanmean(at)) if np.isfinite(at).any() else float("nan"),
        float(np.mean(units)),
        float(np.mean(effects)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", type=int, default=10_000)
    parser.add_argument("--power-probes", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    declared = Noise()
    print(f"declared noise {declared}; {options.steps} steps per arm; judged after every step; confidence 0.95")
    print("no effect: share of probes that adopt an arm")
    cases = [
        ("no wandering", Noise(0.9, 0.0), 1),
        ("short memory (0.5, 0.5)", Noise(0.5, 0.5), 1),
        ("half of what is declared (0.9, 0.1)", Noise(0.9, 0.1), 1),
        ("what is declared (0.9, 0.2)", declared, 1),
        ("what is declared, two arms", declared, 2),
        ("more than is declared (0.95, 0.2)", Noise(0.95, 0.2), 1),
        ("twice what is declared (0.9, 0.4)", Noise(0.9, 0.4), 1),
    ]
    for name, wander, arms in cases:
        share, _, _, _ = rate(options.probes, options.steps, 0.0, wander, declared, arms)
        error = (share * (1 - share) / options.probes) ** 0.5
        print(f"  {name:40s} {share:.4f} +- {1.96 * error:.4f}  ({options.probes} probes)", flush=True)
    print("an effect: share of probes that adopt it, and what the planner promises")
    for steps in (40, 60, 100):
        for effect in (0.04, 0.08, 0.12):
            share, at, unit, real = rate(options.power_probes, steps, effect, declared, declared)
            promise = power(steps, real, unit, 1, 0.95, declared)
            print(
                f"  {steps:3d} steps, effect {real:.3f}: {share:.3f}, promised {promise:.3f}; adopted at step {at:.0f} on average",
                flush=True,
            )


if __name__ == "__main__":
    main()
