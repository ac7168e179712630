"""What a user of the forecaster relies on: determinism, honest intervals, refusals, change-points, advice."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.forecast import Forecast, Forecaster

BUDGET = 100.0


def law(c: np.ndarray, r0: float = 0.2, a: float = 0.7, b: float = 1.8, mid: float = 20.0) -> np.ndarray:
    return r0 + (a - r0) / (1.0 + (mid / c) ** b)


def run(f: Forecaster, computes: np.ndarray, rates: np.ndarray, variance: float | None = 1e-4) -> Forecaster:
    for c, y in zip(computes, rates, strict=True):
        f.observe(float(c), float(y), variance)
    return f


def noisy(n: int, until: float, seed: int = 0, sd: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    c = np.linspace(until / n, until, n)
    return c, np.clip(law(c) + sd * np.random.default_rng(seed).normal(size=n), 0.0, 1.0)


def streamed(variance: float | None, n: int, change: float | None) -> tuple[Forecaster, Forecaster]:
    """The same points, once with a forecast after each and once with a single forecast at the end."""
    step, batch = Forecaster(BUDGET, grid=(6, 8)), Forecaster(BUDGET, grid=(6, 8))
    c, y = noisy(n, 60.0)
    if change is not None:
        batch.intervene(change)
    for ci, yi in zip(c, y, strict=True):
        step.observe(float(ci), float(yi), variance)
        step.forecast([BUDGET])
    if change is not None:
        step.intervene(change)
    return step, run(batch, c, y, variance)


@pytest.mark.parametrize("change", [None, 25.0])
@pytest.mark.parametrize(("variance", "n"), [(1e-4, 30), (None, 30), (1e-4, 130)])
def test_streaming_equals_a_batch_refit_bit_for_bit(variance: float | None, n: int, change: float | None) -> None:
    step, batch = streamed(variance, n, change)
    assert np.array_equal(step.forecast([70.0, BUDGET]).draws, batch.forecast([70.0, BUDGET]).draws)
    for left, right in zip(step.parameters(), batch.parameters(), strict=True):
        assert np.array_equal(left.values, right.values)


def test_known_variances_are_streamed_without_a_refit(monkeypatch: pytest.MonkeyPatch) -> None:
    from controlplane.forecast.filter import Filter

    calls: list[float] = []
    absorb = Filter.absorb

    def counted(self: Filter, u: float, y: float, v: float) -> None:
        calls.append(u)
        absorb(self, u, y, v)

    monkeypatch.setattr(Filter, "absorb", counted)
    streamed(1e-4, 20, None)
    assert len(calls) == 20


def test_two_forecasters_are_bit_identical_and_asking_changes_nothing() -> None:
    c, y = noisy(20, 40.0)
    one, two = run(Forecaster(BUDGET), c, y, None), run(Forecaster(BUDGET), c, y, None)
    first = one.forecast([BUDGET]).draws
    one.parameters()
    one.advice(target=0.6)
    assert np.array_equal(first, two.forecast([BUDGET]).draws)
    assert np.array_equal(first, one.forecast([BUDGET]).draws)


def test_intervals_cover_simulated_curves_and_beat_the_last_value() -> None:
    rng = np.random.default_rng(7)
    error, last_error, in80, in95, in_calibrated = [], [], [], [], []
    for _ in range(60):
        r0 = rng.uniform(0.02, 0.4)
        a, b = rng.uniform(r0 + 0.1, 0.95), rng.lognormal(math.log(1.6), 0.35)
        mid = BUDGET * math.exp(rng.uniform(math.log(0.03), 0.0))
        c = np.arange(1.0, 26.0)
        clean = law(c, r0, a, b, mid)
        y = rng.binomial(2048, clean) / 2048
        f = Forecaster(BUDGET)
        for ci, yi in zip(c, y, strict=True):
            f.observe(ci, yi, max(yi * (1 - yi), 0.02) / 2048)
        truth = float(law(np.array([BUDGET]), r0, a, b, mid)[0])
        p = f.forecast([BUDGET])
        error.append(abs(p.quantile(0.5)[0] - truth))
        last_error.append(abs(float(y[-3:].mean()) - truth))
        in80.append(p.quantile(0.1)[0] <= truth <= p.quantile(0.9)[0])
        in95.append(p.quantile(0.025)[0] <= truth <= p.quantile(0.975)[0])
        low, high = p.interval(0.8)
        in_calibrated.append(low[0] <= truth <= high[0])
    assert np.mean(error) < 0.06
    assert np.mean(error) < 0.5 * np.mean(last_error)
    assert np.mean(in80) >= 0.8
    assert np.mean(in95) >= 0.93
    assert np.mean(in_calibrated) >= np.mean(in80)


def test_fewer_than_eight_evaluations_are_refused() -> None:
    c, y = noisy(8, 90.0)
    f = run(Forecaster(BUDGET), c[:7], y[:7])
    assert "7 of the 8" in str(f.forecast([BUDGET]).reason)
    f.observe(c[7], y[7], 1e-4)
    assert not f.forecast([BUDGET]).refused
    assert f.forecast([BUDGET]).reason is None
    assert Forecaster(BUDGET).forecast([BUDGET]).refused


def test_a_run_before_its_bend_is_refused_because_the_asymptote_is_prior() -> None:
    c = np.linspace(0.5, 5.0, 20)
    p = run(Forecaster(BUDGET), c, law(c, mid=60.0))
    near, far = p.forecast([6.0]), p.forecast([11.0])
    assert not near.refused
    assert far.refused
    assert "asymptote A is hardly better known" in str(far.reason)


def test_a_wide_horizon_is_refused_and_a_near_one_is_named_by_its_width() -> None:
    from controlplane.forecast.calibration import MAX_SD_A, refusal

    assert refusal(8, 0.5, MAX_SD_A, 10.0, True) is None
    assert "wide" in str(refusal(8, 0.51, 0.0, 1.0, True))
    assert "asymptote" in str(refusal(8, 0.1, MAX_SD_A + 0.001, 2.1, True))
    assert refusal(8, 0.1, MAX_SD_A + 0.001, 2.0, True) is None  # so near, the forecast does not rest on the asymptote
    assert pytest.approx(0.165, abs=0.001) == MAX_SD_A


def test_a_falling_curve_is_refused_because_no_law_fits_it() -> None:
    c = np.linspace(1.0, 90.0, 40)
    p = run(Forecaster(BUDGET), c, law(c, r0=0.9, a=0.1), 1e-6).forecast([BUDGET])
    assert p.refused
    assert "Almost no curve" in str(p.reason)


def test_a_run_that_has_collapsed_is_refused_until_a_known_change_explains_it() -> None:
    c, y = noisy(40, 80.0)
    y = np.where(c > 64.0, 0.1, y)
    f = run(Forecaster(BUDGET), c, y, None)
    assert "has fallen from 0.6" in str(f.forecast([BUDGET]).reason)
    f.intervene(64.0)
    assert "fallen" not in str(f.forecast([BUDGET]).reason)
    steady = run(Forecaster(BUDGET), *noisy(40, 80.0, sd=0.03), None)
    assert not steady.forecast([BUDGET]).refused


@pytest.mark.parametrize("jump", [0.05, -0.10])
def test_a_jump_after_an_intervention_is_recovered(jump: float) -> None:
    c, y = noisy(40, 40.0, seed=3)
    y = np.clip(y + np.where(c > 30.0, jump, 0.0), 0.0, 1.0)
    truth = float(law(np.array([BUDGET]))[0]) + jump
    blind = run(Forecaster(BUDGET), c, y).forecast([BUDGET])
    f = Forecaster(BUDGET)
    f.intervene(30.0)
    told = run(f, c, y).forecast([BUDGET])
    assert f.changes[0].compute == 30.0
    assert f.changes[0].probability > 0.95
    assert told.quantile(0.1)[0] < truth < told.quantile(0.9)[0]
    assert abs(told.mean[0] - truth) < abs(blind.mean[0] - truth)


def test_an_intervention_without_effect_is_weighed_down_and_costs_little() -> None:
    c, y = noisy(40, 40.0, seed=4)
    plain = run(Forecaster(BUDGET), c, y).forecast([BUDGET])
    f = Forecaster(BUDGET)
    f.intervene(30.0)
    told = run(f, c, y).forecast([BUDGET])
    assert f.changes[0].probability < 0.5
    assert told.mean[0] == pytest.approx(plain.mean[0], abs=0.02)


def test_an_intervention_not_yet_observed_only_widens_the_forecast() -> None:
    c, y = noisy(40, 60.0)
    f = run(Forecaster(BUDGET), c, y)
    before = f.forecast([BUDGET])
    f.intervene(60.0)
    after = f.forecast([BUDGET])
    assert f.changes[0].probability == pytest.approx(0.5)
    assert after.mean[0] == pytest.approx(before.mean[0], abs=0.01)
    assert after.sd[0] > before.sd[0]


def test_only_the_latest_three_interventions_are_carried_and_repeats_count_once() -> None:
    f = run(Forecaster(BUDGET, grid=(4, 6)), *noisy(20, 60.0))
    for c in (40.0, 10.0, 30.0, 20.0, 30.0):
        f.intervene(c)
    assert [change.compute for change in f.changes] == [20.0, 30.0, 40.0]


def test_parameters_recover_a_clean_law_and_are_spread_inside_grid_cells() -> None:
    c, y = noisy(60, 100.0, sd=0.003)
    p = run(Forecaster(BUDGET), c, y, 0.003**2).parameters()
    for found, truth in ((p.A, 0.7), (p.B, 1.8), (p.C_mid, 20.0), (p.R0, 0.2)):
        assert found.quantile(0.025) < truth < found.quantile(0.975)
        assert found.sd > 0.0
    assert len(np.unique(p.B.values)) > 1000
    assert len(np.unique(p.C_mid.values)) > 1000


def test_a_baseline_at_compute_zero_is_a_point_like_any_other() -> None:
    c = np.arange(0.0, 61.0, 2.0)
    y = law(np.maximum(c, 1e-9))
    f = run(Forecaster(BUDGET), c, y)
    assert len(f.points) == 31
    assert f.forecast([BUDGET]).mean[0] == pytest.approx(float(law(np.array([BUDGET]))[0]), abs=0.03)
    assert f.advice(target=0.65).compute_to_target.quantile(0.5) >= 60.0
    first = Forecaster(BUDGET)
    first.observe(0.0, 0.2)
    assert first.forecast([0.0, BUDGET]).refused


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (lambda f: f.observe(math.nan, 0.5), "compute nan"),
        (lambda f: f.observe(math.inf, 0.5), "compute inf"),
        (lambda f: f.observe(-1.0, 0.5), "compute -1.0"),
        (lambda f: f.observe(1.0, 0.5), "order of compute"),
        (lambda f: f.observe(99.0, 1.01), "pass rate 1.01"),
        (lambda f: f.observe(99.0, math.nan), "pass rate nan"),
        (lambda f: f.observe(99.0, 0.5, 0.0), "variance"),
        (lambda f: f.observe(99.0, 0.5, math.nan), "variance"),
        (lambda f: f.observe(99.0, 0.5, samples=-1), "samples"),
        (lambda f: f.intervene(math.nan), "intervene"),
        (lambda f: f.forecast([10.0]), "before the last observed"),
        (lambda f: f.forecast([math.nan]), "compute nan"),
        (lambda f: f.forecast([]), "no compute"),
        (lambda f: f.forecast([BUDGET]).quantile(1.5), "quantile"),
        (lambda f: f.forecast([BUDGET]).interval(0.7), "calibration"),
        (lambda f: f.advice(target=1.5), "target"),
        (lambda f: f.advice(target=0.5, price_per_unit=-2), "price"),
    ],
)
def test_bad_input_raises_one_sentence_and_changes_nothing(bad: Callable[[Forecaster], object], says: str) -> None:
    f = run(Forecaster(BUDGET, grid=(4, 6)), *noisy(10, 60.0))
    points, draws = f.points, f.forecast([BUDGET]).draws
    with pytest.raises(ValueError, match=says):
        bad(f)
    assert f.points == points
    assert np.array_equal(f.forecast([BUDGET]).draws, draws)


def test_calibrated_interval_stretches_each_side_by_the_factor_of_its_horizon() -> None:
    draws = np.tile(0.3 + 0.5 * np.linspace(0.0, 1.0, 1001) ** 2, (5, 1))
    compute = np.array([1.0, 2.0, 4.0, 10.0, 100.0])
    p = Forecast(compute, draws, draws.mean(axis=1), draws.std(axis=1), False, None, stretch=compute)
    low, high = p.interval(0.8)
    k = np.array([1.18, 1.18, 1.05, 1.08, 1.08])
    assert low == pytest.approx(0.425 - k * 0.12)
    assert high == pytest.approx(0.425 + k * 0.28)
    assert p.interval(0.95)[1] == pytest.approx([1.0, 1.0, 1.0, 0.425 + 1.48 * 0.28, 0.425 + 1.48 * 0.28])


def test_a_budget_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="budget"):
        Forecaster(0.0)


def test_advice_says_go_on_stop_or_not_yet_known() -> None:
    f = run(Forecaster(BUDGET), *noisy(40, 40.0))
    likely = f.advice(target=0.60, price_per_unit=2.0)
    assert likely.verdict == "go on"
    assert likely.probability > 0.5
    assert likely.cost_to_budget == pytest.approx(120.0)
    assert likely.gain_per_price is not None
    assert likely.gain_per_price.mean == pytest.approx(likely.gain_per_unit.mean / 2.0)
    assert 40.0 <= likely.compute_to_target.quantile(0.5) <= BUDGET
    impossible = f.advice(target=0.95)
    assert impossible.verdict == "stop"
    assert impossible.unreachable > 0.95
    assert impossible.compute_to_target.quantile(0.5) == math.inf
    reached = f.advice(target=0.3)
    assert reached.verdict == "stop"
    assert "reached" in reached.sentence
    assert reached.compute_to_target.quantile(0.9) == 40.0
    early = run(Forecaster(BUDGET), *noisy(5, 5.0)).advice(target=0.6)
    assert early.verdict == "not yet known"
    assert "5 of the 8" in early.sentence
    assert Forecaster(BUDGET).advice(target=0.6).verdict == "not yet known"


def test_gain_per_unit_is_the_slope_of_the_law() -> None:
    c, y = noisy(60, 60.0, sd=0.002)
    advice = run(Forecaster(BUDGET), c, y, 0.002**2).advice(target=0.6)
    slope = float((law(np.array([60.01])) - law(np.array([59.99])))[0] / 0.02)
    assert advice.gain_per_unit.quantile(0.5) == pytest.approx(slope, rel=0.2)
    assert advice.gain_left.quantile(0.5) == pytest.approx(1.0 - 1.0 / (1.0 + (20 / 60) ** 1.8), abs=0.05)
    assert advice.gain_per_doubling.quantile(0.5) == pytest.approx(
        float(law(np.array([120.0]))[0] - law(np.array([60.0]))[0]), abs=0.02
    )


@pytest.mark.parametrize("drift", [0.0, -0.06])
def test_compute_to_target_agrees_with_the_probability_at_the_budget(drift: float) -> None:
    c, y = noisy(60, 60.0, sd=0.002)
    f = run(Forecaster(BUDGET), c, y + drift * (c > 55.0), 4e-6)
    for target in (0.65, 0.67, 0.69):
        advice = f.advice(target=target)
        by_budget = float((advice.compute_to_target.values <= BUDGET).mean())
        assert by_budget == pytest.approx(advice.probability, abs=0.01)


@settings(max_examples=25, deadline=None)
@given(
    rates=st.lists(st.floats(0.0, 1.0), min_size=0, max_size=14),
    samples=st.none() | st.integers(1, 5000),
    change=st.none() | st.floats(0.0, 150.0),
)
def test_quantiles_are_monotone_pass_rates_whatever_the_points(
    rates: list[float], samples: int | None, change: float | None
) -> None:
    f = Forecaster(BUDGET, grid=(5, 7), draws=512)
    for i, rate in enumerate(rates):
        f.observe(4.0 * i, rate, samples=samples)
    if change is not None:
        f.intervene(change)
    p = f.forecast([60.0, BUDGET, 1000.0])
    quantiles = np.array([p.quantile(q) for q in (0.0, 0.025, 0.1, 0.5, 0.9, 0.975, 1.0)])
    assert np.all(np.diff(quantiles, axis=0) >= 0.0)
    assert np.all((quantiles >= 0.0) & (quantiles <= 1.0))
    low, high = p.interval(0.95)
    inner_low, inner_high = p.interval(0.8)
    assert np.all((low <= inner_low) & (inner_low <= inner_high) & (inner_high <= high))
    assert p.refused == (p.reason is not None)
    assert np.all(np.isfinite(p.mean))
    advice = f.advice(target=0.5)
    assert 0.0 <= advice.probability <= 1.0
    assert not np.isnan(advice.compute_to_target.values).any()


def test_three_points_are_a_bound_and_not_a_forecast() -> None:
    f = run(Forecaster(BUDGET), *noisy(3, 30.0), None)
    p = f.forecast([BUDGET])
    assert p.refused
    assert "3 of the 8" in str(p.reason)
    assert np.all((p.draws >= 0.0) & (p.draws <= 1.0))


def test_a_hundred_thousand_points_give_what_a_hundred_good_ones_give() -> None:
    rng = np.random.default_rng(3)
    c = np.linspace(1e-3, 60.0, 100_000)
    many, few = Forecaster(BUDGET), Forecaster(BUDGET)
    for ci, yi in zip(c, np.clip(law(c) + 0.1 * rng.normal(size=len(c)), 0.0, 1.0), strict=True):
        many.observe(float(ci), float(yi), 0.01)
    for ci in np.linspace(0.3, 60.0, 98):
        few.observe(float(ci), float(law(np.array([ci]))[0]), 0.01 / 1024)
    one, other = many.forecast([BUDGET]), few.forecast([BUDGET])
    assert one.mean[0] == pytest.approx(other.mean[0], abs=0.01)
    assert one.sd[0] < 0.01


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_of_exactly_0_or_1_do_not_look_certain_when_the_samples_are_known(rate: float) -> None:
    f = Forecaster(BUDGET)
    for c in np.linspace(0.0, 40.0, 12):
        f.observe(float(c), rate, samples=64)
    p = f.forecast([BUDGET])
    low, high = p.interval(0.95)
    assert high[0] - low[0] > 0.02
    assert low[0] - 0.02 <= rate <= high[0] + 0.02


def test_repeated_compute_counts_as_more_of_the_same_evaluation() -> None:
    once, twice = Forecaster(BUDGET), Forecaster(BUDGET)
    for c, y in zip(*noisy(20, 60.0), strict=True):
        once.observe(float(c), float(y), 0.5e-4)
        for _ in range(2):
            twice.observe(float(c), float(y), 1e-4)
    assert twice.forecast([BUDGET]).mean[0] == pytest.approx(once.forecast([BUDGET]).mean[0], abs=0.01)


def test_where_the_posterior_is_narrow_it_is_looked_at_more_closely() -> None:
    c, y = noisy(50, 60.0, seed=5)
    fine = run(Forecaster(BUDGET, grid=(96, 192)), c, y)
    usual = run(Forecaster(BUDGET), c, y)
    for q in (0.1, 0.5, 0.9):
        assert usual.parameters().A.quantile(q) == pytest.approx(fine.parameters().A.quantile(q), abs=0.01)
        assert usual.forecast([BUDGET]).quantile(q)[0] == pytest.approx(
            fine.forecast([BUDGET]).quantile(q)[0], abs=0.005
        )
    nodes = np.unique(usual._posterior_draws().b)
    assert np.diff(np.log(nodes)).min() < 0.6 * usual._grid.step_b


def test_a_fall_counts_only_beyond_its_noise_and_against_what_was_gained() -> None:
    from controlplane.forecast.calibration import fallen

    rates = np.array([0.1, 0.3, 0.5, 0.6, 0.6, 0.6, 0.4, 0.4, 0.4])
    sure, unsure = np.full(9, 1e-4), np.full(9, 0.01)
    assert fallen(rates, sure) == pytest.approx((0.6, 0.4))
    assert fallen(rates, unsure) is None  # 4 standard errors of a mean of 3 are 0.23
    assert fallen(np.where(rates == 0.4, 0.56, rates), sure) is None  # less than 0.05
    gained_much = np.array([0.0, 0.0, 0.0, 0.9, 0.9, 0.9, 0.65, 0.65, 0.65])
    assert fallen(gained_much, sure) is None  # less than 35 % of 0.9
    assert fallen(rates[:5], sure) is None
