"""False alarms and delays of the shipped detectors, by simulation: `python bench/detectors.py`.

Prints, for each detector at its default settings, readings per false alarm (ARL0) under normal, heavy-tailed (t3) and
correlated (AR .3) noise, and the median delay after a step of 2 and 4 spreads. A delay in brackets means that fewer
than half of the shifts were found within 150 readings.
"""

import argparse
import json
import statistics
from collections.abc import Callable

import numpy as np

from controlplane.detect import Detector, Outcome, Reading, build
from controlplane.policy.models import Cusum, RobustZ

Noise = Callable[[np.random.Generator, int], np.ndarray]


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=n)


def heavy(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_t(3, n) / np.sqrt(3)


def correlated(rng: np.random.Generator, n: int) -> np.ndarray:
    noise, out = rng.normal(size=n) * np.sqrt(1 - 0.3**2), np.empty(n)
    last = 0.0
    for i in range(n):
        last = out[i] = 0.3 * last + noise[i]
    return out


DETECTORS: dict[str, tuple[Callable[[], Detector | None], float]] = {
    "cusum low, k 1, h 8": (lambda: build(Cusum(kind="cusum", signal="pass_rate", side="low")), -1.0),
    "robust_z, 4 twice in a row": (lambda: build(RobustZ(kind="robust_z", signal="grad_norm", transform="none")), 1.0),
}


def fresh(make: Callable[[], Detector | None]) -> Detector:
    detector = make()
    assert detector is not None
    return detector


def false_alarms(make: Callable[[], Detector | None], noise: Noise, readings: int, seed: int) -> float:
    """Readings per false alarm; an alarm is the beginning of a breach, after which the detector starts again."""
    rng, detector, alarms = np.random.default_rng(seed), fresh(make), 0
    for step, value in enumerate(noise(rng, readings)):
        if detector.update(Reading(step, float(value))).outcome is Outcome.breach:
            alarms, detector = alarms + 1, fresh(make)
    return readings / alarms if alarms else float("inf")


def delay(make: Callable[[], Detector | None], noise: Noise, shift: float, trials: int, seed: int) -> float:
    """Median readings from the shift to the alarm; infinite where fewer than half were found in 150."""
    delays = []
    for trial in range(trials):
        values, detector = noise(np.random.default_rng((seed, trial)), 250), fresh(make)
        values[100:] += shift
        found = float("inf")
        for step, value in enumerate(values):
            if detector.update(Reading(step, float(value))).outcome is Outcome.breach and step >= 100:
                found = step - 99
                break
        delays.append(found)
    return statistics.median(delays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readings", type=int, default=100_000, help="simulated readings per figure")
    parser.add_argument("--trials", type=int, default=100, help="simulated shifts per figure")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for name, (make, side) in DETECTORS.items():
        row: dict[str, object] = {"detector": name, "readings": options.readings}
        for noise in (normal, heavy, correlated):
            row[f"arl0_{noise.__name__}"] = false_alarms(make, noise, options.readings, seed=1)
        for size in (2, 4):
            row[f"delay_{size}_spreads"] = delay(make, heavy, side * size, options.trials, seed=2)
        rows.append(row)
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            "  ".join(
                f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )


if __name__ == "__main__":
    main()
