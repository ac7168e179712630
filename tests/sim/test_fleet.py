"""A small seeded fleet under the shipped guard: what must not happen to healthy runs, and what must to broken ones.

The figures in docs/guard.md come from the large fleets of bench/guard; this holds the same code to the same seeds.
"""

from functools import cache

import pytest

from controlplane.policy import Policy, load
from controlplane.sim.course import Course
from controlplane.sim.fleet import HARMLESS, Story, broken, play


@cache
def guard() -> Policy:
    return load("guard")


def test_healthy_runs_are_left_alone() -> None:
    for seed in range(6):
        story = play(Course.draw(seed), guard(), steps=500)
        assert story.rollbacks == story.changes == 0, (seed, [each.decision.reason for each in story.told])


def fate(kind: str, seed: int, after: int = 200) -> Story:
    return broken(kind, seed, guard(), after)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("kind", "within"), [("LR fault", 25), ("NaN burst", 3), ("slow collapse", 80)])
def test_a_run_that_breaks_is_rolled_back_in_time_and_recovers(kind: str, within: int, seed: int) -> None:
    story = fate(kind, seed)
    assert story.rollbacks >= 1
    back = next(each for each in story.heard if each.rolls_back)
    assert story.onset is not None
    assert back.executed - story.onset < within
    assert story.recovered


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("truncation explosion", "truncation"),
        ("entropy collapse", "weak-signs"),
        ("generator stall", "stalled"),
        ("metric loss", "stale"),
    ],
)
def test_a_person_hears_of_what_no_rule_may_mend(kind: str, rule: str) -> None:
    assert any((each.decision.rule or "").startswith(rule) for each in fate(kind, 1).heard)


@pytest.mark.parametrize("kind", HARMLESS)
def test_faults_of_the_surroundings_change_nothing(kind: str) -> None:
    story = fate(kind, 2)
    assert story.rollbacks == story.changes == 0
