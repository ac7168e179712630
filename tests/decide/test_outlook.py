"""Forecasts in the controller: one per held-out set, streamed, never silently restarted, and scored as they go."""

import numpy as np
import pytest

from controlplane.decide.outlook import Outlooks
from controlplane.forecast import Forecaster
from controlplane.policy.models import ForecastOf
from controlplane.snapshot import Snapshot
from tests.looks import Run

PLANNED = 120


def rate_at(step: int, a: float = 0.8) -> float:
    return 0.1 + (a - 0.1) / (1.0 + (25.0 / step) ** 1.7) + 0.01 * float(np.random.default_rng(step).normal())


def look(step: int, rates: dict[str, float], lr_scale: float = 1.0, branch: int = 0, stderr: float = 0.0) -> Snapshot:
    run = Run()
    run.step, run.lr_scale = step, lr_scale
    metrics = {"rl_trainer_planned_steps": float(PLANNED), "rl_trainer_global_step": float(step)}
    for name, rate in rates.items():
        labels = f'{{dataset="{name}"}}'
        metrics |= {
            f'rl_eval_pass_ratio{{dataset="{name}",k="4"}}': rate,
            f"rl_eval_prompts{labels}": 256.0,
            f"rl_eval_last_step{labels}": float(step),
            f"rl_eval_branch{labels}": float(branch),
        }
        if stderr:
            metrics[f'rl_eval_pass_stderr_ratio{{dataset="{name}",k="4"}}'] = stderr
    return Snapshot(at=float(step), sampled_at=float(step), metrics=metrics, observed=run.look().observed)


def watched(steps: range, target: float | None = 0.7, jump_after: int = 10_000) -> Outlooks:
    outlooks = Outlooks(ForecastOf(axis="step", target=target))
    for step in steps:
        rate = min(rate_at(step) + (0.1 if step > jump_after else 0.0), 1.0)
        outlooks.take_in(look(step, {"held_out": rate}, lr_scale=0.5 if step > jump_after else 1.0), 0)
    return outlooks


def test_every_held_out_set_has_a_forecast_and_only_the_policy_s_set_has_the_target() -> None:
    outlooks = Outlooks(ForecastOf(axis="step", target=0.7))
    for step in range(3, 60, 3):
        new = outlooks.take_in(look(step, {"held_out": rate_at(step), "harder": rate_at(step, 0.4)}), 0)
        assert new
    assert set(outlooks.views) == {"held_out", "harder"}
    assert outlooks.view == outlooks.views["held_out"]
    assert outlooks.views["harder"].quantiles["0.9"] < outlooks.views["held_out"].quantiles["0.1"]
    assert outlooks.views["held_out"].target_probability is not None
    assert outlooks.views["harder"].target_probability is None
    assert not outlooks.take_in(look(57, {"held_out": 0.5, "harder": 0.5}), 0)


def test_a_new_evaluation_is_absorbed_and_gives_what_a_fit_from_nothing_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []
    init = Forecaster.__init__

    def counted(self: Forecaster, budget: float, **rest: object) -> None:
        made.append(budget)
        init(self, budget, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Forecaster, "__init__", counted)
    view = watched(range(3, 60, 3)).view
    assert made == [float(PLANNED)]
    fresh = Forecaster(budget=float(PLANNED))
    for step in range(3, 60, 3):
        fresh.observe(float(step), rate_at(step), samples=1024)
    assert view is not None
    assert view.quantiles["0.5"] == float(fresh.forecast([float(PLANNED)]).quantile(0.5)[0])


def test_a_changed_tunable_becomes_a_change_point_and_the_forecast_follows_it() -> None:
    steps = range(3, 75, 3)
    told = watched(steps, jump_after=45)
    blind = Forecaster(budget=float(PLANNED))
    for step in steps:
        blind.observe(float(step), min(rate_at(step) + (0.1 if step > 45 else 0.0), 1.0), samples=1024)
    forecaster = told._sets["held_out"]._forecaster
    assert forecaster is not None
    (change,) = forecaster.changes
    assert change.compute == 45.0
    assert change.probability > 0.8
    truth = rate_at(PLANNED) + 0.1
    assert told.view is not None
    missed = abs(float(blind.forecast([PLANNED]).quantile(0.5)[0]) - truth)
    assert abs(told.view.quantiles["0.5"] - truth) < max(missed, 0.05)


def test_a_rollback_drops_its_branch_and_leaves_a_change_point() -> None:
    outlooks = watched(range(3, 60, 3))
    outlooks.rewind(30)
    before = outlooks.view
    assert not outlooks.take_in(look(57, {"held_out": 0.1}), 1)  # still the evaluation of the branch that was given up
    assert outlooks.view == before
    assert outlooks.take_in(look(36, {"held_out": 0.5}, branch=1), 1)
    assert outlooks.view is not None
    assert (outlooks.view.points, outlooks.view.step) == (11, 36)
    forecaster = outlooks._sets["held_out"]._forecaster
    assert forecaster is not None
    assert [change.compute for change in forecaster.changes] == [30.0]


def test_coverage_counts_the_evaluations_inside_the_interval_forecast_before_them() -> None:
    steady = watched(range(2, 100, 2)).view
    assert steady is not None
    assert steady.scored >= 30
    assert steady.coverage["0.95"] >= steady.coverage["0.8"] > 0.6
    outlooks = watched(range(2, 60, 2))
    before = outlooks.view
    assert before is not None
    outlooks.take_in(look(60, {"held_out": 0.02}), 0)
    after = outlooks.view
    assert after is not None
    assert after.scored == before.scored + 1
    assert after.coverage["0.95"] == pytest.approx(before.coverage["0.95"] * before.scored / after.scored)


def test_an_exported_standard_error_is_the_noise_of_its_point() -> None:
    sure, unsure = (Outlooks(ForecastOf(axis="step")) for _ in range(2))
    for step in range(3, 60, 3):
        sure.take_in(look(step, {"held_out": rate_at(step)}, stderr=0.001), 0)
        unsure.take_in(look(step, {"held_out": rate_at(step)}, stderr=0.08), 0)
    assert unsure.newest is not None
    assert unsure.newest.samples == pytest.approx(rate_at(57) * (1 - rate_at(57)) / 0.08**2)
    assert sure.view is not None
    assert unsure.view is not None
    widths = [v.quantiles["0.9"] - v.quantiles["0.1"] for v in (sure.view, unsure.view)]
    assert widths[1] > 1.5 * widths[0]


def test_the_prior_of_the_policy_is_about_its_own_set_and_helps_a_young_run() -> None:
    prior = {"R0": [0.1, 0.02], "A": [0.8, 0.03], "ln_B": [0.53, 0.2], "ln_C_mid": [3.2, 0.25]}
    plain, told = (Outlooks(ForecastOf.model_validate({"axis": "step", "prior": p})) for p in (None, prior))
    for step in range(0, 20, 2):
        seen = look(step, {"held_out": rate_at(step) if step else 0.1, "harder": 0.2})
        plain.take_in(seen, 0)
        told.take_in(seen, 0)
    assert plain.view is not None
    assert told.view is not None
    widths = [v.quantiles["0.9"] - v.quantiles["0.1"] for v in (plain.view, told.view)]
    assert widths[1] < 0.4 * widths[0]
    assert told.view.quantiles["0.1"] < rate_at(PLANNED) < told.view.quantiles["0.9"]
    assert told.views["harder"] == plain.views["harder"]
