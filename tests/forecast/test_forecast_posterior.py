"""The streaming recursion against a dense Gaussian process, and the variance rule against its definition."""

import math

import numpy as np
import pytest

from controlplane.forecast.draws import draw, van_der_corput
from controlplane.forecast.filter import Filter
from controlplane.forecast.grid import BETA_MEAN, BETA_VAR, CHANGE_VAR, make_grid
from controlplane.forecast.law import regressors
from controlplane.forecast.noise import Point, binomial, condense, on_ladder, rice, variances
from controlplane.forecast.posterior import change_probabilities, posterior, posteriors
from controlplane.forecast.prior import Component, Prior

RNG = np.random.default_rng(5)
COMPUTE = np.sort(RNG.uniform(1.0, 60.0, 14))
COMPUTE[6] = COMPUTE[5]  # equal compute is allowed
RATE = np.clip(0.2 + 0.5 / (1.0 + (20.0 / COMPUTE) ** 2) + 0.02 * RNG.normal(size=14), 0.0, 1.0)
VAR = RNG.uniform(1e-4, 6e-4, 14)

DEFAULT = Component(1.0)


@pytest.mark.parametrize("changes", [(), (12.0,), (12.0, 31.0)])
def test_recursion_equals_a_dense_gaussian_process(changes: tuple[float, ...]) -> None:
    grid = make_grid(100.0, (4, 6))
    log_changes = tuple(math.log(c) for c in changes)
    state = Filter(grid, log_changes)
    u = np.log(COMPUTE)
    for point in zip(u, RATE, VAR, strict=True):
        state.absorb(*point)
    rows = tuple(range(2 + 2 * len(changes)))
    model = posterior(state, rows, DEFAULT)
    m0 = np.array(BETA_MEAN + (0.0, 0.0) * len(changes))
    v0 = np.array(BETA_VAR + CHANGE_VAR * len(changes))
    for cell in (0, 9, 23):
        x = np.array([regressors(ui, grid.b[[cell]], grid.log_mid[[cell]], log_changes)[:, 0] for ui in u])
        for setting in (0, 5, 10, 17):
            walk = grid.kappa[setting] ** 2 * np.minimum.outer(u - u[0], u - u[0])
            noise = walk + grid.phi[setting] * np.diag(VAR)
            marginal = noise + x @ np.diag(v0) @ x.T
            rest = RATE - x @ m0
            log_z = -0.5 * (rest @ np.linalg.solve(marginal, rest) + np.linalg.slogdet(marginal)[1])
            cov = np.linalg.inv(x.T @ np.linalg.solve(noise, x) + np.diag(1.0 / v0))
            beta = cov @ (x.T @ np.linalg.solve(noise, RATE) + m0 / v0)

            prior = grid.log_cell[cell] + grid.log_setting[setting]
            assert model.log_weight[setting, cell] - prior == pytest.approx(log_z, abs=1e-9)
            t = model.chol[:, :, setting, cell]
            assert np.linalg.inv(t @ t.T) == pytest.approx(cov, abs=1e-9)
            assert np.linalg.solve(t.T, model.white[:, setting, cell]) == pytest.approx(beta, abs=1e-9)
            gain = np.linalg.solve(noise, walk[-1])
            level = state.level_y[setting] - state.level_x[:, setting, cell] @ beta
            assert level == pytest.approx(gain @ (RATE - x @ beta), abs=1e-9)
            assert state.level_var[setting] == pytest.approx(walk[-1, -1] - gain @ walk[-1], abs=1e-9)


def test_a_sub_model_is_the_model_without_that_change_point() -> None:
    grid = make_grid(100.0, (4, 6))
    both, none = Filter(grid, [math.log(12.0)]), Filter(grid)
    for point in zip(np.log(COMPUTE), RATE, VAR, strict=True):
        both.absorb(*point)
        none.absorb(*point)
    assert np.array_equal(posterior(both, (0, 1), DEFAULT).log_weight, posterior(none, (0, 1), DEFAULT).log_weight)


def test_draws_have_the_moments_of_the_untruncated_posterior_when_nothing_is_rejected() -> None:
    grid = make_grid(100.0, (8, 12))
    state = Filter(grid, [math.log(20.0)])
    for i, u in enumerate(np.log(np.linspace(2.0, 90.0, 30))):
        state.absorb(u, 0.2 + 0.4 / (1.0 + math.exp(-2.0 * (u - math.log(10.0)))) + 0.004 * math.sin(7.0 * i), 2e-5)
    models = posteriors(state, Prior())
    d = draw(state, models, 1 << 14)
    weights = [np.exp(m.log_weight - models[0].log_weight.max()) for m in models]
    total = sum(w.sum() for w in weights)
    mean = np.zeros(4)
    for m, w in zip(models, weights, strict=True):
        t = np.moveaxis(m.chol, (0, 1), (-2, -1))
        beta = np.linalg.solve(np.swapaxes(t, -1, -2), np.moveaxis(m.white, 0, -1)[..., None])[..., 0]
        mean[list(m.rows)] += (w[..., None] * beta).sum(axis=(0, 1)) / total
    assert d.beta.shape[1] > 0.97 * (1 << 14)
    assert d.beta.mean(axis=1) == pytest.approx(mean, abs=0.006)
    # A draw has no jump exactly when it comes from the model without one, so often as the evidence says.
    share = float((d.beta[2] != 0.0).mean())
    assert share == pytest.approx(change_probabilities(models)[0], abs=0.01)


