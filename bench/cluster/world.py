"""A world around the real driver: generators and learner ranks that only take time, and a clock that leaves the waiting out.

    now = seconds that the driver waited (skipped, not slept) + CPU seconds that the driver worked (really)

So a driver that is too slow is late here as it would be there: while it works, engines finish, and what they have to say
piles up. What the world itself costs (its events, its made-up tokens) is measured and taken off. Everything happens in one
thread and in one order; engines answer through the mailbox of the real pool.

What crosses a process in a real cluster is pickled and unpickled here: harvests on the way in, the batch on the way to the
learner. That is the driver's work too, and for long completions most of it.
"""

import heapq
import itertools
import pickle
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import Empty
from typing import Any

from trainer.cluster.engine import Harvest, Lane, Loaded, Weights, WeightsFile
from trainer.types import Completion, Group, GroupRequest, Span, Version


class World:
    """Virtual time, and what is to happen in it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._skipped, self._own, self._charged = 0.0, 0.0, 0.0
        self._frozen: float | None = None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    @property
    def driver(self) -> float:
        """CPU seconds that the driver has worked."""
        worked = time.thread_time() if self._frozen is None else self._frozen
        return worked - self._own + self._charged

    def now(self) -> float:
        """Virtual seconds."""
        return self._skipped + self.driver

    @contextmanager
    def mine(self) -> Iterator[None]:
        """What happens inside costs the driver nothing: its time stands still."""
        if self._frozen is not None:
            yield
            return
        self._frozen = time.thread_time()
        try:
            yield
        finally:
            self._own += time.thread_time() - self._frozen
            self._frozen = None

    def charge(self, seconds: float) -> None:
        """CPU time that the driver would have spent, though it was measured inside `mine`."""
        self._charged += seconds

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Something will happen."""
        heapq.heappush(self._events, (self.now() + seconds, next(self._count), event))

    def happen(self) -> None:
        """Everything that is due."""
        while self._events and self._events[0][0] <= self.now():
            heapq.heappop(self._events)[2]()

    def wait(self, until: float) -> bool:
        """Go on to the next event, at most to `until`; whether there was one."""
        if not self._events or self._events[0][0] > until:
            self._skipped += max(0.0, until - self.now())
            return False
        self._skipped += max(0.0, self._events[0][0] - self.now())
        self.happen()
        return True


class Mail:
    """Stands where the pool has its SimpleQueue: who waits for it lets time pass instead."""

    def __init__(self, world: World) -> None:
        self._world, self._items = world, deque[Any]()

    def put(self, item: Any) -> None:
        self._items.append(item)

    def qsize(self) -> int:
        with self._world.mine():
            self._world.happen()
        return len(self._items)

    def get(self, timeout: float | None = None) -> Any:
        if not self._items:
            with self._world.mine():
                until = self._world.now() + (timeout or 0.0)
                while not self._items and self._world.wait(until):
                    pass
        if not self._items:
            raise Empty
        return self._items.popleft()


class Executor:
    """Stands where the stepper has its thread: the learner's step takes virtual time and ends by an event."""

    def __init__(self, world: World, seconds: Callable[[], float]) -> None:
        self._world, self._seconds = world, seconds
        self.sent = 0
        """Bytes of the last batch."""
        self.handing_over = 0.0
        """CPU seconds that pickling it took; one copy goes to every machine by itself."""

    def submit(self, step: Callable[..., Any], *args: Any) -> "Future[Any]":
        began = time.thread_time()
        self.sent = len(pickle.dumps(args, protocol=5))
        self.handing_over = time.thread_time() - began
        future: Future[Any] = Future()
        with self._world.mine():
            self._world.after(self._seconds(), lambda: future.set_result(step(*args)))
        return future

    def shutdown(self, **_: Any) -> None:
        pass


@dataclass(frozen=True)
class Speed:
    """How long things take, in seconds."""

    token: float
    """One decoding step of an engine."""
    start: float = 90.0
    load: float = 2.0
    abort: float = 0.5
    call: float = 0.002
    """Any message, one way."""


class Tokens:
    """Pickled completions to take from: distinct objects come out each time, as they would from another process."""

    def __init__(self, world: World, samples: int, mean: int, spread: float, longest: int, kinds: int) -> None:
        self._groups = []
        for _ in range(kinds):
            lengths = [length(world.random, mean, spread, longest) for _ in range(samples)]
            completions = tuple(made(world.random, n) for n in lengths)
            self._groups.append((max(lengths), pickle.dumps(completions, protocol=5)))
        self._random = world.random

    def pick(self) -> tuple[int, bytes]:
        """Tokens of the longest completion of a group, and the group's completions."""
        return self._random.choice(self._groups)


def length(random: random.Random, mean: int, spread: float, longest: int) -> int:
    """Tokens of a completion: log-normal, cut at the limit."""
    return max(1, min(longest, round(mean * random.lognormvariate(-spread * spread / 2, spread))))


