"""The forecaster and the comparison fits against published numbers: the ScaleRL curve of Fig. 2 and a hand-checked cell.

The points are digitised from the figure and rounded to three decimals; references computed from four decimals are
therefore held to the tolerance that the rounding explains, and the values of the rounded table itself are pinned.
"""

import math

import numpy as np
import pytest

from controlplane.forecast import Forecaster
from controlplane.forecast.filter import Filter
from controlplane.forecast.grid import BETA_MEAN, BETA_VAR, Grid, make_grid
from controlplane.forecast.posterior import Posterior, posterior
from controlplane.forecast.prior import Component
from controlplane.forecast.protocol import fit_scalerl

TRAIN = (
    (1025, 0.433), (1286, 0.446), (1543, 0.458), (1800, 0.472), (2064, 0.479), (2315, 0.485), (2575, 0.504),
    (2833, 0.506), (3089, 0.526), (3347, 0.533), (3588, 0.548), (3854, 0.551), (4122, 0.554), (4892, 0.566),
    (5153, 0.566), (5417, 0.571), (5694, 0.572), (6183, 0.576), (6443, 0.580), (6699, 0.583), (7196, 0.583),
    (7713, 0.580),
)  # fmt: skip
EXTENDED = (
    (9539, 0.594), (10027, 0.596), (10269, 0.593), (10818, 0.593), (11055, 0.600), (11773, 0.599), (12109, 0.599),
    (12618, 0.604), (13149, 0.604), (15674, 0.609),
)  # fmt: skip
NOISE_VAR = 0.0045**2
BUDGET = 16_000.0


def _one_cell(b: float, mid: float, kappa: float, phi: float) -> Grid:
    one = np.ones(1)
    return Grid(b * one, math.log(mid) * one, 0 * one, 0.1, 0.1, kappa * one, phi * one, 0 * one, (1, 1))


