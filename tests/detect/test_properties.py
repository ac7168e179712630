"""What must hold of every detector, whatever it is fed: streaming is batch, a rewind forgets exactly what was given up."""

import statistics
from math import log, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.detect import Detector, Finding, Outcome, Reading, build, figures
from controlplane.detect.baseline import Baseline
from controlplane.detect.trial import batches, measure
from controlplane.policy import detectors as configs
from controlplane.policy import load, preset_names
from controlplane.policy.signals import BUILT_IN, Kind

MAKE: dict[str, configs.Detector] = {
    "cusum": configs.Cusum(kind="cusum", signal="pass_rate", side="low", reference="forecast"),
    "log cusum": configs.Cusum(kind="cusum", signal="mismatch_kl", side="high"),
    "robust_z": configs.RobustZ(kind="robust_z", signal="grad_norm"),
    "loss": configs.RobustZ(kind="robust_z", signal="loss"),
    "level": configs.Threshold(kind="level", signal="truncation", above=0.5),
    "bernoulli_cusum": configs.BernoulliCusum(kind="bernoulli_cusum"),
    "trend": configs.Trend(kind="trend", signal="truncation", above=0.5, window=16),
    "slide": configs.Slide(kind="slide", signal="pass_rate"),
    "nonfinite": configs.Streak(kind="nonfinite"),
}


def fresh(name: str) -> Detector:
    detector = build(MAKE[name])
    assert detector is not None
    return detector


def feed(detector: Detector, values: list[float], start: int = 1) -> list[Finding]:
    return [
        detector.update(Reading(start + i, value, 128, 8, drift=0.001, expected=0.5, expected_sd=nan))
        for i, value in enumerate(values)
    ]


values_of = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=140)


@settings(max_examples=60, deadline=None)
@given(values_of, st.sampled_from(["proportion", "positive", "real"]))
def test_the_streaming_baseline_is_the_batch_one(values: list[float], kind: Kind) -> None:
    """Median of 16 lagged readings, MAD of lagged deviations: sorted windows against the definition."""
    baseline = Baseline(window=64, lag=8, min_readings=16, kind=kind)
    past: list[float] = []
    deviations: list[float] = []
    for step, raw in enumerate(values):
        value = log(raw) if kind == "positive" else raw
        got = baseline.z(Reading(step, raw))
        expected = None
        recent = past[: max(0, len(past) - 8)][-16:]
        if len(recent) == 16:
            level = statistics.median(recent)
            usual = deviations[: max(0, len(deviations) - 8)][-64:]
            if len(usual) >= 16:
                middle = statistics.median(usual)
                mad = statistics.median(abs(d - middle) for d in usual)
                floor = 0.05 if kind != "real" else max(0.05 * abs(level), 1e-6)
                expected = (value - level) / max(1.4826 * mad, floor)
            deviations.append(value - level)
        past.append(value)
        assert got == (None if expected is None else pytest.approx(expected, rel=1e-9, abs=1e-9))


@settings(max_examples=25, deadline=None)
@given(values_of, st.lists(st.floats(0.001, 1.0), max_size=40), values_of)
@pytest.mark.parametrize("name", MAKE)
def test_after_a_rewind_nothing_of_the_abandoned_branch_is_left(
    name: str, kept: list[float], abandoned: list[float], later: list[float]
) -> None:
    straight, returned = fresh(name), fresh(name)
    feed(straight, kept)
    feed(returned, kept)
    feed(returned, abandoned, start=len(kept) + 1)
    for detector in (straight, returned):
        detector.rewind(len(kept))
    start = len(kept) + 1
    assert repr(feed(returned, later, start)) == repr(feed(straight, later, start))


@settings(max_examples=25, deadline=None)
@given(values_of)
@pytest.mark.parametrize("name", MAKE)
def test_the_onset_of_a_breach_lies_before_it(name: str, values: list[float]) -> None:
    for step, finding in enumerate(feed(fresh(name), values), 1):
        if finding.outcome is Outcome.breach and finding.onset is not None:
            assert finding.onset < step


@pytest.mark.parametrize("name", [n for n in MAKE if n != "nonfinite"])
def test_nan_never_breaches_and_leaves_no_trace(name: str) -> None:
    values = np.random.default_rng(1).uniform(0.3, 0.4, 90).tolist()
    one, other = fresh(name), fresh(name)
    feed(one, values)
    feed(other, values)
    assert feed(one, [nan], 91)[0].outcome in (Outcome.error, Outcome.inconclusive)
    assert repr(feed(one, values, 92)) == repr(feed(other, values, 92))


def test_a_forecast_that_rises_makes_standing_still_a_fall_but_no_more_than_a_spread() -> None:
    noise = np.random.default_rng(2).normal(0, 0.05, 160)

    def worst(drift: float) -> float:
        detector = fresh("cusum")
        found = [detector.update(Reading(i, 0.5 + float(e), drift=drift)) for i, e in enumerate(noise)]
        return max(f.statistic for f in found if f.statistic == f.statistic)

    assert worst(0.0) < worst(0.002)
    assert worst(0.5) == pytest.approx(worst(5.0))  # however steep: one spread
    flat = build(MAKE["cusum"].model_copy(update={"reference": "local"}))
    assert flat is not None
    found = [flat.update(Reading(i, 0.5 + float(e), drift=0.5)) for i, e in enumerate(noise)]
    assert max(f.statistic for f in found if f.statistic == f.statistic) == worst(0.0)


def test_an_evaluation_is_judged_by_the_forecast_made_before_it() -> None:
    detector = fresh("cusum")
    findings = [detector.update(Reading(100 * i, 0.55, 256, expected=0.60, expected_sd=0.01)) for i in range(1, 7)]
    assert [f.outcome is Outcome.breach for f in findings] == [False] * 4 + [True] * 2
    assert "what was forecast" in findings[-1].detail