def test_a_change_point_adds_a_jump_and_a_gain_that_starts_at_zero() -> None:
    b, log_mid = np.array([2.0]), np.array([math.log(20.0)])
    at_change = regressors(math.log(12.0), b, log_mid, [math.log(12.0)])[:, 0]
    just_after = regressors(math.log(12.0) + 1e-9, b, log_mid, [math.log(12.0)])[:, 0]
    later = regressors(math.log(60.0), b, log_mid, [math.log(12.0)])[:, 0]
    assert list(at_change[2:]) == [0.0, 0.0]
    assert just_after[2:] == pytest.approx([1.0, 0.0], abs=1e-8)
    assert later == pytest.approx([0.1, 0.9, 1.0, 0.9 - 1.0 / (1.0 + (20 / 12) ** 2)])


def test_the_current_law_is_the_regression_after_the_last_change_point() -> None:
    changes = [math.log(12.0), math.log(31.0)]
    state = Filter(make_grid(100.0, (4, 6)), changes)
    for point in zip(np.log(COMPUTE), RATE, VAR, strict=True):
        state.absorb(*point)
    d = draw(state, posteriors(state, Prior()), 256)
    base, slope = d.current_law()
    u = math.log(80.0)
    x = regressors(u, d.b, d.log_mid, changes)
    assert base + slope * x[1] == pytest.approx((x * d.beta).sum(axis=0))


def test_van_der_corput_is_the_radical_inverse() -> None:
    assert van_der_corput(7, 2) == pytest.approx([1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8])
    assert van_der_corput(4, 3) == pytest.approx([1 / 3, 2 / 3, 1 / 9, 4 / 9])


def test_variance_is_the_larger_of_binomial_and_rice_unless_stated() -> None:
    rates = [0.1, 0.14, 0.11, 0.16, 0.15, 0.2]
    d = np.diff(rates)
    expected = (np.mean(d**2) / 2 + (np.median(np.abs(d)) / 0.6745) ** 2 / 2) / 2
    assert rice(rates) == pytest.approx(expected)
    assert rice([0.5] * 6) == 1e-8
    assert rice([0.2, 0.4]) == pytest.approx(0.01 + 1e-6)
    assert binomial(0.0, 50) == pytest.approx(0.02 / 50)
    points = [Point(i, y) for i, y in enumerate(rates)]
    points[1] = points[1]._replace(samples=10)
    points[2] = points[2]._replace(samples=10**9)
    points[3] = points[3]._replace(variance=1e-9)
    common = on_ladder(rice(rates))
    assert variances(points) == pytest.approx([common, 0.14 * 0.86 / 10, common, 1e-9, common, common])


def test_the_ladder_is_near_and_its_steps_are_fixed() -> None:
    for value in (1e-8, 3.3e-5, 0.02):
        assert value / 1.12 < on_ladder(value) < value * 1.12
        assert on_ladder(on_ladder(value)) == on_ladder(value)


def test_more_than_a_hundred_points_merge_without_loss_of_information_and_never_across_a_change() -> None:
    points = [Point(0.0, 0.2, 1e-3)] + [Point(float(i), 0.2 if i <= 132 else 0.6, 1e-3) for i in range(1, 351)]
    c, y, v = condense(points, [132.0])
    assert 50 <= len(c) <= 102
    assert c[0] == 0.0
    assert set(np.round(y, 12)) == {0.2, 0.6}
    assert np.all(np.diff(c) > 0)
    assert (1.0 / v).sum() == pytest.approx(351 / 1e-3)
    assert (c / v).sum() == pytest.approx(sum(p.compute for p in points) / 1e-3)


def test_a_full_bin_stays_as_it_is_while_points_arrive() -> None:
    points = [Point(float(i), 0.5, 1e-3) for i in range(1, 161)]
    before, after = condense(points[:150], ())[0], condense(points, ())[0]
    assert np.array_equal(before[:-1], after[: len(before) - 1])


def test_an_evaluation_at_compute_zero_measures_r0_and_nothing_else() -> None:
    grid = make_grid(100.0, (4, 6))
    state = Filter(grid)
    state.absorb(-math.inf, 0.25, 1e-6)
    model = posterior(state, (0, 1), DEFAULT)
    t = np.moveaxis(model.chol, (0, 1), (-2, -1))
    beta = np.linalg.solve(np.swapaxes(t, -1, -2), np.moveaxis(model.white, 0, -1)[..., None])[..., 0]
    assert beta[..., 0] == pytest.approx(0.25, abs=1e-4)
    assert beta[..., 1] == pytest.approx(BETA_MEAN[1], abs=1e-9)
    assert np.all(state.level_var == 0.0)
    state.absorb(math.log(3.0), 0.26, 1e-6)
    assert np.all(np.isfinite(state.information()[0]))
    walked = grid.kappa**2 * math.log(2.0)
    assert state.level_var == pytest.approx(walked * grid.phi * 1e-6 / np.maximum(walked + grid.phi * 1e-6, 1e-300))
