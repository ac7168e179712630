"""All generators as one: implements `Generator` for rollouts and for evaluation, over engines that come, hang and die.

    Collector, evaluate --submit/poll--> PoolLane --Book: which groups are where--> engines (Fleet: which there should be)
    WeightSync ---------publish--------> every engine that lives; back when all of them have confirmed

    what happens                                   deadline        what follows
    an engine dies, or answers with an error       at once         its groups begin again elsewhere, whole; a new one is started
    it does not answer, or makes no token          hang            the same, after it was killed
    it does not confirm new weights                load            the same
    it is slow                                     none            it gets less: groups go where most slots are free
    it comes up                                    start           takes the newest weights, then work
    fewer are wanted                               drain           it finishes what it has; then its groups begin again elsewhere
    fewer than `min` can be had                    start, budget   NoGenerators: the run ends

One thread uses it and nothing here blocks: answers of engines arrive in a mailbox, and every poll empties it. What an engine
says counts only while it is a member. So a group is handed over exactly once, whatever arrives late or twice.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from trainer.cluster.engine import LANES, Harvest, Invitation, Lane, Loaded, Weights, WeightsFile
from trainer.cluster.fleet import Fleet, NoGenerators, Tell, silent
from trainer.cluster.lane import Book
from trainer.cluster.member import Member
from trainer.cluster.settings import ClusterSpec
from trainer.rollout.collector import Requests
from trainer.types import Group, GroupRequest, Version

BEAT = 0.5
"""Seconds after which an engine answers even if nothing is new."""
PATIENCE = 0.01
"""Seconds that a poll waits for an answer when there is none; a signal is heard in between."""
LOOK = 0.1
"""Seconds between two looks at deadlines and at the number of engines."""


class Pool:
    """Owns the fleet. Two views of it, `rollouts` and `evaluation`, are what the rest of the trainer uses."""

    def __init__(
        self,
        fleet: Fleet,
        spec: ClusterSpec,
        slots: Mapping[Lane, int],
        samples: Mapping[Lane, int],
        clock: Callable[[], float] = time.monotonic,
        tell: Tell = silent,
    ) -> None:
        """`slots`: of each engine, by lane. `samples`: completions of a group, by lane."""
        self.books = {lane: Book(lane, samples[lane]) for lane in LANES}
        self.rollouts, self.evaluation = (PoolLane(self, self.books[lane]) for lane in LANES)
        self._fleet, self._limits = fleet, spec.deadlines
        self._slots = slots
        self._ahead = {lane: spec.generators.ahead * samples[lane] for lane in LANES}
        self._clock, self._tell = clock, tell
        self._mail: SimpleQueue[tuple[Callable[[Member, Future[Any]], None], Member, Future[Any]]] = SimpleQueue()
        self.stopping: Callable[[], object] = lambda: False
        """Whether the run was told to stop; an evaluation that no generator works on is then given up."""
        self._newest: tuple[Callable[[], Weights], Version] | None = None
        self._look_at = -1.0

    @property
    def live(self) -> int:
        """Engines that sample."""
        return len(self._fleet.alive("live", "draining"))

    @property
    def busy(self) -> float:
        """Seconds that the engines of now have spent on tokens."""
        return sum(member.busy for member in self._fleet.members.values())

    def turn(self, patience: float = 0.0) -> None:
        """Take what has arrived, look at deadlines when it is time, and hand out groups. Waits at most `patience` seconds.

        Raises:
            NoGenerators: there are too few, and no hope for more.
        """
        for _ in range(self._mail.qsize()):
            self._open(*self._mail.get())
            patience = 0.0
        if self._clock() >= self._look_at:
            self._look()
        self._hand_out()
        if patience > 0:
            try:
                self._open(*self._mail.get(timeout=patience))
            except Empty:
                return
            self._hand_out()

    def publish(self, weights: Weights, version: Version) -> None:
        """Give new weights to all engines; back when every one that samples has confirmed them or is lost.

        One that comes up later takes the newest weights before it samples.
        """
        self._newest = (lambda: weights), version
        for member in self._fleet.alive("joining", "live", "draining"):
            self._load(member, weights, version)
        self._until_confirmed()

    @property
    def sampling(self) -> Sequence[str]:
        """Names of the engines that sample."""
        return [member.engine.name for member in self._fleet.alive("live", "draining")]

    def broadcast(self, invited: Mapping[str, Invitation], version: Version, file: Callable[[], WeightsFile]) -> None:
        """Let engines take weights that are being sent to them; back when every one of them has confirmed them or is lost.

        All others take `file`, which is called only when the sending is over.
        """
        self._newest = None
        for member in self._fleet.alive("live", "draining"):
            if member.engine.name in invited:
                self._load(member, invited[member.engine.name], version)
        self._until_confirmed()
        self._compare([member for member in self._fleet.alive("live", "draining") if member.engine.name in invited])
        self._newest = file, version
        for member in self._fleet.alive("joining", "live", "draining"):
            if member.engine.name not in invited:
                self._load(member, file(), version)
        self._until_confirmed()

    def _compare(self, members: Sequence[Member]) -> None:
        """Engines that hold other weights than most of the others are lost; all are where no side has the most."""
        proofs = Counter(member.proof for member in members).most_common(2)
        if len(proofs) < 2:
            return
        right = proofs[0][0] if proofs[0][1] > proofs[1][1] else None
        for member in members:
            if member.proof != right:
                self._lost(member, "holds other weights than the others after a broadcast")

    def _until_confirmed(self) -> None:
        while any(member.loading for member in self._fleet.alive("live", "draining")):
            self.turn(PATIENCE)

    def abort(self, book: Book) -> int:
        """Forget the groups of a lane, here and in every engine; returns the tokens thrown away."""
        if book.idle:
            return 0
        dropped = book.begin_round()
        answers = {
            member.engine.name: member.engine.abort(book.lane, book.round)
            for member in self._fleet.alive("joining", "live", "draining")
        }
        deadline = self._clock() + self._limits.abort
        while any(not future.done() and name in self._fleet.members for name, future in answers.items()):
            if self._clock() > deadline:
                for name, future in answers.items():
                    if not future.done() and name in self._fleet.members:
                        self._lost(self._fleet.members[name], f"did not forget its groups in {self._limits.abort:g} s")
                break
            self.turn(PATIENCE)
        counted = sum(future.result() for future in answers.values() if future.done() and not future.exception())
        return counted + sum(len(completion.tokens) for group in dropped for completion in group.completions)

    def withdraw(self) -> None:
        """Let nothing wait for devices until the next turn."""
        self._fleet.withdraw()

    def close(self) -> None:
        """End every engine."""
        self._fleet.close()

    # Mail

    def _expect(self, open: Callable[[Member, "Future[Any]"], None], member: Member, future: "Future[Any]") -> None:
        future.add_done_callback(lambda done: self._mail.put((open, member, done)))

    def _open(self, open: Callable[[Member, "Future[Any]"], None], member: Member, future: "Future[Any]") -> None:
        """One answer, if its sender still counts."""
        if self._fleet.members.get(member.engine.name) is member:
            open(member, future)

    def _checked(self, member: Member, future: "Future[Any]") -> None:
        if error := future.exception():
            self._lost(member, _words(error))

    def _came_up(self, member: Member, future: "Future[Any]") -> None:
        if error := future.exception():
            self._lost(member, f"did not come up: {_words(error)}")
            return
        member.where = future.result() or {}
        member.enter("joining", self._clock())
        member.begins_with(self._slots)
        self._ask(member)
        if self._newest is not None:
            weights, version = self._newest
            self._load(member, weights(), version)

    def _harvested(self, member: Member, future: "Future[Harvest]") -> None:
        if error := future.exception():
            self._lost(member, _words(error))
            return
        harvest = future.result()
        for lane, round, group in harvest.groups:
            if len(group.completions) != group.request.n:
                self._lost(member, f"gave {len(group.completions)} of the {group.request.n} completions of a group")
                return
            self.books[lane].deliver(member.engine.name, round, group)
        member.said(harvest)
        if harvest.stalled > self._limits.hang:
            self._lost(member, f"made no token for {harvest.stalled:.0f} s")
            return
        self._offer(member)
        self._ask(member)

    def _loaded(self, version: Version, digest: str | None, member: Member, future: "Future[Loaded]") -> None:
        if member.loading is not future:
            return  # it has newer ones to take; the file of these may be gone
        if error := future.exception():
            self._lost(member, f"did not take weights version {version.n}: {_words(error)}")
            return
        loaded = future.result()
        if digest is None:
            digest = member.proof = loaded.digest
        if loaded != Loaded(version, digest):
            self._lost(member, f"confirmed weights {loaded.version.n}, not {version.n}, or another digest")
            return
        member.loading, member.version = None, version
        if member.state == "joining":
            member.enter("live", self._clock())
            self._tell("generator_joined", name=member.engine.name, version=version.n, **member.where)
        self._offer(member)

    # What goes out

    def _ask(self, member: Member) -> None:
        member.asked_at = self._clock()
        self._expect(self._harvested, member, member.engine.collect(BEAT))

    def _load(self, member: Member, weights: Weights, version: Version) -> None:
        digest = _expected(weights)
        member.load_asked_at = self._clock()
        member.loading = member.engine.load(weights, version)
        self._expect(partial(self._loaded, version, digest), member, member.loading)

    def _offer(self, member: Member) -> None:
        for lane, book in self.books.items():
            if member.state == "live":
                book.openings.set(member.engine.name, member.free(lane, self._ahead[lane]))
            else:
                book.openings.remove(member.engine.name)

    def _hand_out(self) -> None:
        for lane, book in self.books.items():
            for name, requests in book.assign().items():
                member = self._fleet.members[name]
                member.sent(lane, sum(request.n for request in requests))
                self._expect(self._checked, member, member.engine.submit(lane, book.round, requests))

    # Deadlines

    def _look(self) -> None:
        now = self._clock()
        self._look_at = now + LOOK
        for member in self._fleet.alive("joining", "live", "draining"):
            if reason := self._overdue(member, now):
                self._lost(member, reason)
            elif member.state == "draining":
                self._drain(member, now)
        for member in self._fleet.tick(now):
            self._expect(self._came_up, member, member.engine.ready)
        for member in self._fleet.alive("live", "draining"):
            self._offer(member)

    def _overdue(self, member: Member, now: float) -> str:
        limits = self._limits
        if member.asked_at is not None and now - member.asked_at > BEAT + limits.hang:
            return f"did not answer for {limits.hang:g} s"
        if member.loading is not None and now - member.load_asked_at > limits.load:
            return f"did not confirm new weights within {limits.load:g} s"
        return ""

    def _drain(self, member: Member, now: float) -> None:
        name = member.engine.name
        if any(book.load_of(name) for book in self.books.values()) and now - member.since <= self._limits.drain:
            return
        self._fleet.remove(member)
        self._tell("generator_left", name=name, groups=self._give_back(name))

    def _lost(self, member: Member, reason: str) -> None:
        groups = self._give_back(member.engine.name)
        self._fleet.lost(member, reason, self._clock(), groups=groups)

    def _give_back(self, name: str) -> int:
        return sum(book.give_back(name) for book in self.books.values())


class PoolLane:
    """Implements `Generator`, and can be put back to what was under way: the same groups, begun again."""

    def __init__(self, pool: Pool, book: Book) -> None:
        self._pool, self._book = pool, book

    @property
    def inflight(self) -> int:
        return self._book.completions

    @property
    def room(self) -> int:
        return max(0, self._book.openings.room - self._book.waiting_completions)

    def submit(self, request: GroupRequest) -> None:
        self._book.submit(request)

    def poll(self) -> list[Group]:
        self._pool.turn(0.0 if self._book.finished else PATIENCE)
        if self._book.lane == "evaluation" and not self._pool.live and self._pool.stopping():
            raise NoGenerators("it was told to stop while an evaluation waited for a generator")
        return self._book.take()

    def load(self, weights: Mapping[str, Any], version: Version) -> None:
        self._pool.publish(weights, version)

    def abort(self) -> int:
        return self._pool.abort(self._book)

    def snapshot(self) -> Requests:
        """The groups under way. Their tokens are not part of it: what is put back begins again."""
        return Requests(self._book.requests)

    def restore(self, snapshot: Sequence[GroupRequest]) -> None:
        """Only the groups of a snapshot are under way."""
        self.abort()
        for request in snapshot:
            self.submit(request)


def _expected(weights: Weights) -> str | None:
    """The digest that an engine has to confirm; None where only the engines can know it."""
    if isinstance(weights, WeightsFile):
        return weights.digest
    return None if isinstance(weights, Invitation) else ""


def _words(error: BaseException) -> str:
    """The first line of an error, which for a remote one is the one worth reading."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
