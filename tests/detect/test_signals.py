"""Readings cover exactly the steps between two looks, and nothing is made up where something is missing."""

import pytest

from controlplane.detect import readings
from tests.looks import BATCH, Run


def test_a_reading_counts_only_what_was_added() -> None:
    run = Run()
    before = run.advance(pass_rate=0.0)
    now = run.advance(pass_rate=1.0)
    reading = readings(before, now)["pass_rate"]
    assert (reading.value, reading.n, reading.step) == (1.0, BATCH, 2)


def test_several_steps_between_looks_are_one_reading_with_all_samples() -> None:
    run = Run()
    before = run.advance()
    run.advance(pass_rate=1.0)
    now = run.advance(pass_rate=0.0)
    reading = readings(before, now)["pass_rate"]
    assert reading.n == 2 * BATCH
    assert reading.value == pytest.approx(0.5)


def test_no_step_no_reading() -> None:
    run = Run()
    run.advance()
    assert readings(run.look(), run.look()) == {}


def test_a_restarted_process_is_not_compared_with_the_old_one() -> None:
    run = Run()
    before = run.advance()
    run.incarnation, run.totals = "two", {}
    assert readings(before, run.advance()) == {}


def test_a_rollback_is_not_compared_across() -> None:
    run = Run()
    before = run.advance()
    run.restore(0)
    assert readings(before, run.advance()) == {}


def test_a_step_with_two_nonfinite_quantities_is_one_step() -> None:
    run = Run()
    before = run.advance()
    run.advance(nonfinite=True)
    now = run.advance()
    reading = readings(before, now)["nonfinite_steps"]
    assert (reading.value, reading.n) == (1, 2)


def test_missing_series_give_no_reading() -> None:
    run = Run()
    before, now = run.advance(), run.advance()
    bare = now.model_copy(update={"metrics": {k: v for k, v in now.metrics.items() if "samples" not in k}})
    assert "pass_rate" not in readings(before, bare)
    assert "truncation" not in readings(before, bare)


def test_the_noise_scale_is_read_in_batches_of_prompts_with_signal_and_only_where_it_was_measured() -> None:
    run = Run()
    before, now = run.advance(), run.advance()
    mixed = 'rl_rollout_groups_total{signal="mixed"}'
    more = {
        "rl_trainer_gradient_noise_scale_prompts": 24.0,
        'rl_trainer_clipped_token_ratio{bound="high"}': 0.02,
        mixed: before.metrics.get(mixed, 0.0) + 12.0,
    }
    known = now.model_copy(update={"metrics": {**now.metrics, **more}})
    before = before.model_copy(update={"metrics": {mixed: 0.0, **before.metrics}})
    assert readings(before, known)["batch_noise"].value == pytest.approx(2.0)
    assert readings(before, known)["clipped"].value == 0.02
    lost = known.model_copy(
        update={"metrics": {**known.metrics, "rl_trainer_gradient_noise_scale_prompts": float("inf")}}
    )
    assert readings(before, lost)["batch_noise"].value == 1000.0
    unknown = known.model_copy(
        update={"metrics": {**known.metrics, "rl_trainer_gradient_noise_scale_prompts": float("nan")}}
    )
    assert not {"batch_noise"} & readings(before, unknown).keys()
