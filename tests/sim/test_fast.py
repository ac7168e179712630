import math

import numpy as np
import pytest

from controlplane.decide import Kind
from controlplane.policy import load
from controlplane.sim import faults as make
from controlplane.sim.body import Body
from controlplane.sim.course import Course
from controlplane.sim.fast import FastRun
from controlplane.sim.fleet import DRAWS, Story, play, wilson
from controlplane.sim.learner import Law, Skill
from controlplane.sim.noise import Levels, Noise, arcsine
from controlplane.snapshot import Snapshot


def looks(run: FastRun, steps: int) -> list[Snapshot]:
    seen: list[Snapshot] = []
    while run.executed < steps and (new := run.advance()):
        seen += new
    return seen


def test_the_same_seed_gives_the_same_looks_and_another_gives_others() -> None:
    def metrics(seed: int) -> list[dict[str, float]]:
        return [snapshot.metrics for snapshot in looks(FastRun(Course.draw(seed, 300)), 50)]

    assert metrics(1) == metrics(1)
    assert metrics(1) != metrics(2)


def test_a_healthy_course_follows_its_law() -> None:
    for seed in range(6):
        course = Course.draw(seed, 400)
        run = FastRun(course)
        looks(run, 400)
        assert run.step == 400
        assert run.advance() == []
        assert course.law.r0 < run.body.pass_ratio < course.law.a
        assert run.body.skill.damage == 0.0
        assert [each.health.value for each in run.checkpoints].count("good") >= 2


def test_snapshots_are_what_a_controller_may_be_given() -> None:
    for snapshot in looks(FastRun(Course.draw(3, 120), [make.nan(40, 3), make.metric_loss(60, 2000)]), 90):
        assert Snapshot.model_validate_json(snapshot.model_dump_json()).model_dump_json() == snapshot.model_dump_json()


def test_noise_is_as_wide_as_its_level_says() -> None:
    rng = np.random.default_rng(0)
    levels = Levels.draw(rng)
    noise = Noise.draw(levels, 40_000, rng)
    for name in ("pass_rate", "truncation", "gen_length", "entropy", "held_out"):
        assert np.std(getattr(noise, name)) == pytest.approx(1.0, abs=0.05), name
    ratios = [arcsine(0.3, z, 2.5, 256) for z in noise.truncation]
    assert np.mean(ratios) == pytest.approx(0.3, abs=0.01)
    assert np.std(ratios) == pytest.approx(math.sqrt(2.5 * 0.21 / 256), rel=0.05)
    assert all(0 <= arcsine(0.001, z, 6, 128) <= 1 for z in noise.truncation)


def test_each_injury_shows_where_it_should() -> None:
    well = Body(Skill(200.0, 0.0, Law(c_mid=100.0)))

    def hurt(fault: make.Fault, steps: int = 60) -> Body:
        body = well
        for _ in range(steps):
            body = body.after(1.0, 16, [fault])
        return body

    strained = hurt(make.slow_collapse(1, 0.05))
    assert strained.mismatch > 5
    assert strained.pass_ratio < 0.8 * well.pass_ratio
    cut = hurt(make.truncation_explosion(1, 0.1))
    assert cut.truncated > 0.3
    assert cut.length > 1.5
    assert cut.grad_norm(1.0) < 0.8
    assert hurt(make.length_explosion(1, 0.05)).length == pytest.approx(math.exp(3.0))
    assert hurt(make.entropy_collapse(1, 0.05)).entropy < 0.1
    hacked = hurt(make.reward_hacking(1, 0.05))
    assert hacked.pass_ratio > 0.9
    assert hacked.held_out < 0.6 * well.held_out
    burnt = hurt(make.lr_fault(1, 1.0), 10).after(10.0, 16).after(10.0, 16)
    assert burnt.skill.damage > 0.4


def test_a_lower_rate_stops_a_slow_collapse_and_a_rollback_undoes_it() -> None:
    body = Body()
    for _ in range(50):
        body = body.after(0.5, 16, [make.slow_collapse(1, 0.1)])
    assert body.strain == 0.0


def test_faults_of_the_surroundings_touch_the_looks_and_not_the_run() -> None:
    plain = FastRun(Course.draw(5, 200))
    for fault in (make.metric_loss(60, 5000), make.clock_jump(60, -3000)):
        run = FastRun(Course.draw(5, 200), [fault])
        seen, unseen = looks(run, 100), looks(plain, 100)
        assert run.body == plain.body
        assert any(a != b for a, b in zip(seen[50:], unseen[50:], strict=True))
        plain = FastRun(Course.draw(5, 200))


def test_a_stall_is_looked_at_while_it_lasts() -> None:
    run = FastRun(Course.draw(5, 200), [make.stall(30, 3600)])
    before = len(looks(run, 29))
    during = run.advance()
    assert before == 29
    assert len(during) >= 60
    assert during[-2].at - during[0].at > 3400


def test_a_restart_goes_on_from_the_newest_checkpoint_as_another_incarnation() -> None:
    run = FastRun(Course.draw(5, 200), [make.restart(80)])
    before, after = looks(run, 79)[-1], looks(run, 80)[-1]
    assert before.observed is not None
    assert after.observed is not None
    assert after.observed.incarnation != before.observed.incarnation
    assert after.observed.step < before.observed.step


def test_a_stale_checkpoint_fault_ends_the_writing() -> None:
    run = FastRun(Course.draw(5, 400), [make.stale_checkpoint(100)])
    looks(run, 300)
    assert run.checkpoints[-1].step < 100


def test_a_rollback_is_carried_out_within_the_rails_and_leaves_the_fault_behind() -> None:
    acted: list[str] = []
    story: Story = play(
        Course.draw(7),
        load("demo"),
        [make.lr_fault(400, 12, steps=60)],
        steps=560,
        watch=lambda run, snapshot, decision: acted.append(decision.reason) if decision.kind is Kind.act else None,
    )
    assert story.onset == 400
    assert story.rollbacks == len(acted) == 1
    assert story.recovered
    assert story.heard[0].decision.rule == "collapse"


def test_every_kind_of_fault_can_be_drawn() -> None:
    kinds = {draw(np.random.default_rng(1), 300).kind for draw in DRAWS.values()}
    assert len(kinds) == len(DRAWS) == 12


def test_the_interval_of_a_proportion_is_wilsons() -> None:
    assert wilson(0, 2000) == pytest.approx((0.0, 0.00192), abs=2e-5)
    assert wilson(10, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)
