"""The shipped policies on simulated runs: they load, they judge, they leave a healthy run alone, and they mean what they say."""

import json

import pytest

from controlplane.contract.documents import TunableState
from controlplane.decide import Decision, Evaluator, Kind, Purpose
from controlplane.policy import load, preset_names
from controlplane.sim import faults
from controlplane.sim.course import Course
from controlplane.sim.fast import FastRun
from controlplane.sim.fleet import play
from controlplane.snapshot import Snapshot
from tests.looks import Run


@pytest.mark.parametrize("name", preset_names())
def test_every_shipped_policy_leaves_a_healthy_run_alone(name: str) -> None:
    for seed in (31, 32):
        story = play(Course.draw(seed), load(name), steps=300)
        assert story.looks >= 300
        assert [told.decision.reason for told in story.told if told.decision.kind is Kind.act] == []


@pytest.mark.parametrize("name", ["guard", "lecture", "demo"])
def test_a_collapse_under_a_policy_that_acts_is_rolled_back_and_the_rate_comes_back(name: str) -> None:
    story = play(Course.draw(33), load(name), (faults.lr_fault(260, 12, steps=30),), steps=560)
    acts = [told.decision for told in story.told if told.decision.kind is Kind.act]
    assert acts[0].change is not None
    assert acts[0].change.target is not None
    assert acts[0].change.target.step < 260
    assert story.recovered
    recovers = [d for d in acts if d.purpose is Purpose.recover]
    assert bool(recovers) == (name != "demo")  # the demo's rule has no way back


@pytest.mark.parametrize("name", preset_names())
def test_every_decision_of_a_shipped_policy_can_be_made_again_also_after_a_restart(name: str) -> None:
    def line(decision: Decision) -> str:
        return json.dumps(decision.model_dump(mode="json"), sort_keys=True)

    looks: list[Snapshot] = []
    made: list[Decision] = []

    def keep(run: FastRun, snapshot: Snapshot, decision: Decision) -> None:
        looks.append(Snapshot.model_validate_json(snapshot.model_dump_json()))  # as the journal gives it back
        made.append(decision)

    fault = faults.lr_fault(200, 12, steps=20)
    play(Course.draw(34), load(name), (fault,), steps=300, watch=keep)
    again, restarted = Evaluator(load(name)), Evaluator(load(name))
    for index, (look, decision) in enumerate(zip(looks, made, strict=True)):
        assert line(again.look(look)[1]) == line(decision)
        if index < 205:
            restarted.recall(look, Decision.model_validate_json(decision.model_dump_json()))
        else:
            assert line(restarted.look(look)[1]) == line(decision)


def test_the_lecture_grows_an_idle_batch_by_a_fifth_up_to_2048_completions() -> None:
    """O5 of the notes: below 70 % utilisation min(batch x 1.2, largest); 16 completions to a prompt."""
    prompts = {"prompts_per_step": TunableState(value=64, min=1, max=1000)}
    run, evaluator, sizes = Run(tunables=prompts), Evaluator(load("lecture")), []
    busy = 0.40
    for _ in range(900):
        decision = evaluator.look(run.advance(busy=busy))[1]
        if decision.kind is Kind.act:
            run.carry_out(decision)
            sizes.append(run.value("prompts_per_step"))
            busy += 0.01  # a larger batch keeps the devices a little busier
    assert sizes == [77, 92, 110, 128]


def test_the_lecture_s_range_of_the_learning_rate_holds_whatever_a_rule_wants() -> None:
    run, evaluator = Run(), Evaluator(load("lecture"))
    run.gauges["rl_trainer_learning_rate"] = 1.1e-6
    for _ in range(130):
        run.advance()
        if run.step % 10 == 0:
            run.checkpoint()
        evaluator.look(run.look())
    for _ in range(6):
        decision = evaluator.look(run.advance(nonfinite=True))[1]
        if decision.kind is Kind.act:
            break
    assert decision.change is not None
    assert decision.change.set["lr_scale"].value == pytest.approx(1e-6 / 1.1e-6)