def made(random: random.Random, n: int) -> Completion:
    """Made-up tokens."""
    tokens = tuple(random.randrange(1000, 150_000) for _ in range(n))
    logprobs = tuple(-random.random() for _ in range(n))
    return Completion(tokens, logprobs, (True,) * n, (Span(Version(0, 0), n),), "stop", False, 1.0)


class SimulatedEngine:
    """Implements `Engine`: a queue, slots, and groups that take as long as their longest completion."""

    def __init__(self, name: str, world: World, speed: Speed, tokens: Tokens, slots: int) -> None:
        self.name, self.needs = name, "nothing"
        self.ready: Future[Any] = Future()
        self.dead = False
        self._world, self._speed, self._tokens, self._slots = world, speed, tokens, slots
        self._free, self._seen, self._round = slots, 0, 0
        self._queue: deque[GroupRequest] = deque()
        self._done: list[tuple[int, GroupRequest, bytes, Version]] = []
        self._asked: Future[Harvest] | None = None
        self._version = Version(0, 0)
        self._later(speed.start, lambda: self.ready.set_result(None))

    def placed(self) -> bool:
        return True

    def submit(self, lane: Lane, round: int, requests: Sequence[GroupRequest]) -> "Future[Any]":
        """Evaluation is not simulated: the lane stays empty."""
        with self._world.mine():
            return self._answer(self._speed.call, lambda: self._take(round, requests))

    def collect(self, wait: float) -> "Future[Harvest]":
        with self._world.mine():
            self._asked = asked = Future()
            self._later(self._speed.call if self._done else wait, lambda: self._say(asked))
            return asked

    def load(self, weights: Weights, version: Version) -> "Future[Loaded]":
        digest = weights.digest if isinstance(weights, WeightsFile) else ""

        def loaded() -> Loaded:
            self._version = version
            return Loaded(version, digest)

        with self._world.mine():
            return self._answer(self._speed.load * self._world.random.uniform(0.5, 1.5), loaded)

    def abort(self, lane: Lane, round: int) -> "Future[int]":
        def forget() -> int:
            self._round = round
            self._queue.clear()
            self._done.clear()
            self._free = self._slots
            return 0

        with self._world.mine():
            return self._answer(self._speed.abort, forget)

    def kill(self) -> None:
        self.dead = True

    def die(self) -> None:
        """The process is gone: whoever waits for a harvest hears of it. A call that comes later is never answered: to the driver
        it then hangs, though a real actor's call would fail."""
        self.dead = True
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(RuntimeError("the process has died"))

    # Inside the process

    def _take(self, round: int, requests: Sequence[GroupRequest]) -> None:
        self._seen += 1
        if round >= self._round:
            self._queue.extend(requests)
            self._begin()

    def _begin(self) -> None:
        while self._queue and self._queue[0].n <= self._free:
            request = self._queue.popleft()
            self._free -= request.n
            longest, completions = self._tokens.pick()
            seconds = longest * self._speed.token * self._world.random.uniform(0.8, 1.2)
            since, round = self._version, self._round
            self._later(seconds, lambda r=request, c=completions, v=since, n=round: self._finish(n, r, c, v))

    def _finish(self, round: int, request: GroupRequest, completions: bytes, since: Version) -> None:
        if round != self._round:
            return
        self._free += request.n
        self._done.append((round, request, completions, since))
        self._begin()
        if self._asked is not None:
            self._say(self._asked)

    def _say(self, asked: "Future[Harvest]") -> None:
        """Answer with what is done. Unpickling it is the driver's work."""
        if asked.done():
            return
        done, self._done = self._done, []
        began = time.thread_time()
        arrived = [pickle.loads(completions) for _, _, completions, _ in done]
        unpickling = time.thread_time() - began
        groups = [
            ("rollout", round, Group(request, tuple(self._stamped(c, since) for c in completions)))
            for (round, request, _, since), completions in zip(done, arrived, strict=True)
        ]
        queued = sum(request.n for request in self._queue)
        room: dict[Lane, int] = {"rollout": self._free - queued, "evaluation": 0}
        self._world.charge(unpickling)
        asked.set_result(Harvest(groups, room, self._seen, 0.0, 0.0))

    def _stamped(self, completion: Completion, since: Version) -> Completion:
        """Half of it under the weights that it began with, half under those of now."""
        n, now = len(completion.tokens), self._version
        if since == now or n < 2:
            return replace(completion, spans=(Span(now if since == now else since, n),))
        return replace(completion, spans=(Span(since, n // 2), Span(now, n - n // 2)))

    def _answer(self, seconds: float, value: Callable[[], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        self._later(seconds, lambda: future.set_result(value()))
        return future

    def _later(self, seconds: float, event: Callable[[], None]) -> None:
        self._world.after(seconds, lambda: None if self.dead else event())