def _mean(model: Posterior) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means of (R0, A) in every cell of the model without change-points."""
    a = model.white[1] / model.chol[1, 1]
    return (model.white[0] - model.chol[1, 0] * a) / model.chol[0, 0], a


def _fig2(points: int = len(TRAIN), *, samples: float | None = None) -> Forecaster:
    f = Forecaster(BUDGET, grid=(24, 48))
    for compute, rate in TRAIN[:points]:
        f.observe(compute, rate, None if samples else NOISE_VAR, samples=samples)
    return f


def test_one_cell_follows_the_hand_computed_recursion() -> None:
    state = Filter(_one_cell(2.0, 20.0, 0.02, 1.0))
    expected = (
        (0.0, 0.0, (0.0, 0.0)),
        (7.34930e-5, 0.2204790, (0.3674650, 0.3674650)),
        (7.78148e-5, 0.3990804, (0.2371524, 0.7040414)),
    )
    for (compute, rate), (level_var, level_y, level_x) in zip(
        ((10, 0.2), (20, 0.3), (40, 0.45)), expected, strict=True
    ):
        state.absorb(math.log(compute), rate, 1e-4)
        assert state.level_var[0] == pytest.approx(level_var, rel=1e-5)
        assert state.level_y[0] == pytest.approx(level_y, abs=1e-7)
        assert state.level_x[:, 0, 0] == pytest.approx(level_x, abs=1e-7)
    info, info_y = state.information()
    assert info[0, 0, 0, 0] == pytest.approx(7124.892, abs=1e-3)
    assert info[1, 0, 0, 0] == pytest.approx(2101.978, abs=1e-3)
    assert info[1, 1, 0, 0] == pytest.approx(1477.729, abs=1e-3)
    assert info_y[:, 0, 0] == pytest.approx((1912.3325, 1017.8500), abs=1e-4)
    assert state.quad[0] == pytest.approx(755.4341, abs=1e-4)
    assert state.log_det[0] == pytest.approx(-24.797513, abs=1e-6)

    model = posterior(state, (0, 1), Component(1.0))
    r0, a = _mean(model)
    assert (r0[0, 0], a[0, 0]) == pytest.approx((0.1123624, 0.5299044), abs=1e-7)
    t = model.chol[:, :, 0, 0]
    cov = np.linalg.inv(t @ t.T)
    assert cov == pytest.approx(np.array([[2.4024e-4, -3.3985e-4], [-3.3985e-4, 1.15376e-3]]), rel=1e-4)
    assert model.log_evidence == pytest.approx(5.436683, abs=1e-6)

    s = 1.0 / (1.0 + (20.0 / 80.0) ** 2)
    x = np.array([1.0 - s, s]) - state.level_x[:, 0, 0]
    mean = state.level_y[0] + x @ np.array([r0[0, 0], a[0, 0]])
    var = x @ cov @ x + state.level_var[0] + 0.02**2 * math.log(2.0)
    assert (mean, math.sqrt(var)) == pytest.approx((0.504702, 0.021362), abs=1e-6)


def test_evidence_and_masses_of_the_fig2_curve() -> None:
    grid = make_grid(BUDGET, (24, 48))
    state = Filter(grid)
    for compute, rate in TRAIN:
        state.absorb(math.log(compute), rate, NOISE_VAR)
    model = posterior(state, (0, 1), Component(1.0))
    weight = np.exp(model.log_weight - model.log_evidence)
    r0, a = _mean(model)
    by_setting = weight.sum(axis=1).reshape(6, 3)

    assert model.log_evidence == pytest.approx(100.8694, abs=0.07)
    assert model.log_evidence == pytest.approx(100.807550, abs=1e-5)
    assert ((weight * r0).sum(), (weight * a).sum()) == pytest.approx((0.39091, 0.61240), abs=0.004)
    assert ((weight * r0).sum(), (weight * a).sum()) == pytest.approx((0.387536, 0.614438), abs=1e-5)
    assert by_setting.sum(axis=1) == pytest.approx([0.222, 0.636, 0.141, 0.0003, 0, 0], abs=0.031)
    assert by_setting.sum(axis=0) == pytest.approx([0.539, 0.369, 0.092], abs=0.006)

    cell, setting = 15 * 48 + 20, 1 * 3 + 1
    assert (grid.kappa[setting], grid.phi[setting]) == (0.01, 1.0)
    assert (grid.b[cell], math.exp(grid.log_mid[cell])) == pytest.approx((2.233083, 2585.463), abs=1e-3)
    assert (r0[setting, cell], a[setting, cell]) == pytest.approx((0.412272, 0.601283), abs=4e-4)
    t = model.chol[:, :, setting, cell]
    cov = np.linalg.inv(t @ t.T)
    assert np.sqrt(np.diag(cov)) == pytest.approx((0.004458, 0.015150), abs=1e-6)
    assert cov[0, 1] / math.sqrt(cov[0, 0] * cov[1, 1]) == pytest.approx(-0.39082, abs=1e-5)


def test_quantiles_of_the_fig2_curve() -> None:
    p = _fig2().forecast([8_000, 16_000, 50_000])
    quantiles = np.array([p.quantile(q) for q in (0.025, 0.1, 0.5, 0.9, 0.975)]).T
    published = [
        [0.5765, 0.5796, 0.5843, 0.5891, 0.5923],
        [0.5740, 0.5828, 0.5949, 0.6182, 0.6375],
        [0.5674, 0.5808, 0.5981, 0.6410, 0.6866],
    ]
    assert not p.refused
    assert quantiles == pytest.approx(np.array(published), abs=0.005)
    assert np.abs(quantiles - published).mean() < 0.0015
    assert p.quantile(0.1)[1] < EXTENDED[-1][1] < p.quantile(0.9)[1]


@pytest.mark.parametrize(("points", "low", "middle", "high"), [(13, 0.616, 0.694, 0.775), (17, 0.589, 0.627, 0.676)])
def test_earlier_windows_of_the_fig2_curve_give_the_known_forecasts(
    points: int, low: float, middle: float, high: float
) -> None:
    p = _fig2(points, samples=16_000).forecast([BUDGET])
    assert [p.quantile(q)[0] for q in (0.1, 0.5, 0.9)] == pytest.approx([low, middle, high], abs=0.004)


def test_seven_points_of_the_fig2_curve_are_refused_with_the_bound() -> None:
    p = _fig2(7, samples=16_000).forecast([BUDGET])
    assert p.refused
    assert [p.quantile(q)[0] for q in (0.1, 0.5, 0.9)] == pytest.approx(
        [0.518, 0.609, 0.768], abs=0.015
    )  # the ladder of noise
    assert p.reason is not None
    assert "Only 7 of the 8 evaluations" in p.reason
    assert f"between {p.quantile(0.1)[0]:.2f} and {p.quantile(0.9)[0]:.2f}" in p.reason


def test_truncated_prior_has_the_sd_that_the_refusal_rule_assumes() -> None:
    from controlplane.forecast.grid import TRUNCATED_SD_A
    from controlplane.forecast.law import supported

    r0, a = np.meshgrid(np.linspace(-0.02, 1, 2041), np.linspace(0, 1, 2001), indexing="ij")
    density = np.exp(-0.5 * ((r0 - BETA_MEAN[0]) ** 2 / BETA_VAR[0] + (a - BETA_MEAN[1]) ** 2 / BETA_VAR[1]))
    density *= supported(r0, a)
    density /= density.sum()
    mean = (density * a).sum()
    assert mean == pytest.approx(0.67, abs=0.005)
    assert math.sqrt((density * (a - mean) ** 2).sum()) == pytest.approx(TRUNCATED_SD_A, abs=0.001)


@pytest.mark.parametrize(
    ("largest_mid", "a", "c_mid", "b", "rmse", "short"),
    [(40_000, 0.605, 2518, 2.10, 0.0044, 0.002), (4_000, 0.600, 2463, 2.23, 0.0043, 0.005)],
)
def test_scalerl_protocol_reproduces_its_two_grid_results(
    largest_mid: float, a: float, c_mid: float, b: float, rmse: float, short: float
) -> None:
    compute, rate = zip(*TRAIN, strict=True)
    fit = fit_scalerl(compute, rate, 0.40, c_mid_grid=np.linspace(100, largest_mid, 100))
    assert pytest.approx(a) == fit.A
    assert int(fit.C_mid) == c_mid
    assert pytest.approx(b, abs=0.005) == fit.B
    assert fit.rmse == pytest.approx(rmse, abs=5e-5)
    later, truth = zip(*EXTENDED, strict=True)
    assert np.mean(np.array(truth) - fit.predict(later)) == pytest.approx(short, abs=0.0006)


def test_the_protocol_behind_the_forecaster_reproduces_the_published_fit() -> None:
    f = Forecaster(BUDGET, method="scalerl")
    f.observe(0.0, 0.40)
    for compute, rate in TRAIN:
        f.observe(compute, rate)
    found, p = f.parameters(), f.forecast([BUDGET])
    assert found.A.quantile(0.5) == pytest.approx(0.610, abs=0.01)
    assert found.B.quantile(0.5) == pytest.approx(1.97, abs=0.3)
    assert found.R0.quantile(0.5) == 0.40
    assert p.mean[0] == pytest.approx(EXTENDED[-1][1], abs=0.02)


def test_the_protocol_is_curve_fit_on_every_pair_of_the_grid() -> None:
    from scipy.optimize import curve_fit

    compute, rate = (np.array(column) for column in zip(*TRAIN, strict=True))
    a_grid, mid_grid = np.linspace(0.56, 0.68, 7), np.linspace(1500, 4500, 7)
    losses = {}
    for a in a_grid:
        for mid in mid_grid:

            def law(c: np.ndarray, b: float, a: float = a, mid: float = mid) -> np.ndarray:
                return 0.4 + (a - 0.4) / (1.0 + (mid / c) ** b)

            (b,), _ = curve_fit(law, compute[2:], rate[2:], p0=[1.0])
            losses[float(a), float(mid)] = float(((law(compute[2:], b) - rate[2:]) ** 2).sum()), float(b)
    best = min(losses, key=lambda pair: losses[pair][0])
    fit = fit_scalerl(compute, rate, 0.4, a_grid=a_grid, c_mid_grid=mid_grid)
    assert (fit.A, fit.C_mid) == best
    assert pytest.approx(losses[best][1], rel=1e-9) == fit.B


def test_protocol_refuses_columns_it_cannot_fit() -> None:
    with pytest.raises(ValueError, match="equal length"):
        fit_scalerl([2000.0, 3000.0], [0.5], 0.4)
    with pytest.raises(ValueError, match="at least 2"):
        fit_scalerl([100.0, 3000.0], [0.4, 0.5], 0.4)
