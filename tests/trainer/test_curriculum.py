"""Each prompt is trained exactly once per epoch, through drops, crashes, resumes and rollbacks."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.rollout.curriculum import Curriculum, Replay
from trainer.types import Item

N = 7


def fresh() -> Curriculum:
    return Curriculum(N, seed=1, threshold=0.9, min_samples=10**9)


moves = st.lists(
    st.tuples(st.sampled_from(["issue", "done", "done", "drop", "save", "crash", "rollback"]), st.integers(0, 99)),
    max_size=150,
)


@pytest.mark.parametrize("replay", ["skip", "same", "reshuffle"])
@settings(max_examples=100, deadline=None)
@given(schedule=moves)
def test_every_prompt_is_trained_exactly_once_per_epoch_whatever_happens(
    replay: Replay, schedule: list[tuple[str, int]]
) -> None:
    curriculum = fresh()
    flight: list[Item] = []
    branch = 0
    lineage: list[Item] = []  # trained by the weights in force, or skipped on purpose by a rollback
    saved: tuple[Any, list[Item]] = (json.dumps(curriculum.state_dict()), [])
    for move, pick in schedule:
        if move == "issue":
            flight.append(curriculum.issue())
        elif move == "done" and flight:
            item = flight.pop(pick % len(flight))
            curriculum.done(item, 1, 1)
            lineage.append(item)
        elif move == "drop" and flight:
            curriculum.requeue([flight.pop(pick % len(flight))])
        elif move == "save":
            saved = (json.dumps(curriculum.state_dict()), list(lineage))
        elif move == "crash":
            curriculum, flight, lineage = fresh(), [], list(saved[1])
            curriculum.load_state_dict(json.loads(saved[0]))
        elif move == "rollback":
            branch, flight = branch + 1, []
            state, skipped = curriculum.rewound(json.loads(saved[0]), replay, branch)
            if replay == "skip":
                assert sorted(skipped) == sorted(set(lineage) - set(saved[1]))
            else:
                assert skipped == ()
                lineage = list(saved[1])
            curriculum.load_state_dict(state)
            saved = (json.dumps(curriculum.state_dict()), list(lineage))
        assert max(Counter(lineage).values(), default=1) == 1
    for _ in range(3 * N):  # drain: every epoch that is left behind is complete
        flight.append(curriculum.issue())
    while flight:
        item = flight.pop()
        curriculum.done(item, 1, 1)
        lineage.append(item)
    counts = Counter(item.epoch for item in lineage)
    assert all(counts[epoch] == N for epoch in range(curriculum.epoch))
    assert max(Counter(lineage).values()) == 1


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    def epochs(seed: int) -> list[list[int]]:
        curriculum = Curriculum(N, seed, 0.9, 10**9)
        order = [[curriculum.issue().ordinal for _ in range(N)] for _ in range(3)]
        assert all(sorted(epoch) == list(range(N)) for epoch in order)
        return order

    assert epochs(1) == epochs(1) != epochs(2)
    assert epochs(1)[0] != epochs(1)[1]


def test_mastered_prompts_are_left_out_of_later_epochs_but_never_all() -> None:
    curriculum = Curriculum(4, 0, threshold=0.9, min_samples=8)
    for epoch in range(2):
        for item in [curriculum.issue() for _ in range(4)]:
            assert item.epoch == epoch
            curriculum.done(item, 4 if item.ordinal != 2 else 3, 4)
    assert [curriculum.issue() for _ in range(2)] == [Item(2, 2), Item(3, 2)]
    everything = Curriculum(2, 0, 0.9, 1)
    for _ in range(2):
        everything.done(everything.issue(), 1, 1)
    assert {everything.issue().ordinal for _ in range(2)} == {0, 1}


def test_training_a_prompt_twice_in_an_epoch_is_refused() -> None:
    curriculum = fresh()
    item = curriculum.issue()
    curriculum.done(item, 1, 1)
    with pytest.raises(ValueError, match="already trained"):
        curriculum.done(item, 1, 1)


def test_requeued_prompts_come_first() -> None:
    curriculum = fresh()
    first = [curriculum.issue() for _ in range(3)]
    curriculum.requeue(first)
    assert sorted(curriculum.issue() for _ in range(3)) == sorted(first)


def drawn(curriculum: Curriculum, n: int) -> list[Item]:
    return [curriculum.issue() for _ in range(n)]


@pytest.mark.parametrize(("replay", "salt", "alike"), [("skip", 3, True), ("same", 0, True), ("reshuffle", 3, False)])
def test_only_a_reshuffle_changes_the_order_and_only_same_keeps_the_seeds(
    replay: Replay, salt: int, alike: bool
) -> None:
    curriculum = Curriculum(30, 1, 0.9, 10**9)
    for item in drawn(curriculum, 4):
        curriculum.done(item, 1, 1)
    target = json.loads(json.dumps(curriculum.state_dict()))
    onward = curriculum.pending
    state, _ = curriculum.rewound(target, replay, 3)
    curriculum.load_state_dict(json.loads(json.dumps(state)))
    assert curriculum.salt == salt
    assert sorted(curriculum.pending) == sorted(onward)
    assert (curriculum.pending == onward) == alike


def test_what_is_in_flight_is_not_issued_again_where_it_is_known() -> None:
    curriculum = fresh()
    drawn(curriculum, 3)
    pending, state = curriculum.pending, curriculum.state_dict()
    curriculum.load_state_dict(state)
    assert len(curriculum.pending) == N
    curriculum.pending = pending
    assert drawn(curriculum, N - 3) == list(pending)