def test_completions_of_one_prompt_count_for_less() -> None:
    """Without the design effect a truncation CUSUM alarms many times as often on batches whose prompts differ."""
    shares = batches(np.random.default_rng(3), 20_000, 0.05, 0.3)

    def alarms(correlation: float) -> int:
        detector = build(configs.BernoulliCusum(kind="bernoulli_cusum", h=5, correlation=correlation))
        assert detector is not None
        count = 0
        for step, value in enumerate(shares):
            if detector.update(Reading(step, float(value), 1024, 16)).outcome is Outcome.breach:
                count += 1
                detector.rewind(step)
        return count

    assert alarms(0.0) > 3 * max(alarms(0.3), 1)


def test_one_batch_alone_is_no_alarm_however_large() -> None:
    detector = fresh("bernoulli_cusum")
    outcomes = [detector.update(Reading(i, 0.9, 1e6, 16)).outcome for i in range(4)]
    assert outcomes[:2] == [Outcome.ok, Outcome.ok]
    assert Outcome.breach in outcomes


def test_an_unknown_group_size_is_inconclusive_and_not_guessed() -> None:
    detector = fresh("bernoulli_cusum")
    assert detector.update(Reading(1, 0.9, 1024)).outcome is Outcome.inconclusive


def test_a_trend_says_when_the_threshold_will_be_reached() -> None:
    detector = build(configs.Trend(kind="trend", signal="truncation", above=0.10))
    assert detector is not None
    rng, told = np.random.default_rng(4), None
    for step in range(200):
        value = 0.02 + 0.0005 * step + float(rng.normal(0, 0.003))
        finding = detector.update(Reading(step, value))
        if finding.outcome is Outcome.breach:
            told = step, finding.detail
            break
    assert told is not None
    assert 115 <= told[0] <= 135  # 0.10 is reached at step 160
    assert "reaches 0.1 in about" in told[1]


def test_a_slide_is_told_from_the_first_steps_on() -> None:
    recorded = [0.162, 0.141, 0.078, 0.044, 0.041, 0.028, 0.017]  # a run that was dead at step 11
    findings = feed(fresh("slide"), recorded)
    assert [f.outcome for f in findings].index(Outcome.breach) == 4
    assert findings[4].onset == 1


@pytest.mark.parametrize(
    "values",
    [
        [0.5, 0.4, 0.3, 0.3, 0.2, 0.1],  # a step without a fall begins anew
        [0.5, 0.2, 0.1, 0.05],  # deep, but three falls
        [0.5, 0.45, 0.40, 0.35, 0.30],  # four falls, and less than half lost
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.4, 0.9, 0.6, 0.5, 0.41, 0.4],  # down from one high reading
    ],
)
def test_what_is_not_a_slide(values: list[float]) -> None:
    assert all(finding.outcome is Outcome.ok for finding in feed(fresh("slide"), values))


def test_a_rollback_forgets_a_slide() -> None:
    detector = fresh("slide")
    feed(detector, [0.8, 0.7, 0.5, 0.4])
    detector.rewind(1)
    assert feed(detector, [0.3, 0.2], start=2)[-1].outcome is Outcome.ok


def test_a_level_is_silent_before_its_first_step() -> None:
    detector = build(configs.Threshold(kind="level", signal="pass_rate", below=0.6, consecutive=1, from_step=100))
    assert detector is not None
    outcomes = [detector.update(Reading(step, 0.1)).outcome for step in (98, 99, 100)]
    assert outcomes == [Outcome.inconclusive, Outcome.inconclusive, Outcome.breach]


def test_a_refused_forecast_is_no_shortfall() -> None:
    detector = build(configs.Shortfall(kind="shortfall"))
    assert detector is not None
    outcomes = [detector.update(Reading(i, v)).outcome for i, v in enumerate([0.95, nan, 0.95])]
    assert outcomes == [Outcome.ok, Outcome.inconclusive, Outcome.breach]


# One set of figures


def test_every_shipped_detector_has_been_measured() -> None:
    for name in preset_names():
        policy = load(name)
        for config in policy.detectors.values():
            if config.kind not in ("nonfinite", "stall", "shortfall"):
                assert figures.known(config, policy.signal(config.signal)) is not None, f"{name}: {config}"


@pytest.mark.parametrize(
    "config",
    [
        configs.Cusum(kind="cusum", signal="pass_rate", side="low"),
        configs.RobustZ(kind="robust_z", signal="grad_norm"),
        configs.Threshold(kind="level", signal="truncation", above=0.1),
        configs.BernoulliCusum(kind="bernoulli_cusum"),
        configs.Trend(kind="trend", signal="truncation", above=0.1),
        configs.Slide(kind="slide", signal="pass_rate"),
    ],
    ids=lambda config: config.kind,
)
def test_a_docstring_states_the_measured_figures(config: configs.Detector) -> None:
    found = figures.known(config, BUILT_IN[config.signal])  # type: ignore[union-attr]
    assert found is not None
    assert found.sentence() in (type(config).__doc__ or "")


def test_the_figures_are_those_of_this_code() -> None:
    """A small simulation of the default CUSUM agrees with what is written down, within what chance allows."""
    config = MAKE["cusum"]
    known = figures.known(config, BUILT_IN["pass_rate"])
    again = measure(config, BUILT_IN["pass_rate"], 6_000, 12)
    assert known is not None
    assert again is not None
    for change, steps in known.found.items():
        assert abs(again.found[change] - steps) <= 2
    for noise, rate in known.false_alarms.items():
        expected = rate * again.readings / 1000
        assert again.false_alarms[noise] * again.readings / 1000 <= expected + 4 * sqrt(expected + 1)
