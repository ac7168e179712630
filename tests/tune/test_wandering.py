"""The noise that the bench reads out of measured pairs of arms."""

import numpy as np
import pytest

from bench.tuning.judge import simulate
from bench.tuning.wandering import fit, log_likelihood
from controlplane.tune.evidence import Noise
from controlplane.tune.pairing import Paired


def pairs(wander: Noise, number: int, effect: float = 0.0) -> list[Paired]:
    steps = 60
    means, errors = simulate(np.random.default_rng(1), number, steps, effect, wander)
    t, prompts = np.arange(1.0, steps + 1), np.full(steps, 16.0)
    return [Paired(t, mean, error, prompts) for mean, error in zip(means, errors, strict=True)]


@pytest.mark.parametrize("size", [0.0, 0.2, 0.4])
def test_the_size_of_the_wandering_that_was_put_in_is_found_and_the_effect_is_not_taken_for_it(size: float) -> None:
    found = fit(pairs(Noise(0.9, size), 24, effect=0.1))
    assert found.best.wandering == pytest.approx(size, abs=0.1)
    assert 0.8 <= found.best.persistence <= 0.99 or size == 0.0


def test_arms_that_never_parted_say_nothing_about_noise() -> None:
    still = Paired(np.arange(1.0, 61), np.zeros(60), np.full(60, 0.05), np.full(60, 16.0))
    assert log_likelihood(still, Noise(0.9, 0.2), 60) == log_likelihood(still, Noise(0.9, 0.0), 60) == 0.0
