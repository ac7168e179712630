"""A generator that never stands still: its tokens are made in a thread of its own, and everybody else leaves notes for it.

    submit, load, abort --jobs--> | decode thread: jobs, then one poll of each lane that has groups | --outbox--> collect

So weights change between two token steps, with the KV cache kept, and nothing that comes from outside waits for a group
to end. Wraps any `Generator`; knows nothing of Ray.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar, runtime_checkable

from trainer.cluster.engine import Harvest, Invitation, Lane, Loaded, Weights, WeightsFile
from trainer.rollout.generator import Generator, LoadsFiles, Meets
from trainer.sync import files
from trainer.types import Group, GroupRequest, Version

T = TypeVar("T")


@runtime_checkable
class Progress(Protocol):
    """A generator whose `poll` may return without a new token, and which counts them: others make one with each poll."""

    @property
    def progress(self) -> int:
        """Tokens so far, or anything else that grows with them."""
        ...


class Decoder:
    """One per process. `submit`, `load` and `abort` are for one thread, `collect` for another."""

    def __init__(self, generators: Mapping[Lane, Generator], samples: int) -> None:
        """The generators share their weights. `samples`: slots that must become free before `collect` says so early."""
        self._generators = generators
        self._samples = samples
        self._changed = threading.Condition()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._outbox: list[tuple[Lane, int, Group]] = []
        self._under_way = dict.fromkeys(generators, 0)
        self._round = dict.fromkeys(generators, 0)
        self._room = {lane: generator.room for lane, generator in generators.items()}
        self._said = dict(self._room)
        self._seen = 0
        self._busy = 0.0
        self._moved = time.monotonic()
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def submit(self, lane: Lane, round: int, requests: Sequence[GroupRequest]) -> None:
        """Queue groups; those of an old round are ignored.

        Raises:
            ValueError: the generator can never make such a group.
        """
        self._do(lambda: self._submit(lane, round, requests)).result()

    def load(self, weights: Weights, version: Version) -> Loaded:
        """Read weights while tokens are made, then change them between two steps.

        Raises:
            WeightsFileError, ValueError: the file is not the one that was meant. The old weights stay.
        """
        generator = self._generators["rollout"]
        if isinstance(weights, Invitation):
            if not isinstance(generator, Meets):
                raise ValueError(f"{type(generator).__name__} takes weights from a file, not from a broadcast")
            invited = weights
            self._do(lambda: generator.meet(invited.group, invited.join, invited.info, version)).result()
            return Loaded(version, self._do(generator.fingerprint).result() if invited.prove else "")
        if isinstance(weights, WeightsFile) and isinstance(generator, LoadsFiles):
            file = weights
            self._do(lambda: generator.load_file(file.path, file.digest, version)).result()
            return Loaded(version, file.digest)
        if isinstance(weights, WeightsFile):
            tensors, digest = files.read(weights.path, weights.digest), weights.digest
        else:
            tensors, digest = weights, ""
        self._do(lambda: generator.load(tensors, version)).result()
        return Loaded(version, digest)

    def abort(self, lane: Lane, round: int) -> int:
        """Forget the groups of a lane; those of rounds below `round` count as forgotten too. Returns the tokens lost."""
        return self._do(lambda: self._abort(lane, round)).result()

    def collect(self, wait: float) -> Harvest:
        """What is new, as soon as there is something, and after `wait` seconds at the latest.

        Raises:
            Exception: that which has ended the decode thread.
        """
        with self._changed:
            self._changed.wait_for(self._has_news, wait)
            if self._error is not None:
                raise self._error
            outbox, self._outbox = self._outbox, []
            self._said = dict(self._room)
            stalled = time.monotonic() - self._moved if any(self._under_way.values()) else 0.0
            return Harvest(outbox, self._said, self._seen, stalled, self._busy)

    def close(self) -> None:
        """End the thread after the step in progress."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _has_news(self) -> bool:
        roomier = any(room - self._said[lane] >= self._samples for lane, room in self._room.items())
        return bool(self._outbox) or roomier or self._error is not None

    def _do(self, job: Callable[[], T]) -> "Future[T]":
        """Let the decode thread do something before its next step."""
        future: Future[T] = Future()
        with self._changed:
            if self._error is not None:
                raise self._error
            self._jobs.append((job, future))
            self._changed.notify_all()
        return future

    # In the decode thread

    def _run(self) -> None:
        try:
            while (jobs := self._next_jobs()) is not None:
                started = time.monotonic()
                for job, future in jobs:
                    _settle(job, future)
                self._moved += time.monotonic() - started  # to take new weights is no stall
                if any(self._under_way.values()):
                    self._step()
                self._look_at_room()
        except BaseException as error:
            with self._changed:
                self._error = error
                for _, future in self._jobs:
                    future.set_exception(error)
                self._changed.notify_all()

    def _next_jobs(self) -> Sequence[tuple[Callable[[], Any], "Future[Any]"]] | None:
        """What to do before the next step; waits while there is neither; None when it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or any(self._under_way.values()) or self._closed)
            jobs, self._jobs = self._jobs, deque()
            return None if self._closed else jobs

    def _step(self) -> None:
        started = time.monotonic()
        finished: list[tuple[Lane, int, Group]] = []
        moved = False
        for lane, generator in self._generators.items():
            if not self._under_way[lane]:
                continue
            before = generator.progress if isinstance(generator, Progress) else 0
            finished += [(lane, self._round[lane], group) for group in generator.poll()]
            moved |= not isinstance(generator, Progress) or generator.progress != before
        ended = time.monotonic()
        with self._changed:
            self._busy += ended - started
            if moved or finished:
                self._moved = ended
            for lane, _, _ in finished:
                self._under_way[lane] -= 1
            self._outbox += finished

    def _look_at_room(self) -> None:
        room = {lane: generator.room for lane, generator in self._generators.items()}
        with self._changed:
            self._room = room
            if self._has_news():
                self._changed.notify_all()

    def _submit(self, lane: Lane, round: int, requests: Sequence[GroupRequest]) -> None:
        with self._changed:
            self._seen += 1
        if round < self._round[lane]:
            return
        self._round[lane] = round
        for request in requests:
            self._generators[lane].submit(request)
        with self._changed:
            if not any(self._under_way.values()):
                self._moved = time.monotonic()
            self._under_way[lane] += len(requests)

    def _abort(self, lane: Lane, round: int) -> int:
        discarded = self._generators[lane].abort()
        with self._changed:
            self._round[lane] = round
            self._under_way[lane] = 0
            gone = [group for of, _, group in self._outbox if of == lane]
            self._outbox = [entry for entry in self._outbox if entry[0] != lane]
        return discarded + sum(len(c.tokens) for group in gone for c in group.completions)


def _settle(job: Callable[[], Any], future: "Future[Any]") -> None:
    try:
        future.set_result(job())
    except Exception as error:
        future.set_exception(error)
