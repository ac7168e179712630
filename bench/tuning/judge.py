"""The judge's error rate with a look after every step, and its power against the planner's promise.

Simulated probes with the noise of real ones: prompts of different difficulty (16 a step, 8 completions each), arms that share
prompts and seeds and so begin alike and forget it, binomial sampling, and equally good trainings that wander apart. Nothing
here knows the judge's model but the declared noise: the differences are discrete, their size changes from step to step, and
their scale is never told. Judged at every step; a probe errs if the judge would adopt at any of them.

    python -m bench.tuning.judge [--probes 10000] [--power-probes 2000] [--pairs PAIRS]

With --pairs (twins.py) the noise of measured pairs is among the cases: the one that fits best, and the worst that they do not rule out.

A switchback is simulated in the same way, with everything against it that a run has: other prompts at every step, and progress of its own.
"""

import argparse
from math import log
from pathlib import Path

import numpy as np
from scipy.special import ndtr

from bench.tuning.twins import residuals
from bench.tuning.wandering import fit
from controlplane.contract.documents import CONTROL
from controlplane.tune.evidence import Array, Noise, Sums, log_evidence, whitening
from controlplane.tune.judge import Outcome, Terms, judge
from controlplane.tune.pairing import Paired, step_errors
from controlplane.tune.planner import crossing, power
from controlplane.tune.switchback import TREND, Turns
from controlplane.tune.switchback import information as of_turns

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


def alternate(rng: np.random.Generator, probes: int, turns: Turns, effect: float, wander: Noise) -> tuple[Array, Array]:
    """The same for a switchback: pass rates and standard errors of the steps that are read, [probes, readings].

    The run learns on a saturating curve of its own, which is no parabola; an arm's effect comes with the lag of an optimizer's
    momentum (0.9); half of the probes begin with the arm. Nothing of that is told.
    """
    places, _ = turns.readings()
    steps, read = turns.steps, np.array(places) - 1
    t = np.arange(1, steps + 1)
    start, gain = rng.uniform(0.15, 0.6, (probes, 1)), rng.uniform(0.0, 0.3, (probes, 1))
    level = start + gain * (1 - np.exp(-t / (steps * rng.uniform(0.15, 2.0, (probes, 1)))))
    on = np.repeat([name != CONTROL for name in turns.order], turns.segment_steps).astype(float)
    felt = np.zeros(steps)
    for i in range(1, steps):
        felt[i] = 0.9 * felt[i - 1] + 0.1 * on[i - 1]
    level = level + effect * np.cumsum(felt) / (steps / 2)
    p = np.clip(level[:, :, None] + rng.normal(0, 0.25, (probes, steps, PROMPTS)), 0.02, 0.98)
    unit = np.sqrt(np.mean(p.var(2) + p.mean(2) * (1 - p.mean(2)) / SAMPLES, axis=1) / PROMPTS)
    apart = np.zeros(probes)
    for i in range(steps):
        apart = wander.persistence * apart + wander.wandering * unit * rng.standard_normal(probes)
        p[:, i] = np.clip(p[:, i] + apart[:, None], 0.02, 0.98)
    rates = (rng.binomial(SAMPLES, p) / SAMPLES)[:, read]
    means, squares = rates.mean(2), (rates**2).sum(2)
    counts = np.full(len(places), float(PROMPTS))
    usual = means.mean(1)
    spread = usual * (1 - usual)
    errors = [step_errors(m, s, counts, u) for m, s, u in zip(means, squares, spread, strict=True)]
    return means, np.stack(errors)


