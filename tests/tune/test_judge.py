"""The judge adopts what is better, not what is lucky, and says the same however its input is cut."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.tuning.judge import product
from controlplane.tune.evidence import Noise, Sums, bound, log_evidence
from controlplane.tune.judge import ArmVerdict, Outcome, Terms, judge, winner
from controlplane.tune.pairing import Paired, PromptResult, pair, results
from controlplane.tune.planner import crossing, detectable, fixed_steps, information, plan, power

TERMS = Terms(steps=60)


def steps_to(n: int) -> tuple[int, ...]:
    return tuple(range(1, n + 1))


def paired(differences: np.ndarray, error: float = 0.04) -> Paired:
    n = len(differences)
    return Paired(np.arange(1.0, n + 1), differences, np.full(n, error), np.full(n, 16.0))


def noisy(effect: float, seed: int, steps: int = 60, error: float = 0.04) -> np.ndarray:
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(Noise().covariance(steps_to(steps)))
    return effect * np.arange(1, steps + 1) / 60 + error * root @ rng.standard_normal(steps)


def test_evidence_starts_at_one_and_is_a_martingale_under_the_limit() -> None:
    rng = np.random.default_rng(0)
    x = np.arange(1, 9) / 30
    d = rng.standard_normal((8_000, 8)) @ np.linalg.cholesky(Noise().covariance(steps_to(8))).T
    e = np.exp(log_evidence(Sums.of(x, d, Noise()), 0.0))
    first = np.sort(np.unique(np.round(e[:, 0], 9)))  # one observation tells no more than a sign
    assert len(first) == 2
    for step in (0, 3, 7):
        assert abs(e[:, step].mean() - 1) < 5 * e[:, step].std() / math.sqrt(len(e))


def test_evidence_does_not_hang_on_the_unit_of_the_noise() -> None:
    x, d = np.arange(1, 41) / 40, noisy(0.05, 1, 40)
    one, other = (log_evidence(Sums.of(x, scale * d, Noise()), scale * 0.01) for scale in (1.0, 37.0))
    # The spread of the effect is in units of the noise, which the standardised differences carry.
    assert np.allclose(one, other)


def test_the_interval_holds_what_the_evidence_does_not_rule_out() -> None:
    x, d = np.arange(1, 61) / 60, noisy(0.08, 2) / 0.04
    sums = Sums.of(x, d, Noise())
    low, high = bound(sums, 60, 0.05, -1), bound(sums, 60, 0.05, +1)
    assert low < sums.effect[-1] < high
    newest, bar = sums.last(), math.log(20)
    assert log_evidence(newest, low - 1e-3, True, 60)[0] > bar > log_evidence(newest, low + 1e-3, True, 60)[0]
    assert log_evidence(newest, high + 1e-3, False, 60)[0] > bar > log_evidence(newest, high - 1e-3, False, 60)[0]


def test_optional_stopping_at_every_step_errs_in_at_most_one_probe_of_twenty() -> None:
    rng = np.random.default_rng(3)
    x = np.arange(1, 41) / 40
    for noise in (Noise(0, 0), Noise()):
        d = rng.standard_normal((800, 40)) @ np.linalg.cholesky(noise.covariance(steps_to(40))).T
        wrong = (log_evidence(Sums.of(x, d, Noise()), 0.0) >= math.log(20)).any(1).mean()
        assert wrong <= 0.05


def test_a_clear_gain_is_adopted_a_clear_loss_rejected_and_nothing_left_open_at_the_end() -> None:
    verdicts = judge({"up": paired(noisy(0.15, 4))}, TERMS)
    assert verdicts["up"].outcome is Outcome.adopt
    assert verdicts["up"].low > 0
    assert winner(verdicts) == "up"
    assert judge({"down": paired(noisy(-0.15, 5))}, TERMS)["down"].outcome is Outcome.reject
    assert judge({"same": paired(noisy(0.0, 6))}, TERMS)["same"].outcome in (Outcome.inconclusive, Outcome.reject)


@settings(max_examples=25, deadline=None)
@given(effect=st.floats(-0.2, 0.2), seed=st.integers(0, 99), steps=st.integers(1, 60), least=st.floats(0, 0.05))
def test_an_arm_is_adopted_only_above_the_smallest_effect_worth_having(
    effect: float, seed: int, steps: int, least: float
) -> None:
    verdict = judge({"a": paired(noisy(effect, seed)[:steps])}, Terms(steps=60, min_effect=least))["a"]
    if verdict.outcome is Outcome.adopt:
        assert verdict.evidence >= verdict.needed
    if verdict.outcome is Outcome.reject:
        assert verdict.effect < least
    assert verdict.low <= verdict.effect <= verdict.high or abs(verdict.effect) > 1


def test_more_arms_need_more_evidence_and_holm_gives_back_what_is_proved() -> None:
    alone = judge({"a": paired(noisy(0.1, 7))}, TERMS)["a"]
    both = judge({"a": paired(noisy(0.1, 7)), "b": paired(noisy(0.3, 8))}, TERMS)
    empty = judge({"a": paired(noisy(0.1, 7)), "b": paired(np.zeros(0))}, TERMS)
    assert alone.needed == pytest.approx(math.log(20))
    assert both["b"].needed == pytest.approx(math.log(40))
    assert both["a"].needed == pytest.approx(math.log(20))
    assert empty["a"].needed == pytest.approx(math.log(40))
    assert empty["b"].outcome is Outcome.undecided
    assert winner(both) == "b"


def test_holm_gives_nothing_back_for_what_is_not_proved() -> None:
    verdicts = judge({"a": paired(noisy(0.0, 9)), "b": paired(noisy(0.0, 10))}, TERMS)
    first = max(verdicts.values(), key=lambda v: v.evidence)
    assert first.evidence < math.log(40)
    assert sorted(v.needed for v in verdicts.values()) == pytest.approx([math.log(40), math.log(40)])


def test_a_hopeless_arm_is_given_up_before_its_last_step_and_a_good_one_is_not() -> None:
    def ends(effect: float, seed: int) -> tuple[int, Outcome]:
        d = noisy(effect, seed)
        for steps in range(5, 61, 5):
            verdict = judge({"a": paired(d[:steps])}, TERMS)["a"]
            if verdict.outcome is not Outcome.undecided:
                return steps, verdict.outcome
        raise AssertionError("undecided after all steps")

    hopeless = [ends(-0.05, seed) for seed in range(10)]
    good = [ends(0.2, seed) for seed in range(10)]
    assert np.mean([steps for steps, _ in hopeless]) < 50
    assert all(outcome is not Outcome.adopt for _, outcome in hopeless)
    assert sum(outcome is Outcome.adopt for _, outcome in good) >= 8


def test_giving_arms_up_costs_little_of_the_power_that_the_planner_promises() -> None:
    adopted, steps, promised = product(60, 60, 0.08)
    assert promised > 0.7
    assert adopted > promised - 0.1
    assert steps < 55


def result(t: int, ordinal: int, passed: int, samples: int = 8) -> PromptResult:
    return PromptResult(t, (0, ordinal), passed, samples)


def test_arms_that_have_not_parted_yet_are_not_given_up() -> None:
    alike = judge({"a": paired(np.zeros(20))}, Terms(steps=60, min_effect=0.01))["a"]
    assert alike.outcome is Outcome.undecided
    assert alike.high > 0.05


def test_prompts_are_paired_by_what_they_are_and_not_by_their_place() -> None:
    control = [result(1, 7, 4), result(1, 3, 2), result(2, 5, 8)]
    candidate = [result(1, 3, 4), result(1, 5, 6), result(2, 7, 4), result(2, 99, 0)]
    both = pair(control, candidate)
    assert both.t.tolist() == [1, 2]
    assert both.difference.tolist() == [pytest.approx((0.25 - 0.25) / 2), 0.0]
    assert both.prompts.tolist() == [2, 1]
    assert pair(control, [result(1, 42, 8)]).t.size == 0


def test_difficulty_that_arms_share_is_no_noise() -> None:
    def arm(shared: bool, seed: int) -> list[PromptResult]:
        own = np.random.default_rng(seed)
        easy = np.random.default_rng(5).random((40, 16)) if shared else own.random((40, 16))
        passed = own.binomial(8, easy)
        names = range(40 * 16)
        return [result(t + 1, names[16 * t + i], int(passed[t, i])) for t in range(40) for i in range(16)]

    alike, not_ = pair(arm(True, 1), arm(True, 2)), pair(arm(False, 3), arm(False, 4))
    assert alike.error[-1] < 0.7 * not_.error[-1]
    assert 0.5 < alike.difference.std() / alike.error.mean() < 1.5  # the error says how much the differences vary


def test_the_record_of_a_probe_is_read_by_arm() -> None:
    lines = [
        {"kind": "begin"},
        {"kind": "step", "arm": "control", "t": 1, "prompts": [[0, 4, 3, 8]]},
        {"kind": "step", "arm": "up", "t": 1, "prompts": [[0, 4, 5, 8], [1, 2, 0, 8]]},
    ]
    assert results(lines, "up") == [PromptResult(1, (0, 4), 5, 8), PromptResult(1, (1, 2), 0, 8)]


def test_the_fixed_test_needs_81_steps_for_a_quarter_of_the_slope_with_shared_prompts_and_172_without() -> None:
    assert fixed_steps(4e-4, 0.25, math.sqrt(2) * 0.012) == 81
    assert fixed_steps(4e-4, 0.25, math.sqrt(2 * (0.012**2 + 0.035**2))) == 172


def test_a_plan_promises_what_was_asked_for_and_costs_what_it_says() -> None:
    chosen = plan(4e-3, 0.25, 0.04, arms=2, step_device_seconds=3.0)
    assert chosen.power >= 0.8
    assert chosen.device_seconds == 2 * chosen.steps * 3.0
    assert plan(4e-3, 0.5, 0.04).steps < plan(4e-3, 0.25, 0.04).steps < plan(4e-3, 0.25, 0.08).steps
    assert plan(4e-3, 0.25, 0.04, arms=2).steps > plan(4e-3, 0.25, 0.04, arms=1).steps
    short = plan(4e-4, 0.1, 0.04, most_steps=50)
    assert short.steps == 50
    assert short.power < 0.8


def test_what_a_probe_can_detect_is_what_it_has_the_power_for() -> None:
    effect = detectable(information(60, Noise()), 0.04, 2, 0.95, 0.8)
    assert power(60, effect, 0.04, 2, 0.95, Noise()) == pytest.approx(0.8)


def test_the_planned_crossing_is_where_the_evidence_crosses_when_the_noise_is_known() -> None:
    steps = 400  # many steps: the scale of the noise is as good as known
    x = np.arange(1, steps + 1) / steps
    known = information(steps, Noise(0, 0))
    z = crossing(known, math.log(20))
    rng = np.random.default_rng(12)
    d = rng.standard_normal((200, steps))
    beta = (d @ x) / (x @ x)
    d += (z / math.sqrt(known) - beta)[:, None] * x  # the estimate is exactly at the crossing
    assert np.median(log_evidence(Sums.of(x, d, Noise(0, 0)), 0.0)[:, -1]) == pytest.approx(math.log(20), abs=0.3)


def test_an_arm_without_a_step_is_undecided() -> None:
    verdict = judge({"a": paired(np.zeros(0))}, TERMS)["a"]
    assert isinstance(verdict, ArmVerdict)
    assert verdict.outcome is Outcome.undecided


def test_an_arm_of_a_few_steps_that_began_alike_is_not_known_and_a_longer_one_is() -> None:
    assert not judge({"up": paired(np.zeros(3))}, TERMS)["up"].known
    assert judge({"up": paired(noisy(0.1, 1))}, TERMS)["up"].known
