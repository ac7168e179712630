"""Which groups are where: one lane's book. A group is in one place at any time - waiting, in one engine, or handed over - and whole.

submit -> waiting --assign--> in an engine --deliver--> finished --take--> handed over
             ^                      |
             +----- give back ------+   the engine is lost: the group begins again, in front of the others
"""

import heapq
from collections import deque
from collections.abc import Sequence

from trainer.cluster.engine import Lane
from trainer.types import Group, GroupRequest


class Openings:
    """Free slots of the engines that take work, the roomiest first."""

    def __init__(self, samples: int) -> None:
        """`samples`: completions of a group as this lane usually has them, for `room`."""
        self.room = 0
        """Completions of whole groups that could start at once."""
        self._samples = samples
        self._free: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []

    def set(self, name: str, free: int) -> None:
        """An engine has `free` slots now."""
        self.remove(name)
        self._free[name] = free
        self.room += self._whole(free)
        heapq.heappush(self._heap, (-free, name))
        if len(self._heap) > 4 * len(self._free) + 16:  # what was said before and never came up
            self._heap = [(-free, name) for name, free in self._free.items()]
            heapq.heapify(self._heap)

    def remove(self, name: str) -> None:
        """An engine takes no more work."""
        free = self._free.pop(name, None)
        if free is not None:
            self.room -= self._whole(free)

    def take(self, n: int) -> str | None:
        """An engine for `n` completions, which it has `n` slots less for afterwards; None when nobody has so many."""
        while self._heap:
            free, name = -self._heap[0][0], self._heap[0][1]
            if self._free.get(name) != free:
                heapq.heappop(self._heap)  # said before it changed
                continue
            if free < n:
                return None
            heapq.heappop(self._heap)
            self.set(name, free - n)
            return name
        return None

    def _whole(self, free: int) -> int:
        return max(0, free // self._samples) * self._samples


class Book:
    """The groups of one lane. `round` grows with every abort, so that what an engine still had is known as old."""

    def __init__(self, lane: Lane, samples: int) -> None:
        self.lane = lane
        self.round = 0
        self.openings = Openings(samples)
        self.waiting_completions = 0
        self.completions = 0
        """Of all groups that are not finished."""
        self.late = 0
        """Groups from engines that nobody waits for any more: of an old round, or begun again elsewhere."""
        self._waiting: deque[GroupRequest] = deque()
        self._requests: dict[int, GroupRequest] = {}
        self._engine: dict[int, str] = {}
        self._of: dict[str, set[int]] = {}
        self._finished: list[Group] = []

    @property
    def finished(self) -> int:
        """Groups that wait to be taken."""
        return len(self._finished)

    @property
    def idle(self) -> bool:
        """Nothing is under way or finished."""
        return not self._requests and not self._finished

    @property
    def requests(self) -> tuple[GroupRequest, ...]:
        """Every group that is not finished, in the order in which they were submitted."""
        return tuple(self._requests.values())

    def load_of(self, engine: str) -> int:
        """Groups that an engine has."""
        return len(self._of.get(engine, ()))

    def submit(self, request: GroupRequest) -> None:
        """A new group; its id must not be that of one that is under way."""
        if request.id in self._requests:
            raise ValueError(f"group {request.id} is under way already")
        self._requests[request.id] = request
        self._waiting.append(request)
        self.waiting_completions += request.n
        self.completions += request.n

    def assign(self) -> dict[str, list[GroupRequest]]:
        """Give waiting groups to engines with room, the oldest first; who gets what."""
        given: dict[str, list[GroupRequest]] = {}
        while self._waiting:
            request = self._waiting[0]
            name = self.openings.take(request.n)
            if name is None:
                break
            self._waiting.popleft()
            self.waiting_completions -= request.n
            self._engine[request.id] = name
            self._of.setdefault(name, set()).add(request.id)
            given.setdefault(name, []).append(request)
        return given

    def give_back(self, engine: str) -> int:
        """An engine is lost: its groups wait again, before the others. Returns their number."""
        self.openings.remove(engine)
        lost = [self._requests[id] for id in sorted(self._of.pop(engine, ()))]
        for request in reversed(lost):
            del self._engine[request.id]
            self._waiting.appendleft(request)
            self.waiting_completions += request.n
        return len(lost)

    def deliver(self, engine: str, round: int, group: Group) -> bool:
        """A group came from an engine; whether it counts."""
        id = group.request.id
        if round != self.round or self._engine.get(id) != engine:
            self.late += 1
            return False
        del self._requests[id], self._engine[id]
        self._of[engine].discard(id)
        self.completions -= group.request.n
        self._finished.append(group)
        return True

    def take(self) -> list[Group]:
        """The finished groups, each once."""
        finished, self._finished = self._finished, []
        return finished

    def begin_round(self) -> Sequence[Group]:
        """Forget everything; returns the groups that were finished and not taken."""
        self.round += 1
        for state in (self._waiting, self._requests, self._engine, self._of):
            state.clear()
        self.waiting_completions = self.completions = 0
        return self.take()