def turned(
    probes: int, steps: int, effect: float, wander: Noise, declared: Noise, seed: int = 0
) -> tuple[float, float, float]:
    """Share of switchbacks that are adopted at any step; noise of a step and mean estimate of the effect."""
    rng = np.random.default_rng(seed)
    hits, units, effects = 0, [], []
    for number in range(2):
        turns = Turns(
            (("control", "arm", "arm", "control"), ("arm", "control", "control", "arm"))[number], steps // 2, 4
        )
        places, exposure = turns.readings()
        white = whitening(declared, places, TREND, turns.steps)
        means, errors = alternate(rng, probes // 2, turns, effect, wander)
        unit = np.sqrt(np.mean(errors**2, axis=1))
        for mean, scale in zip(means, unit, strict=True):
            sums = Sums.whitened(exposure / steps, mean / scale, white)
            hits += bool((log_evidence(sums, 0.0) >= log(20.0)).any())
            effects.append(float(sums.effect[-1]) * scale)
        units.append(float(np.sqrt(np.mean(unit**2))))
    return hits / probes, float(np.mean(units)), float(np.mean(effects))


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


def judged(means: Array, errors: Array, terms: Terms) -> tuple[Outcome, int]:
    """What becomes of a probe in the product, where an arm may also be given up, and after how many steps."""
    steps = len(means)
    t, prompts = np.arange(1.0, steps + 1), np.full(steps, float(PROMPTS))
    for now in range(1, steps + 1):
        outcome = judge({"arm": Paired(t[:now], means[:now], errors[:now], prompts[:now])}, terms)["arm"].outcome
        if outcome is not Outcome.undecided:
            return outcome, now
    raise AssertionError("after its last step an arm is decided")


def product(probes: int, steps: int, effect: float, seed: int = 0) -> tuple[float, float, float]:
    """With the declared noise: share of probes that adopt the arm, mean steps of an arm, and what the planner promises."""
    means, errors = simulate(np.random.default_rng(seed), probes, steps, effect, Noise())
    ended = [judged(mean, error, Terms(steps=steps)) for mean, error in zip(means, errors, strict=True)]
    _, _, real = proved(means, errors, Noise(), log(20.0))
    promise = power(steps, real, float(np.sqrt(np.mean(errors**2))), 1, 0.95, Noise())
    adopted = float(np.mean([outcome is Outcome.adopt for outcome, _ in ended]))
    return adopted, float(np.mean([step for _, step in ended])), promise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=int, default=10_000)
    parser.add_argument("--power-probes", type=int, default=2_000)
    parser.add_argument("--judged-probes", type=int, default=500)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pairs", type=Path)
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
    if options.pairs:
        found = fit(residuals(options.pairs))
        for name, noise in (("as measured", found.best), ("the worst not ruled out", found.worst)):
            cases.append((f"{name} ({noise.persistence}, {noise.wandering})", noise, 1))
    for name, wander, arms in cases:
        share, _, _, _ = rate(options.probes, options.steps, 0.0, wander, declared, arms)
        error = (share * (1 - share) / options.probes) ** 0.5
        print(f"  {name:40s} {share:.4f} +- {1.96 * error:.4f}  ({options.probes} probes)", flush=True)
    print("the same for a switchback: one trajectory, no shared prompts, a saturating curve")
    for name, wander in (
        ("no wandering", Noise(0.9, 0.0)),
        ("what is declared", declared),
        ("twice that", Noise(0.9, 0.4)),
    ):
        share, unit, effect = turned(options.probes, options.steps, 0.0, wander, declared)
        error = (share * (1 - share) / options.probes) ** 0.5
        print(f"  {name:40s} {share:.4f} +- {1.96 * error:.4f}, mean estimate {effect:+.3f}", flush=True)
    print("a switchback of an effect: share that adopts it, and what the planner promises")
    for effect in (0.1, 0.2, 0.4):
        share, unit, real = turned(options.power_probes, options.steps, effect, declared, declared)
        known = of_turns(Turns(("control", "arm", "arm", "control"), options.steps // 2, 4), declared)
        promise = float(ndtr(real / unit * known**0.5 - crossing(known, log(20.0))))
        print(f"  effect put in {effect:.2f}, estimated {real:.3f}: {share:.3f}, promised {promise:.3f}", flush=True)
    print("an effect: share of probes that adopt it, and what the planner promises")
    for steps in (40, 60, 100):
        for effect in (0.04, 0.08, 0.12):
            share, at, unit, real = rate(options.power_probes, steps, effect, declared, declared)
            promise = power(steps, real, unit, 1, 0.95, declared)
            print(
                f"  {steps:3d} steps, effect {real:.3f}: {share:.3f}, promised {promise:.3f}; adopted at step {at:.0f} on average",
                flush=True,
            )
    print(f"the same with arms that are given up, {options.judged_probes} probes of {options.steps} steps")
    for effect in (-0.08, 0.0, 0.04, 0.08, 0.12):
        share, taken, promise = product(options.judged_probes, options.steps, effect)
        print(
            f"  effect put in {effect:+.2f}: {share:.3f}, promised {promise:.3f}; {taken:.0f} steps on average",
            flush=True,
        )


if __name__ == "__main__":
    main()
