"""How often a detector alarms for nothing and how soon it finds something, by simulation of the very code that judges runs.

The noises are those that were seen on public RL runs: gradient norms with the tails of t3, batches that share prompts,
readings that are correlated. A spread is the spread of the noise. Deterministic: seeded per figure.
"""

import statistics
from collections.abc import Callable, Iterator
from math import inf, isinf

import numpy as np
from numpy.typing import NDArray

from controlplane.detect.detectors import build
from controlplane.detect.figures import Figures
from controlplane.detect.finding import Detector, Outcome
from controlplane.detect.signals import Reading
from controlplane.policy.detectors import BernoulliCusum, Cusum, RobustZ, Slide, Threshold, Trend
from controlplane.policy.detectors import Detector as Config
from controlplane.policy.signals import SignalSpec

Array = NDArray[np.float64]
PROMPTS, SAMPLES = 64, 16
HORIZON = 150  # readings after which a shift counts as not found
WARM = 150  # readings before it, so that the detector knows what is usual


def measure(config: Config, spec: SignalSpec | None, readings: int, trials: int) -> Figures | None:
    """Simulate a detector; None for those that only count (streak, stall) or that rest on the forecast."""
    match config:
        case Cusum():
            side = -1.0 if config.side == "low" else 1.0
            return _shifts(config, spec, side, readings, trials)
        case RobustZ():
            return _shifts(config, spec, 1.0, readings, trials)
        case Threshold():
            return _threshold(config, readings, trials)
        case BernoulliCusum():
            return _bernoulli(config, readings, trials)
        case Trend():
            return _trend(config, readings, trials)
        case Slide():
            return _slide(config, readings, trials)
    return None


def heavy(rng: np.random.Generator, count: int) -> Array:
    """t with three degrees of freedom, scaled to unit variance."""
    return np.asarray(rng.standard_t(3, count) / np.sqrt(3))


def normal(rng: np.random.Generator, count: int) -> Array:
    return rng.normal(size=count)


def correlated(rng: np.random.Generator, count: int) -> Array:
    """AR(.3) with unit variance."""
    noise, out, last = rng.normal(size=count) * np.sqrt(1 - 0.3**2), np.empty(count), 0.0
    for i in range(count):
        last = out[i] = 0.3 * last + noise[i]
    return out


NOISES = {"heavy-tailed": heavy, "normal": normal, "correlated": correlated}


def batches(rng: np.random.Generator, count: int, share: float, correlation: float) -> Array:
    """Proportions of `count` batches of 64 prompts x 16 completions whose outcomes are alike within a prompt."""
    spread = 1 / max(correlation, 1e-6) - 1
    chances = rng.beta(share * spread, (1 - share) * spread, size=(count, PROMPTS))
    found: Array = rng.binomial(SAMPLES, chances).sum(axis=1) / (PROMPTS * SAMPLES)
    return found


def _shifts(config: Cusum | RobustZ, spec: SignalSpec | None, side: float, readings: int, trials: int) -> Figures:
    kind = spec.kind if spec else "real"

    def scale(noise: Array) -> Array:
        # Spreads well above the floors of the baseline, so that the noise itself is what is measured.
        return np.exp(0.3 * noise) if kind == "positive" else 0.5 + 0.1 * noise

    alarms = {
        name: _false_alarms(config, spec, lambda rng, n, noise=noise: scale(noise(rng, n)), readings)  # type: ignore[misc]
        for name, noise in NOISES.items()
    }

    warm = max(WARM, 16 + 2 * config.lag + config.window)

    def shifted(size: float) -> Callable[[np.random.Generator, int], Array]:
        def values(rng: np.random.Generator, count: int) -> Array:
            noise = heavy(rng, count)
            noise[warm:] += side * size
            return scale(noise)

        return values

    found = {f"{size} spreads": _delay(config, spec, shifted(size), trials, warm=warm) for size in (2, 4)}
    return Figures(alarms, found, readings, trials)


def _threshold(config: Threshold, readings: int, trials: int) -> Figures:
    side = 1.0 if config.above is not None else -1.0
    at = config.model_copy(update={"from_step": 0})

    def around(margin: float) -> Callable[[np.random.Generator, int], Array]:
        return lambda rng, n: config.limit + side * (margin + heavy(rng, n))

    def crossing(margin: float) -> Callable[[np.random.Generator, int], Array]:
        def values(rng: np.random.Generator, count: int) -> Array:
            noise = heavy(rng, count) - 3.0
            noise[WARM:] += 3.0 + margin
            return config.limit + side * noise

        return values

    alarms = {
        f"{m} spread{'s' if m > 1 else ''} on the good side": _false_alarms(at, None, around(-m), readings)
        for m in (1, 2)
    }
    found = {f"{m} spread{'s' if m > 1 else ''} beyond": _delay(at, None, crossing(m), trials) for m in (1, 2)}
    return Figures(alarms, found, readings, trials)


