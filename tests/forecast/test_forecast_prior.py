"""A prior from finished runs: it helps a run that is like them, and gets out of the way of one that is not."""

import math

import numpy as np
import pytest

from controlplane.forecast import Forecaster, Prior
from controlplane.forecast.grid import make_grid
from controlplane.forecast.prior import Component

BUDGET = 16_000.0


def recipe(a: float, seed: int, until: float = BUDGET, mid: float = 2500.0, prior: Prior | None = None) -> Forecaster:
    f, rng = Forecaster(BUDGET, prior=prior), np.random.default_rng(seed)
    f.observe(0.0, 0.4, 2e-5)
    for c in np.arange(257.0, until, 257.0):
        f.observe(float(c), float(0.4 + (a - 0.4) / (1 + (mid / c) ** 1.9) + 0.0045 * rng.normal()), 2e-5)
    return f


@pytest.fixture(scope="module")
def pooled() -> Prior:
    return Prior.from_runs([recipe(a, seed) for seed, a in enumerate((0.60, 0.61, 0.605, 0.595))])


def test_a_run_like_the_finished_ones_is_known_before_its_bend(pooled: Prior) -> None:
    alone, helped = (recipe(0.605, 9, until=3000.0, prior=p).forecast([BUDGET]) for p in (None, pooled))
    assert helped.quantile(0.1)[0] < 0.600 < helped.quantile(0.9)[0]
    assert helped.quantile(0.9)[0] - helped.quantile(0.1)[0] < 0.4 * (alone.quantile(0.9)[0] - alone.quantile(0.1)[0])


def test_a_run_of_another_kind_is_soon_judged_on_its_own(pooled: Prior) -> None:
    alone, helped = (recipe(0.80, 9, until=12_000.0, prior=p).forecast([BUDGET]) for p in (None, pooled))
    assert helped.mean[0] == pytest.approx(alone.mean[0], abs=0.01)


def test_the_prior_says_what_the_runs_showed_and_keeps_room_for_chance(pooled: Prior) -> None:
    like, other = pooled.components
    assert (like.weight, other.weight) == (pytest.approx(0.8), pytest.approx(0.2))
    assert like.mean == pytest.approx((0.4, 0.6025), abs=0.01)
    assert 0.01 < math.sqrt(like.variance[1]) < 0.04
    one = Prior.from_runs([recipe(0.605, 1)]).components[0]
    assert one.variance[1] > like.variance[1]
    assert other == Component(other.weight)


def test_every_component_spreads_the_same_mass_over_the_grid(pooled: Prior) -> None:
    grid = make_grid(BUDGET)
    mass = [np.exp(c.log_cell(grid)).sum() / c.weight for c in pooled.components]
    assert mass[0] == pytest.approx(mass[1])
    assert mass[1] == pytest.approx(np.exp(grid.log_cell).sum())


def test_without_finished_runs_there_is_no_prior() -> None:
    with pytest.raises(ValueError, match="finished runs"):
        Prior.from_runs([])
    with pytest.raises(ValueError, match="finished runs"):
        Prior.from_runs([Forecaster(1.0)])
    with pytest.raises(ValueError, match="robust"):
        Prior.from_runs([recipe(0.6, 0)], robust=1.0)


def test_the_digitised_window_that_misled_is_covered_with_a_prior_of_the_recipe(pooled: Prior) -> None:
    from test_forecast_reference import TRAIN

    f = Forecaster(BUDGET, prior=pooled)
    f.observe(0.0, 0.4, samples=16_000)
    for compute, rate in TRAIN[:13]:
        f.observe(compute, rate, samples=16_000)
    p = f.forecast([BUDGET])
    assert p.quantile(0.1)[0] < 0.604
    assert p.quantile(0.9)[0] > 0.609
    assert p.mean[0] == pytest.approx(0.605, abs=0.02)
