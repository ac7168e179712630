"""The staleness bound and progress of the rollout buffer under random schedules."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.rollout.buffer import RolloutBuffer, staleness
from trainer.types import Completion, Group, GroupRequest, Item, Prompt, Sampling, ScoredGroup, Span, Verdict, Version

PROMPT = Prompt(0, "", (1,), "")


def group(request_id: int, item: Item, oldest: Version, newest: Version | None = None) -> ScoredGroup:
    spans = (Span(oldest, 1), Span(newest or oldest, 1))
    completion = Completion((1, 2), (0.0, 0.0), (True, True), spans, "stop", False, 0.0)
    return ScoredGroup(
        item, Group(GroupRequest(request_id, PROMPT, 1, Sampling(1, 1, 0)), (completion,)), (Verdict(1, True),)
    )


class World:
    """A generator of random speed and a learner, around one buffer."""

    def __init__(self) -> None:
        self.buffer = RolloutBuffer()
        self.now = Version(0, 0)
        self.running: dict[int, tuple[Item, Version]] = {}
        self.issued = 0
        self.trained: list[Item] = []

    def admit(self, k: int, batch: int) -> None:
        while self.buffer.free(k, batch) > 0:
            item = Item(0, self.issued)
            self.buffer.admit(self.issued, item, self.now)
            self.running[self.issued] = (item, self.now)
            self.issued += 1

    def finish(self, pick: int) -> None:
        if self.running:
            request = sorted(self.running)[pick % len(self.running)]
            item, since = self.running.pop(request)
            self.buffer.finish(request, group(request, item, since, self.now))

    def train(self, k: int, batch: int) -> bool:
        taken = self.buffer.take(self.now, k, batch)
        if taken is None or not taken.batch:
            return False
        assert len(taken.batch) == batch
        for scored in taken.batch:
            assert staleness(scored.group.oldest, self.now) <= k
        self.trained += [scored.item for scored in taken.batch]
        self.now = Version(self.now.branch, self.now.n + 1)
        self.buffer.release()
        return True


schedules = st.lists(
    st.tuples(
        st.integers(0, 50), st.sampled_from(["finish", "train", "admit", "tune"]), st.integers(0, 4), st.integers(1, 5)
    ),
    max_size=200,
)


@settings(max_examples=150, deadline=None)
@given(schedules)
def test_nothing_older_than_k_reaches_the_learner_and_it_never_deadlocks(
    schedule: list[tuple[int, str, int, int]],
) -> None:
    world, k, batch = World(), 2, 3
    for pick, move, new_k, new_batch in schedule:
        if move == "admit":
            world.admit(k, batch)
        elif move == "finish":
            world.finish(pick)
        elif move == "train":
            world.train(k, batch)
        else:
            k, batch = new_k, new_batch  # grows and shrinks at any time
        world.buffer.counts(k, batch)
    assert len(set(world.trained)) == len(world.trained)
    for _ in range(1000):  # a fair schedule from any state trains again
        world.admit(k, batch)
        if world.train(k, batch):
            return
        world.finish(0)
    raise AssertionError("deadlock")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 4), st.integers(1, 5), st.lists(st.integers(0, 60), max_size=300))
def test_without_a_change_of_settings_no_group_is_ever_too_old(k: int, batch: int, picks: list[int]) -> None:
    world = World()
    for pick in picks:
        world.admit(k, batch)
        world.finish(pick)
        taken_before = len(world.trained)
        world.train(k, batch)
        done = len(world.trained) + world.buffer.occupied
        assert done == world.issued, f"a group was dropped after {taken_before} trained"


def test_capacity_follows_the_current_settings_and_shrinking_admits_nothing_until_it_fits() -> None:
    world = World()
    world.admit(k=3, batch=4)
    assert world.issued == 16
    assert world.buffer.free(0, 4) == 0
    for _ in range(16):
        world.finish(0)
    while world.train(3, 4):
        pass
    assert world.buffer.free(0, 4) == 4


def test_a_slot_is_held_until_the_weights_are_published() -> None:
    buffer = RolloutBuffer()
    for index in range(2):
        buffer.admit(index, Item(0, index), Version(0, 0))
        buffer.finish(index, group(index, Item(0, index), Version(0, 0)))
    taken = buffer.take(Version(0, 0), 0, 2)
    assert taken is not None
    assert len(taken.batch) == 2
    assert buffer.free(0, 2) == 0
    buffer.release()
    assert buffer.free(0, 2) == 2


def test_a_stale_group_is_dropped_and_its_prompt_comes_back() -> None:
    buffer = RolloutBuffer()
    for index, version in enumerate((Version(0, 0), Version(0, 5))):
        buffer.admit(index, Item(0, index), version)
        buffer.finish(index, group(index, Item(0, index), version))
    taken = buffer.take(Version(0, 5), 4, 1)
    assert taken is not None
    assert taken.stale == (Item(0, 0),)
    assert [scored.item for scored in taken.batch] == [Item(0, 1)]


def test_a_group_of_another_branch_is_never_fresh() -> None:
    buffer = RolloutBuffer()
    buffer.admit(0, Item(0, 0), Version(0, 7))
    buffer.finish(0, group(0, Item(0, 0), Version(0, 7)))
    taken = buffer.take(Version(1, 7), 8, 1)
    assert taken is not None
    assert (taken.batch, taken.stale) == ((), (Item(0, 0),))


def test_flush_returns_every_prompt_that_was_not_trained() -> None:
    buffer = RolloutBuffer()
    for index in range(3):
        buffer.admit(index, Item(0, index), Version(0, 0))
    buffer.finish(1, group(1, Item(0, 1), Version(0, 0)))
    assert sorted(buffer.flush()) == [Item(0, 0), Item(0, 1), Item(0, 2)]
    assert buffer.occupied == 0
    with pytest.raises(KeyError):
        buffer.item(0)
