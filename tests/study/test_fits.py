"""Fits of one curve, and the rule that compares two."""
# ruff: noqa: SIM300 - A and B are names here, not constants

from dataclasses import replace

import numpy as np
import pytest

from controlplane.study.compare import Arm, Run, compare, equal, final_of, probability_equal
from controlplane.study.fits import PAPER, Curve, Draws, FittedCurve, linear
from controlplane.study.repeat import repeats
from tests.study.quick import QUICK

END = 75.0


def law(A: float, B: float, C_mid: float, noise: float = 0.0, seed: int = 0, r0: float = 0.12, n: int = 15) -> Curve:
    c = np.linspace(END / n, END, n)
    y = r0 + (A - r0) / (1 + (C_mid / c) ** B) + np.random.default_rng(seed).normal(0, noise, n)
    return Curve(tuple(c), tuple(np.clip(y, 0, 1)), r0, 1024)


def run(curve: Curve, seed: int = 1) -> Run:
    return Run(seed, FittedCurve(curve, END, QUICK), curve.pass_rate[-1], 150, 19_200, END, 2.0)


def arm(name: str, *curves: Curve) -> Arm:
    return Arm(name, name, tuple(run(curve, seed) for seed, curve in enumerate(curves, 1)))


@pytest.mark.parametrize(("A", "B", "C_mid"), [(0.93, 1.9, 20.0), (0.9, 1.2, 25.0)])
def test_the_protocol_recovers_a_curve_without_noise(A: float, B: float, C_mid: float) -> None:
    fit = FittedCurve(law(A, B, C_mid), END).free
    assert fit.A == pytest.approx(A, abs=0.006)
    assert fit.B == pytest.approx(B, rel=0.05)
    assert fit.C_mid == pytest.approx(C_mid, rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_the_intervals_of_the_posterior_hold_the_truth_of_a_noisy_curve(seed: int) -> None:
    draws = FittedCurve(law(0.93, 1.9, 20.0, noise=0.008, seed=seed), END).draws
    for name, truth in (("A", 0.93), ("B", 1.9), ("C_mid", 20.0)):
        found = draws.interval(name)
        assert found.low < truth < found.high


def test_at_a_given_asymptote_B_is_known_better_than_free() -> None:
    draws = FittedCurve(law(0.93, 1.9, 20.0, noise=0.008), END).draws
    free, fixed = draws.interval("B"), draws.at(0.93, "B")
    assert fixed is not None
    assert fixed.low < 1.9 < fixed.high
    assert fixed.high - fixed.low < 0.8 * (free.high - free.low)


def test_a_higher_asymptote_is_traded_for_a_lower_B() -> None:
    fitted = FittedCurve(law(0.9, 1.9, 20.0), END, QUICK)
    assert fitted.at(0.95).B < fitted.at(0.9).B < fitted.at(0.87).B


def test_nothing_is_said_about_B_at_an_asymptote_that_the_posterior_excludes() -> None:
    draws = Draws(np.full(1000, 0.6), np.full(1000, 2.0), np.full(1000, 10.0))
    assert draws.at(0.9, "B") is None
    assert draws.at(0.6, "B") is not None


def test_too_few_evaluations_after_the_cut_are_refused_in_a_sentence() -> None:
    fitted = FittedCurve(law(0.9, 2.0, 20.0), END, replace(QUICK, cut=0.85))
    with pytest.raises(ValueError, match=r"3 evaluations at or after 63\.75; a fit needs 4"):
        _ = fitted.free


def test_a_run_that_never_learns_has_no_curve_to_fit() -> None:
    flat = Curve((5.0, 10.0, 15.0, 20.0, 25.0), (0.12, 0.1, 0.0, 0.0, 0.0), 0.12, 1024)
    with pytest.raises(ValueError, match=r"never rose above its start of 0\.120"):
        _ = FittedCurve(flat, END, QUICK).free


def test_a_cut_drops_the_early_points_and_only_those() -> None:
    true = law(0.9, 2.0, 20.0)
    bent = Curve(true.compute, (0.5, *true.pass_rate[1:]), true.r0, true.samples)
    kept = FittedCurve(bent, END, replace(QUICK, cut=0.1)).free
    assert kept.B == pytest.approx(2.0, rel=0.05)
    assert FittedCurve(bent, END, QUICK).free.B < 1.7


def test_a_bound_of_the_grid_is_marked() -> None:
    unfinished = law(0.95, 1.5, 400.0)  # half of the gain lies far beyond the end
    assert "A" in FittedCurve(unfinished, END, QUICK).edges or "C_mid" in FittedCurve(unfinished, END, QUICK).edges
    assert FittedCurve(law(0.9, 2.0, 20.0), END, QUICK).edges == ()


def test_the_paper_grid_is_the_paper_s() -> None:
    c = np.linspace(257, 8000, 30)
    y = 0.4 + 0.21 / (1 + (2542 / c) ** 1.92)
    curve = Curve(tuple(c), tuple(y), 0.4, 16_000)
    fit = FittedCurve(curve, 8000.0, PAPER).free
    assert (round(fit.A, 3), round(fit.C_mid)) in ((0.61, 2518), (0.61, 2921), (0.605, 2518), (0.615, 2518))
    assert fit.B == pytest.approx(1.92, rel=0.06)


def test_the_linear_form_is_a_straight_line_of_slope_B() -> None:
    fitted = FittedCurve(law(0.9, 1.8, 20.0), END, QUICK)
    c, f = linear(fitted.curve, fitted.at(0.9))
    slope = np.polyfit(np.log(c), np.log(f), 1)[0]
    assert slope == pytest.approx(1.8, abs=0.03)


def test_points_beyond_the_asymptote_have_no_linear_form() -> None:
    fitted = FittedCurve(law(0.9, 1.8, 20.0), END, QUICK)
    low = fitted.at(0.9)._replace(A=0.8)
    c, f = linear(fitted.curve, low)
    assert 0 < len(c) < len(fitted.curve.compute)
    assert np.isfinite(f).all()


def test_asymptotes_at_the_margin_are_equal_and_beyond_it_are_not() -> None:
    assert equal(0.61, 0.59)
    assert equal(0.6, 0.62)
    assert not equal(0.61, 0.585)
    assert equal(0.61, 0.58, margin=0.03)


def test_B_is_compared_at_the_mean_asymptote_of_the_equals() -> None:
    found = compare(
        [arm("ref", law(0.90, 2.0, 20.0)), arm("same", law(0.91, 1.5, 20.0)), arm("worse", law(0.7, 3.0, 20.0))], "ref"
    )
    by_name = {row.name: row for row in found.rows}
    assert found.common_A == pytest.approx(0.905, abs=0.011)
    assert [row.name for row in found.rows] == ["ref", "same", "worse"]
    assert [by_name[n].verdict for n in ("ref", "same", "worse")] == ["reference", "equal", "lower"]
    assert by_name["worse"].B_common is None
    assert by_name["same"].B_common == pytest.approx(
        FittedCurve(law(0.91, 1.5, 20.0), END, QUICK).at(found.common_A or 0).B
    )


def test_without_a_fit_of_the_reference_nothing_is_called_equal() -> None:
    short = Curve((5.0, 10.0), (0.2, 0.3), 0.12, 1024)
    found = compare([arm("ref", short), arm("other", law(0.9, 2.0, 20.0))], "ref")
    by_name = {row.name: row for row in found.rows}
    assert found.common_A is None
    assert by_name["other"].verdict == "unknown"
    assert by_name["other"].A is not None
    assert "a fit needs 4" in by_name["ref"].problems[0]
    assert by_name["ref"].final == 0.3


def test_probability_of_equal_asymptotes_counts_both_uncertainties() -> None:
    narrow, wide = np.random.default_rng(0).normal(0.9, 0.002, 4000), np.random.default_rng(1).normal(0.9, 0.1, 4000)
    assert probability_equal(narrow, narrow) > 0.99
    assert probability_equal(narrow, narrow + 0.05) == 0.0
    assert 0.1 < probability_equal(wide, wide) < 0.15


def test_the_error_of_the_end_is_that_of_the_seeds_but_never_below_that_of_the_samples() -> None:
    alike = [run(law(0.9, 2.0, 20.0)) for _ in range(2)]
    mean, error = final_of(alike)
    assert error == pytest.approx((mean * (1 - mean) / 1024 / 2) ** 0.5)
    apart = [run(law(0.9, 2.0, 20.0)), run(law(0.7, 2.0, 20.0))]
    assert final_of(apart)[1] == pytest.approx(abs(apart[0].final - apart[1].final) / 2)
    assert final_of(alike[:1])[1] == pytest.approx((mean * (1 - mean) / 1024) ** 0.5)


def test_several_seeds_are_averaged_and_their_posteriors_mixed() -> None:
    found = compare([arm("ref", law(0.88, 2.0, 20.0), law(0.92, 2.0, 20.0))], "ref")
    (row,) = found.rows
    assert row.A == pytest.approx(0.90, abs=0.006)
    assert row.A_interval is not None
    one = FittedCurve(law(0.88, 2.0, 20.0), END).draws.interval("A")
    assert row.A_interval.high > one.high


def test_the_margin_is_the_largest_deviation_of_a_seed_from_the_mean() -> None:
    found = repeats([run(law(a, 2.0, 20.0), seed) for seed, a in enumerate((0.90, 0.90, 0.93), 1)])
    assert found.A.mean == pytest.approx(0.91, abs=0.006)
    assert found.A.deviation == pytest.approx(0.02, abs=0.006)
    assert found.rows[2].common.A == pytest.approx(found.A.mean)


def test_one_run_has_no_spread() -> None:
    with pytest.raises(ValueError, match="1 finished runs; a spread needs at least 2"):
        repeats([run(law(0.9, 2.0, 20.0))])
