"""Point fits behind the forecaster's interface, and the back-test that compares them."""

import math

import numpy as np
import pytest

from controlplane.forecast import METHODS, Forecaster
from controlplane.forecast.backtest import Rival, Scored, Series, run_backtest, summary, truth_at

BUDGET = 1000.0


def law(c: np.ndarray) -> np.ndarray:
    return 0.2 + 0.5 / (1.0 + (200.0 / np.maximum(c, 1e-9)) ** 1.8)


def told(method: str, n: int = 40, until: float = 600.0, scale: float = 1.0) -> Forecaster:
    f = Forecaster(BUDGET * scale, method=method)  # type: ignore[arg-type]
    for c in np.linspace(0.0, until, n):
        f.observe(float(c) * scale, float(law(np.array([c]))[0]), 1e-4)
    return f


@pytest.mark.parametrize("method", ["scalerl-relative", "curve_fit"])
def test_a_noiseless_law_is_recovered(method: str) -> None:
    f = told(method)
    found = f.parameters()
    assert found.A.quantile(0.5) == pytest.approx(0.7, abs=0.01)
    assert found.B.quantile(0.5) == pytest.approx(1.8, abs=0.12)
    assert found.C_mid.quantile(0.5) == pytest.approx(200.0, rel=0.06)
    assert found.R0.quantile(0.5) == pytest.approx(0.2, abs=0.01)
    p = f.forecast([800.0, BUDGET])
    assert p.mean == pytest.approx(law(np.array([800.0, BUDGET])), abs=0.01)
    assert not p.refused


def test_the_paper_protocol_drops_its_first_hours_and_gives_its_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    from controlplane.forecast import protocol

    seen: list[list[float]] = []
    monkeypatch.setattr(protocol, "A_GRID", np.array([0.6, 0.7]))

    def quick(c: list[float], y: list[float], r0: float) -> protocol.Fit:
        seen.append(c)
        return protocol.fit_scalerl(c, y, r0, a_grid=np.array([0.7]), c_mid_grid=np.array([3200.0]))

    monkeypatch.setattr("controlplane.forecast.methods.fit_scalerl", quick)
    p = told("scalerl", scale=16.0).forecast([16_000.0])
    assert min(seen[0]) >= 1500.0
    assert p.quantile(0.975)[0] - p.quantile(0.025)[0] == pytest.approx(0.04, abs=1e-3)
    with pytest.raises(ValueError, match="after its cut"):
        told("scalerl").forecast([BUDGET])


def test_the_last_value_stays_where_it_is_and_a_power_law_has_no_middle() -> None:
    assert told("last_value").forecast([BUDGET]).mean[0] == pytest.approx(law(np.array([600.0]))[0], abs=0.01)
    found = told("power_law").parameters()
    assert math.isnan(found.C_mid.mean)
    assert math.isfinite(found.A.mean)


def test_every_method_answers_or_says_what_is_missing() -> None:
    for method in METHODS:
        empty = Forecaster(BUDGET, method=method)
        if method == "posterior":
            assert empty.forecast([BUDGET]).refused
            continue
        with pytest.raises(ValueError, match="nothing to fit"):
            empty.forecast([BUDGET])
        with pytest.raises(ValueError, match="use the posterior"):
            told(method).advice(target=0.5)
    with pytest.raises(ValueError, match="allowed are posterior"):
        Forecaster(BUDGET, method="magic")  # type: ignore[arg-type]


def curve(name: str, family: str, seed: int, n: int = 80) -> Series:
    c = np.linspace(0.0, BUDGET, n)
    return Series(name, family, c, np.clip(law(c) + 0.01 * np.random.default_rng(seed).normal(size=n), 0, 1))


def test_a_backtest_sees_only_the_window_and_scores_against_what_came() -> None:
    whole = curve("a", "one", 0)
    changed = Series("a", "one", whole.compute, np.where(whole.compute > 500.0, 0.0, whole.rate))
    rivals = (Rival("ours", "posterior", calibrated=True), Rival("last", "last_value"))
    good, bad = (run_backtest([s], rivals, fractions=(0.5,), horizons=(2.0,)) for s in (whole, changed))
    assert [s.middle for s in good] == [s.middle for s in bad]
    assert abs(good[0].error) < 0.03
    assert good[0].in80
    assert bad[0].error > 0.5
    assert not bad[0].in95
    assert bad[0].winkler > 10 * 0.4


def test_targets_beyond_the_end_and_short_windows_are_left_out() -> None:
    found = run_backtest([curve("a", "one", 0)], fractions=(0.01, 0.25, 0.5), horizons=(2.0, 4.0, 10.0))
    assert {(s.fraction, s.horizon) for s in found} == {(0.25, 2.0), (0.25, 4.0), (0.5, 2.0)}


def test_families_weigh_the_same() -> None:
    def scored(family: str, error: float) -> Scored:
        return Scored(family, "x", "m", 0.5, 2.0, 10, 0.5, 0.5 + error, 0.4, 0.6, 0.3, 0.7, False)

    s = summary([scored("big", 0.1)] * 9 + [scored("small", -0.3)])
    assert s.mae == pytest.approx(0.2)
    assert s.bias == pytest.approx(-0.1)
    assert (s.forecasts, s.families) == (10, 2)
    with pytest.raises(ValueError, match="no forecast"):
        summary([])


def test_the_truth_is_the_mean_around_the_target_and_at_least_three_points() -> None:
    c = np.arange(1.0, 101.0)
    series = Series("a", "one", c, c / 100.0)
    assert truth_at(series, 50.0)[0] == pytest.approx(0.5)
    assert truth_at(series, 100.0)[0] == pytest.approx(np.mean(c[c >= 93]) / 100)
    assert truth_at(series, 10.0)[0] == pytest.approx(0.1)
