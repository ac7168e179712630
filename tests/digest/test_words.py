"""What is said about a run follows from what was written down."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.decide import ForecastView
from controlplane.digest import facts, words
from controlplane.record import Record
from tests.report.written import KINDS

Recorded = Callable[[str], Record]


def test_a_collapse_with_rollback_and_recovery_is_told_with_its_steps(record: Recorded) -> None:
    run = record("act")
    (episode,) = facts.episodes(run)
    assert episode.collapsed_at is not None
    assert episode.fork is not None
    assert 110 <= episode.collapsed_at < episode.fork.from_step <= 125
    assert episode.fork.to_step == 100
    assert episode.recovered_at == 110
    text = words.headline(run)
    assert (
        f"collapsed at step {episode.collapsed_at}, rolled back from step {episode.fork.from_step} to step 100" in text
    )
    assert "was back at its former level" in text


def test_a_collapse_that_nobody_answers_is_told_as_not_recovered(record: Recorded) -> None:
    for kind in ("observe", "alone"):
        (episode,) = facts.episodes(record(kind))
        assert episode.fork is None
        assert episode.recovered_at is None
        assert "did not come back" in words.headline(record(kind))


def test_an_evaluation_that_is_already_part_of_the_collapse_does_not_lower_the_former_level(record: Recorded) -> None:
    run = record("act")
    (clean,) = facts.episodes(run)
    for row in run.evals:
        if (row["branch"], row["step"]) == (0, 110):
            row["pass_ratio"] = 0.74
    (episode,) = facts.episodes(run)
    assert episode.former >= clean.former - 0.05
    assert episode.former > 0.85


def test_an_undisturbed_run_has_no_trouble(record: Recorded) -> None:
    assert facts.episodes(record("undisturbed")) == []
    assert words.status(record("undisturbed"), 0.0)[0] == "good"


def test_rows_in_force_never_go_back_and_leave_out_what_was_given_up(record: Recorded) -> None:
    run = record("act")
    (fork,) = facts.forks(run)
    steps = [row["step"] for row in facts.in_force(run, run.steps)]
    assert steps == list(range(1, 251))
    given_up = [row for stretch in facts.abandoned(run, run.steps) for row in stretch[1:]]
    assert [row["step"] for row in given_up] == list(range(fork.to_step + 1, fork.from_step + 1))
    assert len(steps) + len(given_up) == len(run.steps)


def test_an_evaluation_of_a_branch_given_up_is_not_in_force_before_the_next_one_comes(record: Recorded) -> None:
    run = record("collapsed")
    run.evals = [row for row in run.evals if row["branch"] == 0]
    assert [row["step"] for row in run.evals][-1] == 110
    assert facts.in_force(run, facts.heldout(run))[-1]["step"] == 100


def test_a_rollback_is_the_same_whether_the_trainer_wrote_it_down_or_only_its_steps_show_it(record: Recorded) -> None:
    run, bare = record("act"), record("act")
    bare.events = []
    (told,), (shown,) = facts.forks(run), facts.forks(bare)
    assert (told.branch, told.from_step, told.to_step) == (shown.branch, shown.from_step, shown.to_step)


def test_a_rollback_is_also_seen_where_only_the_journal_tells_of_it(record: Recorded) -> None:
    (fork,) = facts.forks(record("foreign"))
    assert (fork.branch, fork.to_step) == (1, 100)


@pytest.mark.parametrize(("low", "high", "inside"), [(0.90, 0.99, True), (0.10, 0.50, False), (0.97, 0.99, False)])
def test_the_band_sentence_is_right_on_both_sides(record: Recorded, low: float, high: float, inside: bool) -> None:
    run = record("undisturbed")
    view = _flat(run.forecasts[7], low, high)
    run.forecasts = [view]
    check, sentence = facts.check_forecast(run, view), words.forecast_sentence(run, 0.0)
    assert check.held is inside
    assert check.final is not None
    assert check.later == 25 - view.step // 10
    expected = (
        "inside the band"
        if inside
        else "outside the band, above it"
        if high < check.final
        else "outside the band, below it"
    )
    assert expected in sentence


def test_no_end_is_claimed_before_it_comes(record: Recorded) -> None:
    run = record("recovering")
    check = facts.check_forecast(run, run.forecasts[7])
    assert check.final is None
    assert check.held is None
    assert "has not come yet" in words.forecast_sentence(run, 0.25)


def test_a_refused_forecast_gives_its_reason_and_no_number(record: Recorded) -> None:
    run = record("young")
    view = run.forecasts[-1]
    assert view.refused
    text = words.forecast_words(view)
    assert text.startswith("not yet known: only ")
    assert "ends at" not in text


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(1, 400))
def test_a_band_on_any_axis_lies_between_its_step_and_the_end(values: list[float], per_step: int) -> None:
    run = Record.__new__(Record)
    run.info = run.observed = None
    run.looks, run.steps = [], [{"step": 250, "branch": 0}]
    band = tuple((60.0 * per_step + i, v, v, v) for i, v in enumerate(values))
    view = _view(60, 60.0 * per_step, 250.0 * per_step, band)
    steps = [row[0] for row in facts.band_by_step(run, view)]
    assert steps == sorted(steps)
    assert all(step >= 60 for step in steps)


def test_a_verdict_is_the_outcome_of_the_action_that_it_judges(record: Recorded) -> None:
    (item,) = words.interventions(record("act"))
    assert item.helped is True
    assert "helped" in item.outcome
    (only_seen,) = words.interventions(record("observe"))
    assert only_seen.helped is None
    assert "not carried out" in only_seen.outcome


def test_an_autonomy_lowered_on_the_command_line_is_told(record: Recorded) -> None:
    assert record("act").autonomy == "act"
    assert record("observe").autonomy == "observe"
    assert record("alone").autonomy == ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_summary_is_short_and_has_no_raw_nan(record: Recorded, kind: str) -> None:
    lines = words.summary(record(kind))
    assert 1 <= len(lines) <= 8
    assert not any("nan" in line.split() or "inf" in line.split() for line in lines)


@pytest.mark.parametrize("kind", KINDS)
def test_the_status_is_silent_only_while_the_run_should_be_talking(record: Recorded, kind: str) -> None:
    run = record(kind)
    _, word, sentence = words.status(run, facts.last_seen(run) + 3600)
    assert sentence
    assert (word == "SILENT") == (not facts.ended(run) and kind not in ("empty", "started"))


def _view(
    step: int, compute: float, budget: float, band: tuple[tuple[float, float, float, float], ...]
) -> ForecastView:
    return ForecastView(
        step=step, branch=0, compute=compute, budget=budget, points=9, quantiles={}, band=band, refused=False
    )


def _flat(view: ForecastView, low: float, high: float) -> ForecastView:
    middle = (low + high) / 2
    band = tuple((c, low, middle, high) for c, *_ in view.band)
    return view.model_copy(
        update={"band": band, "refused": False, "quantiles": {"0.1": low, "0.5": middle, "0.9": high}}
    )


def test_durations_and_ratios_never_show_a_raw_nan() -> None:
    assert words.duration(float("nan")) == "–"
    assert words.duration(3725) == "1:02:05"
    assert words.duration(59.6) == "1:00"
    assert words.ratio(float("nan")) == "unknown"
