"""Whatever engines do, a group is handed over exactly once and whole, and nothing waits for ever."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.cluster.fakes import SAMPLES, Clock, FakeEngine, Workshop, group, pool, request, spec
from trainer.cluster.engine import Harvest
from trainer.cluster.fleet import NoGenerators
from trainer.rollout.collector import Snapshots
from trainer.types import Version

pytestmark = pytest.mark.usefixtures("no_patience")


def polled(lane: Any, times: int = 3) -> list[int]:
    return [group.request.id for _ in range(times) for group in lane.poll()]


def names(events: list[dict[str, Any]], event: str) -> list[str]:
    return [line["name"] for line in events if line["event"] == event]


def test_groups_go_where_most_slots_are_free_and_no_engine_gets_more_than_it_has_slots_for() -> None:
    workshop = Workshop(slots=4)
    it, _ = pool(workshop)
    assert it.rollouts.room == 12
    for id in range(5):
        it.rollouts.submit(request(id))
    it.turn()
    assert sorted(len(engine.held) for engine in workshop.engines) == [1, 2, 2]
    assert it.rollouts.room == 2
    for id in range(5, 9):
        it.rollouts.submit(request(id))
    it.turn()
    assert [len(engine.held) for engine in workshop.engines] == [2, 2, 2]
    assert it.rollouts.room == 0
    assert it.rollouts.inflight == 9 * SAMPLES
    first = workshop.engines[1].held[0][2].id
    workshop.engines[1].finish(1)
    assert polled(it.rollouts) == [first]
    assert len(workshop.engines[1].held) == 2  # it had room again and got one that waited


def test_a_slow_engine_gets_less_and_loses_nothing() -> None:
    workshop = Workshop(slots=4)
    it, events = pool(workshop)
    slow, *quick = workshop.engines
    given, back = 0, []
    for _ in range(60):
        while it.rollouts.room:
            it.rollouts.submit(request(given))
            given += 1
        it.turn()
        for engine in quick:
            engine.finish()
        back += polled(it.rollouts, 1)
    assert slow.seen <= 2 < 20 < min(engine.seen for engine in quick)
    slow.say()
    for engine in workshop.engines * 2:
        engine.finish()
        back += polled(it.rollouts)
    assert sorted(back) == list(range(given))
    assert names(events, "generator_lost") == []


def test_the_groups_of_a_dead_engine_begin_again_elsewhere_before_others_and_a_new_engine_joins() -> None:
    workshop = Workshop()
    it, events = pool(workshop)
    for id in range(12):
        it.rollouts.submit(request(id))
    it.turn()
    dead = workshop.engines[0]
    lost = [r.id for _, _, r in dead.held]
    assert len(lost) == 2
    dead.die()
    it.turn()
    assert dead.killed
    assert names(events, "generator_lost") == ["g0.1"]
    for engine in workshop.alive:
        engine.finish()
    it.turn()
    elsewhere = [r.id for engine in workshop.alive for _, _, r in engine.held]
    assert set(elsewhere) == {*lost, 6, 7}
    for _ in range(20):
        it.turn()
    assert names(events, "generator_joined")[-1] == "g0.2"


def test_what_an_engine_says_after_it_was_given_up_is_not_heard() -> None:
    workshop, clock = Workshop(), Clock()
    it, events = pool(workshop, clock=clock)
    it.rollouts.submit(request(0))
    it.turn()
    silent = next(engine for engine in workshop.engines if engine.held)
    for engine in workshop.engines:
        if engine is not silent:
            engine.say()
    clock.now += 21
    for engine in workshop.engines:
        if engine is not silent:
            engine.say()
    it.turn()
    assert silent.killed
    assert [e["reason"] for e in events if e["event"] == "generator_lost"] == ["did not answer for 20 s"]
    silent.finish()
    it.turn()
    assert it.rollouts.poll() == []
    now = next(engine for engine in workshop.alive if engine.held)
    now.finish()
    assert polled(it.rollouts) == [0]


def test_an_engine_that_answers_but_makes_no_token_is_given_up() -> None:
    workshop = Workshop()
    it, events = pool(workshop)
    workshop.engines[0].stalled = 21.0
    workshop.engines[0].say()
    it.turn()
    assert [e["reason"] for e in events if e["event"] == "generator_lost"] == ["made no token for 21 s"]


def test_a_driver_that_was_busy_for_long_gives_nobody_up_who_has_answered() -> None:
    workshop, clock = Workshop(), Clock()
    it, events = pool(workshop, clock=clock)
    for engine in workshop.engines:
        engine.say()
    clock.now += 10_000
    it.turn()
    it.turn()
    assert names(events, "generator_lost") == []


def test_half_a_group_is_never_handed_over() -> None:
    workshop = Workshop()
    it, events = pool(workshop)
    it.rollouts.submit(request(0))
    it.turn()
    engine = next(engine for engine in workshop.engines if engine.held)
    lane, round, of = engine.held[0]
    engine.say([(lane, round, group(of, 1))])
    assert polled(it.rollouts) == []
    assert "gave 1 of the 2 completions" in next(e["reason"] for e in events if e["event"] == "generator_lost")


def test_a_publication_returns_when_all_that_live_have_confirmed_and_who_does_not_is_given_up() -> None:
    workshop = Workshop()
    it, events = pool(workshop)
    workshop.engines[1].confirms = False
    it.publish({}, Version(0, 1))
    assert [engine.version for engine in workshop.alive if engine.name.endswith(".1")] == [Version(0, 1)] * 2
    assert names(events, "generator_lost") == ["g1.1"]
    for _ in range(20):
        it.turn()
    assert {engine.version for engine in workshop.alive} == {Version(0, 1)}  # the new one took them when it came up


def test_an_abort_forgets_everything_and_what_comes_of_it_later_is_not_heard() -> None:
    workshop = Workshop()
    it, _ = pool(workshop)
    for id in range(6):
        it.rollouts.submit(request(id))
    it.evaluation.submit(request(0))
    it.turn()
    engine = workshop.engines[0]
    old = [entry for entry in engine.held if entry[0] == "rollout"]
    assert it.rollouts.abort() == 6
    assert (it.rollouts.inflight, it.evaluation.inflight) == (0, SAMPLES)
    for id in range(6):
        it.rollouts.submit(request(id))
    it.turn()
    assert {of.id for _, _, of in old} & {of.id for _, _, of in engine.held}
    engine.say([(lane, round, group(of)) for lane, round, of in old])
    assert polled(it.rollouts) == []
    for each in workshop.engines:
        each.finish()
    assert sorted(polled(it.rollouts)) == list(range(6))
    assert polled(it.evaluation) == [0]


def test_a_group_from_an_engine_that_does_not_have_it_does_not_count() -> None:
    workshop = Workshop()
    it, _ = pool(workshop)
    it.rollouts.submit(request(0))
    it.turn()
    other = next(engine for engine in workshop.engines if not engine.held)
    other.say([("rollout", 0, group(request(0)))])
    assert polled(it.rollouts) == []
    assert it.books["rollout"].late == 1


def test_an_answer_that_was_on_its_way_when_groups_were_submitted_makes_no_room() -> None:
    workshop = Workshop(slots=4)
    it, _ = pool(workshop, wanted=lambda: 1)
    it.rollouts.submit(request(0))
    it.rollouts.submit(request(1))
    it.turn()
    (engine,) = workshop.engines
    engine.waiting.set_result(Harvest((), {"rollout": 4, "evaluation": 4}, 0, 0.0, 0.0))
    it.turn()
    assert it.rollouts.room == 0


def test_an_abort_does_not_wait_for_ever() -> None:
    workshop = Workshop()
    it, events = pool(workshop)
    it.rollouts.submit(request(0))
    it.turn()
    workshop.engines[2].forgets = False
    it.rollouts.abort()
    assert names(events, "generator_lost") == ["g2.1"]


def test_fewer_engines_finish_what_they_have_and_more_come_again() -> None:
    workshop, want = Workshop(), [3]
    it, events = pool(workshop, wanted=lambda: want[0])
    for id in range(6):
        it.rollouts.submit(request(id))
    it.turn()
    want[0] = 1
    for _ in range(30):
        it.turn()
    assert len(workshop.alive) == 3  # all still have groups
    for engine in workshop.engines:
        engine.finish()
    back = polled(it.rollouts, 30)
    assert sorted(back) == list(range(6))
    assert [engine.killed for engine in workshop.engines] == [False, True, True]
    assert names(events, "generator_left") == ["g1.1", "g2.1"]
    want[0] = 2
    for _ in range(30):
        it.turn()
    assert [engine.name for engine in workshop.alive] == ["g0.1", "g1.2"]


def test_an_engine_that_drains_for_too_long_gives_its_groups_back() -> None:
    workshop, want, clock = Workshop(), [2], Clock()
    it, events = pool(workshop, spec(deadlines={"drain": 5}), lambda: want[0], clock)
    for id in range(4):
        it.rollouts.submit(request(id))
    it.turn()
    want[0] = 1
    for _ in range(30):
        it.turn()
        clock.now += 0.5
        for engine in workshop.alive:
            engine.say()
    assert [line["groups"] for line in events if line["event"] == "generator_left"] == [2]
    back = []
    for _ in range(3):
        workshop.engines[0].finish()
        back += polled(it.rollouts)
    assert sorted(back) == list(range(4))


def test_without_devices_the_run_goes_on_with_those_that_have_some_and_ends_when_nobody_has() -> None:
    clock = Clock()
    some = Workshop()
    it, _ = pool(some, spec(generators={"max": 1}), clock=clock)
    assert it.live == 1
    none = Workshop(placed=False, comes_up=False)
    it, _ = pool(none, clock=clock)
    clock.now += 49
    it.turn()
    clock.now += 2
    with pytest.raises(
        NoGenerators, match="0 of at least 1 generators have found devices within 50 s; each needs 1 CPU"
    ):
        it.turn()


def test_generators_that_wait_for_devices_make_way_and_come_back() -> None:
    workshop = Workshop()
    it, events = pool(workshop, spec(restarts={"limit": 0}), lambda: 2)
    workshop.keys = {"placed": False, "comes_up": False}
    workshop.engines[0].die()
    for _ in range(20):
        it.turn()
    assert [engine.name for engine in workshop.alive] == ["g1.1", "g2.1"]
    it.withdraw()
    assert [engine.name for engine in workshop.alive] == ["g1.1"]
    for _ in range(20):
        it.turn()
    assert [engine.name for engine in workshop.alive] == ["g1.1", "g2.2"]
    assert names(events, "generator_lost") == ["g0.1"]


def test_a_run_that_is_told_to_stop_does_not_wait_for_generators_that_never_come() -> None:
    it, _ = pool(Workshop(placed=False, comes_up=False))
    it.evaluation.submit(request(0))
    assert it.evaluation.poll() == []
    it.stopping = lambda: "SIGINT"
    assert it.rollouts.poll() == []  # the loop looks for itself whether it was told
    with pytest.raises(NoGenerators, match="told to stop while an evaluation waited"):
        it.evaluation.poll()


def test_a_place_that_fails_too_often_is_given_up_and_another_is_tried_until_none_is_left() -> None:
    workshop, clock = Workshop(), Clock()
    it, events = pool(workshop, spec(restarts={"limit": 1, "first_wait": 1.0}), lambda: 2, clock)

    def go_on() -> None:
        for _ in range(1000):
            clock.now += 0.2
            it.turn()
            for engine in workshop.alive:
                engine.die()

    with pytest.raises(
        NoGenerators, match=r"only 0 of at least 1 generators .* the last failure: g\d.2: the process has"
    ):
        go_on()
    assert [line["slot"] for line in events if line["event"] == "generator_given_up"] == [0, 1, 2]
    assert Counter(engine.name.split(".")[0] for engine in workshop.engines) == {"g0": 2, "g1": 2, "g2": 2}
    waits = [line["restart_in"] for line in events if line["event"] == "generator_lost"]
    assert sorted({wait for wait in waits if wait is not None}) == [1.0]


def test_what_was_under_way_can_be_put_back() -> None:
    workshop = Workshop()
    it, _ = pool(workshop)
    assert isinstance(it.rollouts, Snapshots)
    for id in range(8):
        it.rollouts.submit(request(id))
    it.turn()
    workshop.engines[0].finish()
    done = polled(it.rollouts)
    kept = it.rollouts.snapshot()
    for engine in workshop.engines:
        engine.finish()
    polled(it.rollouts)
    it.rollouts.restore(kept)
    again = []
    for _ in range(3):
        it.turn()
        for engine in workshop.engines:
            engine.finish()
        again += polled(it.rollouts)
    assert sorted(again) == sorted(set(range(8)) - set(done))


class Fleets(RuleBasedStateMachine):
    """Engines finish, die, fall silent and answer late; people resize, publish and roll back."""

    engine = st.integers(0, 5)

    @initialize(ahead=st.integers(0, 1), limit=st.sampled_from([0, 100]))
    def begin(self, ahead: int, limit: int) -> None:
        self.workshop, self.clock, self.want = Workshop(slots=4), Clock(), 2
        of = spec(generators={"ahead": ahead, "max": 4}, restarts={"limit": 100})
        self.bound = 4 + ahead * SAMPLES
        self.pool, self.events = pool(self.workshop, of, lambda: self.want, self.clock)
        self.open: set[int] = set()
        self.got: Counter[int] = Counter()
        self.next, self.n = 0, 0

    def _pick(self, number: int) -> FakeEngine | None:
        alive = self.workshop.alive
        return alive[number % len(alive)] if alive else None

    def _take(self) -> None:
        for each in self.pool.rollouts.poll():
            assert len(each.completions) == each.request.n
            assert each.request.id in self.open, "aborted, or handed over before"
            self.open.remove(each.request.id)
            self.got[each.request.id] += 1

    @rule(number=st.integers(1, 4))
    def submit(self, number: int) -> None:
        for _ in range(number):
            self.pool.rollouts.submit(request(self.next))
            self.open.add(self.next)
            self.next += 1
        self._take()

    @rule(which=engine, number=st.integers(0, 3))
    def finish(self, which: int, number: int) -> None:
        if engine := self._pick(which):
            engine.finish(number)
        self._take()

    @rule(which=engine)
    def die(self, which: int) -> None:
        if engine := self._pick(which):
            engine.die()
        self._take()

    @rule(which=engine)
    def fall_silent(self, which: int) -> None:
        silent = self._pick(which)
        for engine in self.workshop.alive:
            if engine is not silent:
                engine.say()
        self._take()
        self.clock.now += 21
        for engine in self.workshop.alive:
            if engine is not silent:
                engine.say()
        self._take()

    @rule(which=engine)
    def answer_late(self, which: int) -> None:
        dead = [engine for engine in self.workshop.engines if engine.killed]
        if dead:
            dead[which % len(dead)].finish()
        self._take()

    @rule(number=st.integers(0, 5))
    def resize(self, number: int) -> None:
        self.want = number
        self._take()

    @rule(which=engine, confirms=st.booleans())
    def publish(self, which: int, confirms: bool) -> None:
        self.n += 1
        stubborn = self._pick(which)
        if stubborn:
            stubborn.confirms = confirms
        self.pool.publish({}, Version(0, self.n))
        states = self.pool._fleet.alive("live", "draining")
        assert all(member.engine.version == Version(0, self.n) for member in states)

    @rule()
    def abort(self) -> None:
        self.pool.rollouts.abort()
        self.open.clear()
        self._take()

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if hasattr(self, "pool"):
            book = self.pool.books["rollout"]
            under_way = {each.id for each in book.requests} | {each.request.id for each in book._finished}
            assert under_way == self.open
            assert all(engine.most <= self.bound for engine in self.workshop.engines)

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.want = 3
        for _ in range(200):
            for engine in self.workshop.alive:
                engine.confirms = True
                engine.finish()
            self._take()
        assert self.open == set()
        assert max(self.got.values(), default=1) == 1


TestFleets = Fleets.TestCase
TestFleets.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