def _bernoulli(config: BernoulliCusum, readings: int, trials: int) -> Figures:
    low, high, rho = config.usual, config.bad, config.correlation

    def steady(share: float) -> Callable[[np.random.Generator, int], Array]:
        return lambda rng, n: batches(rng, n, share, rho)

    def risen(share: float) -> Callable[[np.random.Generator, int], Array]:
        return lambda rng, n: np.concatenate([batches(rng, WARM, low, rho), batches(rng, n - WARM, share, rho)])

    alarms = {f"at a true {share:g}": _false_alarms(config, None, steady(share), readings) for share in (low / 2, low)}
    found = {f"at a true {s:.3g}": _delay(config, None, risen(s), trials) for s in (0.8 * high, high, 1.5 * high)}
    return Figures(alarms, found, readings, trials)


def _trend(config: Trend, readings: int, trials: int) -> Figures:
    """Values that start at half the threshold, with a spread of a twentieth of it."""
    size = abs(config.limit) or 1.0
    side = 1.0 if config.above is not None else -1.0

    def flat(rng: np.random.Generator, count: int) -> Array:
        return config.limit - side * size * (0.5 - 0.05 * heavy(rng, count))

    def rising(steps: int) -> Callable[[np.random.Generator, int], Array]:
        def values(rng: np.random.Generator, count: int) -> Array:
            climb = np.maximum(np.arange(count) - WARM, 0) / steps * 0.5
            return config.limit - side * size * (0.5 - climb - 0.05 * heavy(rng, count))

        return values

    alarms = {"flat at half the threshold": _false_alarms(config, None, flat, readings)}
    found = {f"a climb that takes {s} steps": _delay(config, None, rising(s), trials, s) for s in (100, 200)}
    return Figures(alarms, found, readings, trials)


def _slide(config: Slide, readings: int, trials: int) -> Figures:
    """Around 1, with a spread of a tenth or of three tenths (a pass rate of .16 over 64 samples); then halved every so many."""

    def around(spread: float) -> Callable[[np.random.Generator, int], Array]:
        return lambda rng, n: np.maximum(1 + spread * heavy(rng, n), 0.0)

    def halving(steps: int) -> Callable[[np.random.Generator, int], Array]:
        def values(rng: np.random.Generator, count: int) -> Array:
            falling = 0.5 ** (np.maximum(np.arange(count) + 1 - WARM, 0) / steps)
            return np.maximum(falling * (1 + 0.1 * heavy(rng, count)), 0.0)

        return values

    alarms = {f"spread of {s:g}": _false_alarms(config, None, around(s), readings) for s in (0.1, 0.3)}
    found = {f"halved every {s} steps": _delay(config, None, halving(s), trials) for s in (2, 4)}
    return Figures(alarms, found, readings, trials)


def _fresh(config: Config, spec: SignalSpec | None) -> Detector:
    detector = build(config, spec)
    assert detector is not None
    return detector


def _readings(config: Config, values: Array) -> Iterator[Reading]:
    grouped = isinstance(config, BernoulliCusum)
    for step, value in enumerate(values.tolist()):
        yield Reading(step, value, PROMPTS * SAMPLES, SAMPLES) if grouped else Reading(step, value)


def _false_alarms(
    config: Config, spec: SignalSpec | None, noise: Callable[[np.random.Generator, int], Array], readings: int
) -> float:
    """Alarms per 1,000 readings; an alarm is the beginning of a breach, after which the detector starts again."""
    detector, alarms = _fresh(config, spec), 0
    for reading in _readings(config, noise(np.random.default_rng(1), readings)):
        if detector.update(reading).outcome is Outcome.breach:
            alarms, detector = alarms + 1, _fresh(config, spec)
    return 1000 * alarms / readings


def _delay(
    config: Config,
    spec: SignalSpec | None,
    values: Callable[[np.random.Generator, int], Array],
    trials: int,
    horizon: int = HORIZON,
    warm: int = WARM,
) -> float:
    """Median readings from the change to the alarm; infinite where fewer than half were found within `horizon`."""
    delays = []
    for trial in range(trials):
        detector, found = _fresh(config, spec), inf
        for reading in _readings(config, values(np.random.default_rng((2, trial)), warm + horizon)):
            breach = detector.update(reading).outcome is Outcome.breach
            if breach and reading.step >= warm:
                found = reading.step - warm + 1
                break
            if breach:
                detector.rewind(reading.step)  # a false alarm before the change: start the count again
        delays.append(found)
    middle = statistics.median(delays)
    return inf if isinf(middle) else middle
