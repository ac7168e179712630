"""Engines of a few lines that do what a test tells them: finish, fail, fall silent, answer late."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from trainer.cluster.engine import Harvest, Lane, Loaded, Weights
from trainer.cluster.fleet import Fleet
from trainer.cluster.pool import Pool
from trainer.cluster.settings import ClusterSpec
from trainer.types import Completion, Group, GroupRequest, Prompt, Sampling, Span, Version

SAMPLES = 2


class Clock:
    """Time goes on a little whenever somebody looks."""

    def __init__(self, step: float = 0.01) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class FakeEngine:
    def __init__(self, name: str, slots: int = 4, comes_up: bool = True, placed: bool = True) -> None:
        self.name, self.needs, self.slots = name, "1 CPU", slots
        self.ready: Future[Mapping[str, Any] | None] = Future()
        self.held: list[tuple[Lane, int, GroupRequest]] = []
        self.rounds: dict[Lane, int] = {"rollout": 0, "evaluation": 0}
        self.version: Version | None = None
        self.confirms, self.forgets, self.is_placed = True, True, placed
        self.killed = False
        self.seen = 0
        self.stalled = 0.0
        self.waiting: Future[Harvest] | None = None
        self.most = 0
        if comes_up:
            self.ready.set_result(None)

    def placed(self) -> bool:
        return self.is_placed

    def submit(self, lane: Lane, round: int, requests: Sequence[GroupRequest]) -> "Future[Any]":
        assert not self.killed
        self.seen += 1
        if round >= self.rounds[lane]:
            self.held += [(lane, round, request) for request in requests]
        self.most = max(self.most, sum(r.n for of, _, r in self.held if of == "rollout"))
        return done(None)

    def collect(self, wait: float) -> "Future[Harvest]":
        assert not self.killed
        self.waiting = Future()
        return self.waiting

    def load(self, weights: Weights, version: Version) -> "Future[Loaded]":
        assert not self.killed
        if not self.confirms:
            return Future()
        self.version = version
        return done(Loaded(version, ""))

    def abort(self, lane: Lane, round: int) -> "Future[int]":
        if not self.forgets:
            return Future()
        self.rounds[lane] = round
        gone = [entry for entry in self.held if entry[0] == lane]
        self.held = [entry for entry in self.held if entry[0] != lane]
        self.say()  # there is room again
        return done(len(gone))

    def kill(self) -> None:
        self.killed = True

    # What a test does to it

    def say(self, groups: Sequence[tuple[Lane, int, Group]] = ()) -> None:
        """Answer the harvest that was asked for, if there is one."""
        if self.waiting is None or self.waiting.done():
            return
        room: dict[Lane, int] = {
            lane: self.slots - sum(request.n for of, _, request in self.held if of == lane) for lane in self.rounds
        }
        self.waiting.set_result(Harvest(groups, room, self.seen, self.stalled, 0.0))

    def finish(self, number: int = 1_000_000) -> None:
        """Finish the oldest groups and say so."""
        if self.waiting is None or self.waiting.done():
            return
        finished, self.held = self.held[:number], self.held[number:]
        self.say([(lane, round, group(request)) for lane, round, request in finished])

    def die(self) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_exception(RuntimeError("the process has died"))


class Workshop:
    """Launches fake engines and remembers all of them."""

    def __init__(self, **keys: Any) -> None:
        self.engines: list[FakeEngine] = []
        self.keys = keys

    def __call__(self, name: str) -> FakeEngine:
        assert name not in {engine.name for engine in self.engines}
        self.engines.append(FakeEngine(name, **self.keys))
        return self.engines[-1]

    @property
    def alive(self) -> list[FakeEngine]:
        return [engine for engine in self.engines if not engine.killed]


def done(value: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def request(id: int, n: int = SAMPLES) -> GroupRequest:
    return GroupRequest(id, Prompt(id, str(id), (id,)), n, Sampling(1.0, 4, 0), seed=id)


def group(of: GroupRequest, n: int | None = None) -> Group:
    completion = Completion((1, 2), (-0.5, -0.5), (True, True), (Span(Version(0, 0), 2),), "stop", False, 0.0)
    return Group(of, (completion,) * (of.n if n is None else n))


def spec(**keys: Any) -> ClusterSpec:
    usual = {
        "generators": {"min": 1, "max": 3},
        "restarts": {"limit": 100, "first_wait": 0.0},
        "deadlines": {"start": 50, "hang": 20, "load": 20, "abort": 20, "drain": 100},
    }
    return ClusterSpec.model_validate({key: {**usual.get(key, {}), **keys.get(key, {})} for key in {*usual, *keys}})


def pool(
    workshop: Workshop,
    of: ClusterSpec | None = None,
    wanted: Callable[[], int] = lambda: 99,
    clock: Clock | None = None,
) -> tuple[Pool, list[dict[str, Any]]]:
    """A pool over fake engines, with weights published, and the list of its events."""
    events: list[dict[str, Any]] = []

    def tell(event: str, /, **fields: Any) -> None:
        events.append({"event": event, **fields})

    of, slots = of or spec(), workshop.keys.get("slots", 4)
    fleet = Fleet(workshop, of, wanted, tell)
    both: dict[Any, int] = {"rollout": slots, "evaluation": slots}
    made = Pool(fleet, of, both, {"rollout": SAMPLES, "evaluation": SAMPLES}, clock or Clock(), tell)
    made.publish({}, Version(0, 0))
    for _ in range(5):
        made.turn()
    return made, events
