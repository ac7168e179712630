import math
import random
from dataclasses import replace

from controlplane.agent.stepjudge import FEWEST, StepJudge
from controlplane.contract.reports import RolloutStats, StepReport
from tests.agent.house import report


def steps(number: int, seed: int = 0, branch: int = 0) -> list[StepReport]:
    rng = random.Random(seed)
    return [
        report(step, branch, loss=rng.gauss(-0.04, 0.01), grad_norm=0.3 * math.exp(rng.gauss(0, 0.25)))
        for step in range(1, number + 1)
    ]


def judged(reports: list[StepReport]) -> StepJudge:
    judge = StepJudge()
    for each in reports:
        judge.judge(each)
    return judge


def test_quiet_gaussian_run_has_no_spike() -> None:
    judge = StepJudge()
    verdicts = [judge.judge(each) for each in steps(2000)]
    assert sum(verdict.grad_norm_spike + verdict.loss_spike for verdict in verdicts) == 0


def test_spike_of_the_gradient_norm_and_of_the_loss_are_seen() -> None:
    verdict = judged(steps(100)).judge(report(101, grad_norm=30.0, loss=2.0))
    assert verdict.grad_norm_spike
    assert verdict.loss_spike


def test_nothing_is_judged_before_enough_readings() -> None:
    assert not judged(steps(FEWEST - 1)).judge(report(FEWEST, grad_norm=1e6)).grad_norm_spike
    assert judged(steps(FEWEST)).judge(report(FEWEST + 1, grad_norm=1e6)).grad_norm_spike


def test_constant_readings_do_not_make_a_twitch_a_spike() -> None:
    judge = judged([report(step) for step in range(1, 70)])
    assert not judge.judge(report(70, grad_norm=0.3 * 1.2, loss=-0.04 * 1.2)).grad_norm_spike
    assert judge.judge(report(71, grad_norm=0.3 * 1.5)).grad_norm_spike


def test_spikes_are_counted_within_one_branch_only() -> None:
    assert not judged(steps(100)).judge(report(50, branch=1, grad_norm=30.0)).grad_norm_spike


def test_nan_means_not_measured_and_infinity_means_broken() -> None:
    judge = StepJudge()
    assert judge.judge(report(1, loss=math.nan, grad_norm=math.nan)).nonfinite == ()
    assert judge.judge(report(2, loss=math.inf, grad_norm=math.inf)).nonfinite == ("loss", "grad")
    assert judge.judge(report(3, nonfinite=("loss", "reward"), loss=math.inf)).nonfinite == ("loss", "reward")


def test_broken_steps_do_not_spoil_the_window() -> None:
    judge = judged(steps(60))
    for step in range(61, 70):
        judge.judge(report(step, loss=math.inf, grad_norm=math.nan))
    assert judge.judge(report(70, grad_norm=30.0)).grad_norm_spike


def test_window_pass_ratio_comes_once_per_hundred_steps_and_weighs_completions() -> None:
    judge = StepJudge()
    ratios = []
    for step in range(1, 251):
        passed = 4 if step <= 50 else 8
        each = replace(report(step), rollouts=RolloutStats(passed=passed, failed=8 - passed, errored=5))
        ratios.append(judge.judge(each).window_pass_ratio)
    assert [(step, ratio) for step, ratio in enumerate(ratios, 1) if ratio is not None] == [(100, 0.75), (200, 1.0)]
