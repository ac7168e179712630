"""What more compute is worth: doublings, stages, verdict."""

import numpy as np
import pytest

from controlplane.forecast import Forecaster

BUDGET = 100.0


def told(until: float, a: float = 0.7, mid: float = 20.0, budget: float = BUDGET) -> Forecaster:
    f, rng = Forecaster(budget), np.random.default_rng(1)
    for c in np.linspace(until / 40, until, 40):
        f.observe(float(c), float(0.2 + (a - 0.2) / (1 + (mid / c) ** 1.8) + 0.003 * rng.normal()), 1e-5)
    return f


def test_doublings_start_now_reach_the_budget_and_bring_less_and_less() -> None:
    worth = told(30.0).economics()
    assert [d.compute for d in worth.doublings] == [30.0, 60.0, 120.0]
    gains = [d.gain.quantile(0.5) for d in worth.doublings]
    assert gains == sorted(gains, reverse=True)
    clean = [0.5 / (1 + (20 / c) ** 1.8) for c in (30.0, 60.0)]
    assert gains[1] == pytest.approx(clean[1] - clean[0], abs=0.03)
    assert worth.doublings[1].roi.quantile(0.5) == pytest.approx(gains[1] / 30.0)
    assert worth.doublings[1].ratio == pytest.approx((0.2 + clean[1]) / (0.2 + clean[0]), abs=0.05)


def test_stages_come_in_order_with_their_hours() -> None:
    worth = told(40.0).economics(units_per_hour=2.0, stages=(0.3, 0.6, 0.65, 0.9))
    reached, next_one, later, never = worth.stages
    assert reached.reached
    assert not next_one.reached
    assert next_one.probability > later.probability > never.probability
    assert next_one.hours is not None
    middle = next_one.compute.quantile(0.5)
    assert next_one.hours.quantile(0.5) == pytest.approx((middle - 40.0) / 2.0)
    assert middle == pytest.approx(20 * (0.4 / 0.1) ** (1 / 1.8), rel=0.1)
    assert np.isinf(never.compute.quantile(0.5))
    assert told(40.0).economics().stages[0].hours is None


def test_the_verdict_follows_what_is_left_to_gain() -> None:
    assert told(20.0).economics().verdict == "go on"
    done = told(100.0, mid=2.0, budget=110.0).economics(price_per_unit=3.0)
    assert done.verdict == "stop"
    assert done.cost_left == pytest.approx(30.0)
    assert "less than the 0.01 asked for" in done.sentence
    assert told(100.0).economics().sentence == "Stop: the budget is spent."
    assert Forecaster(BUDGET).economics().verdict == "not yet known"


def test_with_a_target_the_verdict_is_that_of_the_advice() -> None:
    f = told(40.0)
    for target in (0.6, 0.95):
        assert f.economics(target=target).sentence == f.advice(target=target).sentence


def test_what_makes_no_sense_is_refused() -> None:
    f = told(40.0)
    with pytest.raises(ValueError, match="units per hour"):
        f.economics(units_per_hour=0.0)
    with pytest.raises(ValueError, match=r"stage 1\.2"):
        f.economics(stages=(1.2,))
