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
