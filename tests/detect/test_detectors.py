"""Detectors find what they say they find, stay quiet otherwise, and forget an abandoned branch."""

from math import nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.detect import Detector, Finding, Outcome, Reading, build
from controlplane.policy.models import Cusum, RobustZ, Streak, Threshold


def cusum(**more: object) -> Detector:
    detector = build(Cusum.model_validate({"kind": "cusum", "signal": "pass_rate", "side": "low", **more}))
    assert detector is not None
    return detector


def spike(**more: object) -> Detector:
    detector = build(RobustZ.model_validate({"kind": "robust_z", "signal": "grad_norm", **more}))
    assert detector is not None
    return detector


def feed(detector: Detector, values: "list[float] | np.ndarray", start: int = 1, n: float = nan) -> list[Finding]:
    return [detector.update(Reading(start + i, float(v), n)) for i, v in enumerate(values)]


def usual(seed: int, count: int) -> "np.ndarray":
    return np.random.default_rng(seed).normal(0.8, 0.05, count)


def test_cusum_finds_a_fall_within_a_few_readings_and_names_its_onset() -> None:
    detector = cusum()
    feed(detector, usual(0, 60))
    findings = feed(detector, [0.5] * 8, start=61)
    first = next(i for i, f in enumerate(findings) if f.outcome is Outcome.breach)
    assert first <= 5
    assert findings[first].onset is not None
    assert 50 <= findings[first].onset <= 60


def test_cusum_ignores_one_wild_reading() -> None:
    detector = cusum()
    feed(detector, usual(1, 60))
    assert feed(detector, [0.0, *usual(2, 20)], start=61)[-1].outcome is Outcome.ok


def test_low_cusum_never_alarms_on_a_rise() -> None:
    detector = cusum()
    rising = np.linspace(0.1, 0.95, 200) + np.random.default_rng(3).normal(0, 0.03, 200)
    assert all(f.outcome is not Outcome.breach for f in feed(detector, rising))


def test_cusum_false_alarms_are_rarer_than_one_in_five_thousand_readings() -> None:
    alarms = 0
    for seed in range(4):
        detector = cusum()
        noise = np.random.default_rng(seed).standard_t(3, 5000) * 0.05 + 0.8
        outcomes = [f.outcome is Outcome.breach for f in feed(detector, noise)]
        alarms += sum(now and not before for before, now in zip([False, *outcomes], outcomes, strict=False))
    assert alarms <= 4


def test_nothing_is_judged_before_the_usual_is_known() -> None:
    assert {f.outcome for f in feed(cusum(), [0.8, 0.0] * 12)} == {Outcome.inconclusive}


def test_nan_is_an_error_and_never_good_or_bad() -> None:
    assert cusum().update(Reading(1, nan)).outcome is Outcome.error
    threshold = build(Threshold.model_validate({"kind": "level", "signal": "truncation", "above": 0.1}))
    assert threshold is not None
    assert threshold.update(Reading(1, nan)).outcome is Outcome.error
    assert spike().update(Reading(1, nan)).outcome is Outcome.inconclusive


def test_a_single_spike_is_ignored_and_two_in_a_row_are_not() -> None:
    detector = spike()
    quiet = np.exp(np.random.default_rng(4).normal(-1, 0.3, 60))
    feed(detector, quiet)
    assert feed(detector, [20.0, 0.4], start=61)[0].outcome is Outcome.ok
    assert feed(detector, [20.0, 20.0], start=63)[1].outcome is Outcome.breach


def test_a_level_needs_its_readings_in_a_row() -> None:
    detector = build(
        Threshold.model_validate({"kind": "level", "signal": "truncation", "above": 0.1, "consecutive": 3})
    )
    assert detector is not None
    outcomes = [f.outcome is Outcome.breach for f in feed(detector, [0.2, 0.2, 0.05, 0.2, 0.2, 0.2, 0.2])]
    assert outcomes == [False, False, False, False, False, True, True]


def test_a_streak_is_broken_by_one_finite_step() -> None:
    detector = build(Streak(kind="nonfinite", steps=3))
    assert detector is not None
    outcomes = [f.outcome is Outcome.breach for f in feed(detector, [1, 1, 0, 1, 1, 1], n=1.0)]
    assert outcomes == [False, False, False, False, False, True]


@pytest.mark.parametrize("make", [cusum, spike])
def test_after_a_rewind_the_detector_stands_where_it_stood(make: "type[Detector]") -> None:
    """Going back forgets the abandoned branch and keeps the lineage: same findings as if it had never happened."""
    healthy, later = usual(5, 60), usual(6, 20)
    straight, returned = make(), make()
    feed(straight, healthy)
    feed(returned, healthy)
    feed(returned, [0.1] * 6, start=61)
    returned.rewind(60)
    straight.rewind(60)
    assert feed(returned, later, start=61) == feed(straight, later, start=61)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=120))
def test_findings_depend_on_the_readings_alone(values: list[float]) -> None:
    assert repr(feed(cusum(), values, n=128)) == repr(feed(cusum(), values, n=128))
