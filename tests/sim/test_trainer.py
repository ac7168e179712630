import math
import random
import time
from pathlib import Path
from typing import Any

import pytest

from controlplane.agent import read_key
from controlplane.contract.documents import AckState, Action, Desired, Health, Observed, Setting, Target
from controlplane.contract.rundir import RunDir, write_atomic
from controlplane.sim import Fault, SimTrainer, lr_fault, nan, stall
from controlplane.sim.learner import passes


@pytest.fixture
def make(tmp_path: Path):  # type: ignore[no-untyped-def]
    made: list[SimTrainer] = []

    def start(seed: int = 0, *faults: Fault, **options: Any) -> SimTrainer:
        sim = SimTrainer(RunDir(tmp_path / str(len(made))), seed, faults, **options)
        made.append(sim)
        return sim

    yield start
    for sim in made:
        sim.close()


def advance(sim: SimTrainer, to: int) -> None:
    while sim.step_number < to:
        assert sim.step()


def rundir(sim: SimTrainer) -> RunDir:
    return sim.agent._rundir


def observed(sim: SimTrainer) -> Observed:
    return Observed.model_validate_json(rundir(sim).observed.read_bytes())


def send(sim: SimTrainer, **changes: Any) -> None:
    seen = observed(sim)
    document = Desired(
        **{
            "run_uid": seen.run_uid,
            "incarnation": seen.incarnation,
            "epoch": 1,
            "generation": seen.applied_generation + 1,
            "base_generation": seen.applied_generation,
            "decision_id": f"d{seen.applied_generation + 1}",
            "issued_at": 0.0,
            "expires_at_step": 10_000,
            "reason": "because",
            **changes,
        }
    )
    write_atomic(rundir(sim).desired, document.signed(read_key(rundir(sim))).model_dump_json())


def test_the_same_seed_gives_the_same_run(make) -> None:  # type: ignore[no-untyped-def]
    def text(seed: int) -> str:
        sim = make(seed, lr_fault(30, 10), nan(20), planned_steps=60)
        sim.run()
        lines = sim.agent.store.text().splitlines()
        return "\n".join(line for line in lines if "incarnation" not in line and "rl_run_info" not in line)

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_a_healthy_run_learns_proves_its_checkpoints_and_ends(make) -> None:  # type: ignore[no-untyped-def]
    sim = make(planned_steps=120)
    before = sim.skill.pass_ratio
    sim.run()
    assert before < 0.15
    assert sim.skill.pass_ratio > 0.85
    assert sim.step_number == 120
    assert not sim.step()
    assert [checkpoint.step for checkpoint in sim.checkpoints if checkpoint.health is Health.good][-1] == 100
    assert observed(sim).step == 120


def test_a_tenth_of_the_rate_learns_slower(make) -> None:  # type: ignore[no-untyped-def]
    slow = make(0, lr_fault(1, 0.1, steps=1000))
    advance(slow, 100)
    assert 0.3 < slow.skill.pass_ratio < 0.6


def test_a_rate_above_the_cliff_collapses_the_policy_and_waiting_does_not_help(make) -> None:  # type: ignore[no-untyped-def]
    sim = make(0, lr_fault(61, 10), planned_steps=200)
    advance(sim, 60)
    assert sim.skill.pass_ratio > 0.8
    truncated, norm = sim.skill.truncated_ratio, sim.skill.grad_norm(1.0, sim._rng)
    advance(sim, 65)
    assert sim.skill.pass_ratio < 0.35
    advance(sim, 80)
    assert sim.skill.pass_ratio < 0.05
    assert sim.skill.truncated_ratio > truncated + 0.5
    assert sim.skill.grad_norm(1.0, sim._rng) > 2 * norm
    advance(sim, 140)
    assert sim.skill.pass_ratio < 0.1
    assert all(checkpoint.health is not Health.good for checkpoint in sim.checkpoints if checkpoint.step > 60)


def test_a_rollback_recovers_at_once(make) -> None:  # type: ignore[no-untyped-def]
    sim = make(0, lr_fault(61, 10))
    advance(sim, 72)
    good = [checkpoint for checkpoint in observed(sim).checkpoints if checkpoint.health is Health.good][-1]
    target = Target(step=good.step, digest=good.digest)
    compute = sim.compute
    send(sim, action=Action.rollback, target=target, set={"lr_scale": Setting(scale=0.5)})
    sim.step()
    assert sim.branch == 1
    assert sim.step_number == good.step
    assert sim.compute < compute
    assert sim.values["lr_scale"] == 0.5
    advance(sim, good.step + 30)
    assert sim.skill.pass_ratio > 0.8
    assert observed(sim).branch == 1
    ack = observed(sim).last_ack
    assert ack is not None
    assert ack.state is AckState.applied


def test_lr_scale_below_the_cliff_prevents_the_collapse(make) -> None:  # type: ignore[no-untyped-def]
    sim = make(0, lr_fault(61, 6))
    advance(sim, 60)
    send(sim, set={"lr_scale": Setting(value=0.5)})
    advance(sim, 80)
    assert sim.skill.damage == pytest.approx(0.0, abs=0.2)


def test_pause_holds_the_run_until_resume_and_stop_ends_it(make) -> None:  # type: ignore[no-untyped-def]
    sim = make()
    advance(sim, 5)
    send(sim, action=Action.pause)
    sim.step()
    at, now = sim.step_number, sim.now
    for _ in range(3):
        assert sim.step()
    assert (sim.step_number, sim.now) == (at, now + 3)
    send(sim, action=Action.resume)
    sim.step()
    sim.step()
    assert sim.step_number == at + 1
    send(sim, action=Action.stop)
    assert not sim.step()


def test_a_nan_step_is_skipped_and_counted(make) -> None:  # type: ignore[no-untyped-def]
    sim = make(0, nan(5))
    advance(sim, 4)
    skill = sim.skill
    advance(sim, 5)
    assert sim.skill == skill
    text = sim.agent.store.text()
    assert 'rl_trainer_nonfinite_total{quantity="grad"} 1.0' in text
    assert 'rl_trainer_skipped_steps_total{reason="nonfinite"} 1.0' in text
    assert "rl_trainer_grad_norm NaN" in text


def test_a_stall_costs_virtual_time_only(make) -> None:  # type: ignore[no-untyped-def]
    sim = make(0, stall(5, 3600))
    advance(sim, 4)
    virtual, real = sim.now, time.monotonic()
    advance(sim, 5)
    assert sim.now - virtual > 3600
    assert time.monotonic() - real < 60


def test_a_batch_is_noisier_than_its_size_says(make) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(0)
    ratios = [sum(passes(0.5, 16, 8, rng)) / 128 for _ in range(2000)]
    mean = sum(ratios) / len(ratios)
    deviation = math.sqrt(sum((ratio - mean) ** 2 for ratio in ratios) / len(ratios))
    assert mean == pytest.approx(0.5, abs=0.01)
    # A design effect of 1 + 7 x .33 = 3.3, so 1.8 times the binomial deviation.
    assert deviation == pytest.approx(1.82 * math.sqrt(0.25 / 128), rel=0.1)
