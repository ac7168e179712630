"""Turns in one trajectory: the run's own progress is not taken for an effect, and a large effect is found."""

import numpy as np
import pytest

from controlplane.policy import parse
from controlplane.tune.evidence import Noise, whitening
from controlplane.tune.judge import Outcome, Terms, judge
from controlplane.tune.planner import information as of_pairs
from controlplane.tune.switchback import TREND, Turns, alternated, information, segments

TURNS = Turns(("control", "up", "up", "control"), 20, 4)
QUIET = Noise(0.5, 0.1)
DETECTORS = "detectors: {broken: {kind: nonfinite}}\n"


def record(
    effect: float, seed: int, bend: float = -0.2, turns: Turns = TURNS, shift: float = 0.0
) -> list[dict[str, object]]:
    """A run on a parabola, 16 prompts of different difficulty a step; `effect` grows with every step of the arm."""
    rng, lines, exposure = np.random.default_rng(seed), [], 0
    for t in range(1, turns.steps + 1):
        arm = turns.order[(t - 1) // turns.segment_steps]
        level = 0.4 + 0.3 * t / turns.steps + bend * (t / turns.steps) ** 2 + effect * exposure / (turns.steps / 2)
        p = np.clip(level + shift * (arm != "control") + rng.normal(0, 0.15, 16), 0.02, 0.98)
        prompts = [[0, t * 16 + i, int(n), 8] for i, n in enumerate(rng.binomial(8, p))]
        lines.append({"kind": "step", "arm": arm, "t": t, "prompts": prompts})
        exposure += arm != "control"
    return lines


def verdict(lines: list[dict[str, object]], turns: Turns = TURNS) -> tuple[Outcome, float]:
    terms = Terms(steps=turns.steps // 2, min_effect=0.02, noise=QUIET)
    found = judge({"up": alternated(lines, turns)}, terms)["up"]
    return found.outcome, found.effect


def test_order_is_drawn_by_lot_and_stays_drawn() -> None:
    drawn = [segments(f"p{i}", "up") for i in range(40)]
    assert drawn == [segments(f"p{i}", "up") for i in range(40)]
    assert set(drawn) == {("control", "up", "up", "control"), ("up", "control", "control", "up")}
    assert 10 < sum(order[0] == "up" for order in drawn) < 30


def test_first_steps_of_a_segment_are_not_read_but_count_as_exposure() -> None:
    places, exposure = Turns(("control", "up", "up", "control"), 4, 2).readings()
    assert places == (3, 4, 7, 8, 11, 12, 15, 16)
    assert exposure.tolist() == [0, 0, 2, 3, 6, 7, 8, 8]


def test_whitened_readings_know_nothing_of_a_parabola_and_keep_their_noise() -> None:
    places, _ = TURNS.readings()
    white = whitening(QUIET, places, TREND, TURNS.steps)
    t = np.array(places) / TURNS.steps
    assert np.abs(white @ (3.0 - 2.0 * t + 5.0 * t**2)).max() < 1e-6
    assert np.allclose(white @ QUIET.covariance(places) @ white.T, np.eye(len(places) - TREND), atol=1e-8)
    assert np.allclose(np.triu(white[:, TREND:], 1), 0)  # no reading is looked at before it is there


def test_progress_of_the_run_is_no_effect_and_the_estimate_is_unbiased() -> None:
    found = [verdict(record(0.0, seed, bend)) for seed in range(40) for bend in (-0.3, 0.2)]
    assert sum(outcome is Outcome.adopt for outcome, _ in found) <= 2
    effects = [verdict(record(0.3, seed))[1] for seed in range(80)]
    assert np.mean(effects) == pytest.approx(0.3, abs=3 * np.std(effects) / 80**0.5)


def test_a_large_effect_is_adopted_and_a_moderate_one_is_not_claimed() -> None:
    long = Turns(TURNS.order, 60, 4)
    assert sum(verdict(record(0.6, s, 0.0, long), long)[0] is Outcome.adopt for s in range(10)) >= 8
    assert sum(verdict(record(0.05, s, 0.0, long), long)[0] is Outcome.adopt for s in range(10)) <= 1


def test_turns_tell_far_less_than_pairs_and_the_planner_says_so() -> None:
    assert information(TURNS, Noise()) < of_pairs(40, Noise()) / 10


@pytest.mark.parametrize(
    ("says", "wrong"),
    [
        ("space: {temperature: 1.5}", "cannot be probed by switchback: it changes the pass rate itself"),
        ("space: {max_staleness: 2}", "outlasts a segment"),
        ("space: {lr_scale: 1.5}\n  steps: 41", "must be even"),
        ("space: {lr_scale: 1.5}\n  steps: 12", "to be read"),
    ],
)
def test_what_a_switchback_cannot_measure_is_refused_by_the_policy(says: str, wrong: str) -> None:
    clamps = "clamps: {lr_scale: {min: 0.5, max: 2}, temperature: {min: 0.5, max: 2}, max_staleness: {min: 0, max: 9}}"
    with pytest.raises(Exception, match=wrong):
        parse(f"policy: v1\nname: x\n{DETECTORS}{clamps}\ntuning:\n  design: switchback\n  {says}\n")


def test_off_without_quotes_is_off() -> None:
    policy = parse(
        f"policy: v1\nname: x\n{DETECTORS}clamps: {{lr_scale: {{min: 0.5, max: 2}}}}\ntuning: {{design: off, space: {{lr_scale: 1.5}}}}\n"
    )
    assert policy.tuning is not None
    assert policy.tuning.design == "off"
