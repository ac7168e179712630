"""The staleness bound and progress of the rollout buffer under random schedules, in both off-policy modes."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.rollout.admission import Admission, Load, Phases, Pipeline
from trainer.rollout.buffer import RolloutBuffer, renamed, staleness
from trainer.rollout.collector import Rename
from trainer.types import Completion, Group, GroupRequest, Item, Prompt, Sampling, ScoredGroup, Span, Verdict, Version

PROMPT = Prompt(0, "", (1,), "")
MODES = pytest.mark.parametrize("admission", [Pipeline(), Phases()], ids=lambda mode: type(mode).__name__)


def group(request_id: int, item: Item, oldest: Version, newest: Version | None = None) -> ScoredGroup:
    spans = (Span(oldest, 1), Span(newest or oldest, 1))
    completion = Completion((1, 2), (0.0, 0.0), (True, True), spans, "stop", False, 0.0)
    return ScoredGroup(
        item, Group(GroupRequest(request_id, PROMPT, 1, Sampling(1, 1, 0)), (completion,)), (Verdict(1, True),)
    )


class World:
    """A generator of random speed and a learner, around one buffer."""

    def __init__(self, admission: Admission | None = None, slots: int = 10**9) -> None:
        self.admission = admission or Pipeline()
        self.buffer = RolloutBuffer(self.admission)
        self.slots = slots
        self.now = Version(0, 0)
        self.running: dict[int, tuple[Item, Version]] = {}
        self.issued = 0
        self.trained: list[Item] = []

    def admit(self, k: int, batch: int) -> None:
        for _ in range(min(self.buffer.free(self.now, k, batch), self.slots - len(self.running))):
            item = Item(0, self.issued)
            self.buffer.admit(self.issued, item, self.now)
            self.running[self.issued] = (item, self.now)
            self.issued += 1

    def finish(self, pick: int) -> None:
        if self.running:
            request = sorted(self.running)[pick % len(self.running)]
            item, since = self.running.pop(request)
            self.buffer.finish(request, group(request, item, since, self.now))

    def train(self, k: int, batch: int, skipped: bool = False) -> bool:
        taken = self.buffer.take(self.now, k, batch)
        if taken is None or not taken.batch:
            return False
        assert len(taken.batch) == batch
        for scored in taken.batch:
            assert staleness(scored.group.oldest, self.now) <= self.admission.bound(k) <= k
        self.trained += [scored.item for scored in taken.batch]
        if not skipped:
            self.now = Version(self.now.branch, self.now.n + 1)
        self.buffer.release()
        return True


versions = st.lists(st.integers(0, 6), max_size=25)


@settings(max_examples=300, deadline=None)
@given(running=versions, ready=versions, k=st.integers(0, 4), batch=st.integers(1, 8), held=st.integers(0, 3))
def test_counting_versions_decides_as_looking_at_every_group_would(
    running: list[int], ready: list[int], k: int, batch: int, held: int
) -> None:
    load = Load(6, Counter(running), Counter(ready), held, k, batch)
    rest = sorted([*sorted(ready)[batch:], *running])
    in_time = all(since + k >= 6 + 1 + place // batch for place, since in enumerate(rest))
    assert Pipeline().serves(load) == (len(ready) >= batch and (not running or in_time))
    assert load.groups == len(running) + len(ready)
    assert [since for since, groups in load.left() for _ in range(groups)] == rest
    filling = all(since == 6 for since in (*running, *ready))
    wanted = max(1, k) * batch if filling else batch
    assert Phases().free(load) == (0 if held else max(0, wanted - len(running) - len(ready)))


def test_a_group_older_than_its_admission_is_not_handed_out_on_trust() -> None:
    buffer, now = RolloutBuffer(), Version(0, 5)
    for number, oldest in enumerate((Version(0, 5), Version(0, 1))):  # the second one breaks what generators promise
        buffer.admit(number, Item(0, number), now)
        buffer.finish(number, group(number, Item(0, number), oldest, now))
    first = buffer.take(now, 2, 2)
    assert first is not None
    assert (len(first.batch), [scored.item for scored in first.stale]) == (0, [Item(0, 1)])
    second = buffer.take(now, 2, 1)
    assert second is not None
    assert [scored.item for scored in second.batch] == [Item(0, 0)]


schedules = st.lists(
    st.tuples(
        st.integers(0, 50),
        st.sampled_from(["finish", "finish", "train", "train", "skip", "admit", "tune", "error"]),
        st.integers(0, 4),
        st.integers(1, 5),
    ),
    max_size=200,
)


@MODES
@settings(max_examples=150, deadline=None)
@given(schedule=schedules, slots=st.integers(1, 30))
def test_nothing_older_than_k_reaches_the_learner_and_it_never_deadlocks(
    admission: Admission, schedule: list[tuple[int, str, int, int]], slots: int
) -> None:
    world, k, batch = World(admission, slots), 2, 3
    for pick, move, new_k, new_batch in schedule:
        if move == "admit":
            world.admit(k, batch)
        elif move == "finish":
            world.finish(pick)
        elif move == "error" and world.running:
            request = sorted(world.running)[pick % len(world.running)]
            assert world.buffer.drop(request) == world.running.pop(request)[0]
        elif move in ("train", "skip"):
            world.train(k, batch, skipped=move == "skip")
        elif move == "tune":
            k, batch = new_k, new_batch  # grows and shrinks at any time
        world.buffer.counts(world.now, k, batch)
    assert len(set(world.trained)) == len(world.trained)
    for _ in range(3):  # from any state a fair schedule trains again and again
        for _ in range(1000):
            world.admit(k, batch)
            if world.train(k, batch):
                break
            world.finish(0)
        else:
            raise AssertionError("deadlock")


@MODES
@settings(max_examples=100, deadline=None)
@given(k=st.integers(0, 4), batch=st.integers(1, 5), slots=st.integers(1, 30), picks=st.lists(st.integers(0, 60)))
def test_without_a_change_of_settings_no_group_is_ever_too_old(
    admission: Admission, k: int, batch: int, slots: int, picks: list[int]
) -> None:
    world = World(admission, slots)
    for pick in picks:
        world.admit(k, batch)
        world.finish(pick)
        taken_before = len(world.trained)
        world.train(k, batch)
        done = len(world.trained) + world.buffer.occupied
        assert done == world.issued, f"a group was dropped after {taken_before} trained"


@settings(max_examples=50, deadline=None)
@given(k=st.integers(0, 4), batch=st.integers(1, 4), slots=st.integers(1, 20), picks=st.lists(st.integers(0, 60)))
def test_a_phase_is_k_batches_of_one_policy_and_admits_nothing_while_it_is_trained(
    k: int, batch: int, slots: int, picks: list[int]
) -> None:
    world, updates = World(Phases(), slots), max(1, k)
    for phase in range(4):
        while world.buffer.free(world.now, k, batch):
            world.admit(k, batch)
            assert not world.train(k, batch)  # the whole phase is generated first
            world.finish(picks.pop() if picks else 0)
        while world.running:
            assert not world.train(k, batch)
            world.finish(picks.pop() if picks else 0)
        assert world.issued == (phase + 1) * updates * batch
        for update in range(updates):
            assert world.now.n == phase * updates + update
            assert {entry.since.n for entry in world.buffer._ready} == {phase * updates}
            assert world.train(k, batch)
            assert (world.buffer.free(world.now, k, batch) == 0) == (update < updates - 1)
    assert len(world.trained) == world.issued


def test_a_phase_whose_batch_grew_is_completed_with_groups_of_the_version_in_force() -> None:
    world = World(Phases())
    world.admit(k=3, batch=2)
    while world.running:
        world.finish(0)
    assert world.train(3, 2)
    assert world.buffer.free(world.now, 3, 3) == 0  # 4 groups left, enough for a batch of 3
    assert world.train(3, 3)
    world.admit(3, 3)
    assert [version.n for _, version in world.running.values()] == [2, 2]  # 1 left, 2 more under the version in force
    world.finish(0)
    assert not world.train(3, 3)
    world.finish(0)
    assert world.train(3, 3)
    assert world.buffer.free(world.now, 3, 3) == 9  # and a new phase begins


def test_a_phase_whose_batch_or_k_shrank_drops_what_gets_too_old() -> None:
    world = World(Phases())
    world.admit(k=4, batch=2)
    while world.running:
        world.finish(0)
    assert world.train(4, 2)
    assert world.train(2, 2)  # one step behind is still inside a phase of two
    taken = world.buffer.take(world.now, 2, 2)
    assert taken is not None
    assert (len(taken.batch), len(taken.stale)) == (0, 4)
    assert world.buffer.free(world.now, 2, 2) == 4


def test_capacity_follows_the_current_settings_and_shrinking_admits_nothing_until_it_fits() -> None:
    world = World()
    world.admit(k=3, batch=4)
    assert world.issued == 16
    assert world.buffer.free(world.now, 0, 4) == 0
    for _ in range(16):
        world.finish(0)
    while world.train(3, 4):
        pass
    assert world.buffer.free(world.now, 0, 4) == 4


def test_a_slot_is_held_until_the_weights_are_published() -> None:
    buffer = RolloutBuffer()
    for index in range(2):
        buffer.admit(index, Item(0, index), Version(0, 0))
        buffer.finish(index, group(index, Item(0, index), Version(0, 0)))
    taken = buffer.take(Version(0, 0), 0, 2)
    assert taken is not None
    assert len(taken.batch) == 2
    assert buffer.free(Version(0, 0), 0, 2) == 0
    buffer.release()
    assert buffer.free(Version(0, 0), 0, 2) == 2


def test_a_stale_group_is_dropped_and_its_prompt_comes_back() -> None:
    buffer = RolloutBuffer()
    for index, version in enumerate((Version(0, 0), Version(0, 5))):
        buffer.admit(index, Item(0, index), version)
        buffer.finish(index, group(index, Item(0, index), version))
    taken = buffer.take(Version(0, 5), 4, 1)
    assert taken is not None
    assert [scored.item for scored in taken.stale] == [Item(0, 0)]
    assert [scored.item for scored in taken.batch] == [Item(0, 1)]


def test_a_group_of_another_branch_is_never_fresh() -> None:
    buffer = RolloutBuffer()
    buffer.admit(0, Item(0, 0), Version(0, 7))
    buffer.finish(0, group(0, Item(0, 0), Version(0, 7)))
    taken = buffer.take(Version(1, 7), 8, 1)
    assert taken is not None
    assert taken.batch == ()
    assert [scored.item for scored in taken.stale] == [Item(0, 0)]


def test_flush_returns_every_prompt_that_was_not_trained() -> None:
    buffer = RolloutBuffer()
    for index in range(3):
        buffer.admit(index, Item(0, index), Version(0, 0))
    buffer.finish(1, group(1, Item(0, 1), Version(0, 0)))
    running, ready = buffer.flush()
    assert running == [Item(0, 0), Item(0, 2)]
    assert [scored.item for scored in ready] == [Item(0, 1)]
    assert buffer.occupied == 0
    with pytest.raises(KeyError):
        buffer.item(0)


@MODES
@settings(max_examples=50, deadline=None)
@given(schedule=st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["finish", "train", "admit"])), max_size=60))
def test_a_restored_buffer_decides_as_the_first_one_did_under_any_name_of_its_versions(
    admission: Admission, schedule: list[tuple[int, str]]
) -> None:
    world, k, batch = World(admission), 2, 3
    for pick, move in schedule:
        if move == "admit":
            world.admit(k, batch)
        elif move == "finish":
            world.finish(pick)
        else:
            world.train(k, batch)
    rename = Rename(world.now, Version(3, 1000))
    copied = RolloutBuffer(admission)
    copied.restore(world.buffer.snapshot(), rename)
    then = rename(world.now)
    for _ in range(20):
        one, other = world.buffer.take(world.now, k, batch), copied.take(then, k, batch)
        assert (one is None) == (other is None)
        if one and other:
            assert [s.item for s in one.batch] == [s.item for s in other.batch]
            for mine, theirs in zip(one.batch, other.batch, strict=True):
                assert renamed(mine.group, rename) == theirs.group
                assert staleness(mine.group.oldest, world.now) == staleness(theirs.group.oldest, then)
        world.buffer.release()
        copied.release()
        assert world.buffer.counts(world.now, k, batch) == copied.counts(then, k, batch)
        if world.running:
            request = min(world.running)
            item, since = world.running.pop(request)
            scored = group(request, item, since, world.now)
            world.buffer.finish(request, scored)
            copied.finish(request, ScoredGroup(item, renamed(scored.group, rename), scored.verdicts))


def test_a_fork_on_the_same_branch_renames_what_was_sampled_before_it_and_nothing_after() -> None:
    first, second = Rename(Version(0, 4), Version(0, 9)), Rename(Version(0, 12), Version(0, 20))
    assert [first(Version(0, n)).n for n in (2, 4, 9, 11)] == [7, 9, 9, 11]
    assert [second(first(Version(0, n))).n for n in (4, 9, 12, 20, 21)] == [17, 17, 20, 20, 21]
