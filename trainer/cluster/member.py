"""One engine in the fleet: its state, what it was asked and when, and how many slots it has free."""

from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.cluster.engine import LANES, Engine, Harvest, Lane, Loaded
from trainer.types import Version

State = Literal["starting", "joining", "live", "draining"]


@dataclass(eq=False)
class Member:
    """Changed by fleet and pool alone."""

    engine: Engine
    slot: int
    since: float
    """When it came into its state."""
    state: State = "starting"
    placed_at: float | None = None
    """When it was first seen with its devices."""
    where: Mapping[str, Any] = field(default_factory=dict)
    """Process and machine, for people."""
    asked_at: float | None = None
    """When it was last asked for a harvest; None while it is not."""
    loading: "Future[Loaded] | None" = None
    """Answer to the newest weights that it was told to take; None when it has confirmed them."""
    load_asked_at: float = 0.0
    version: Version | None = None
    """Version that it has confirmed last."""
    proof: str = ""
    """Digest of the weights that it holds, where it was asked for."""
    busy: float = 0.0
    """Seconds it has spent on tokens."""
    submits: int = 0
    _unseen: "deque[tuple[int, Lane, int]]" = field(default_factory=deque)
    _room: "Counter[Lane]" = field(default_factory=Counter)

    def enter(self, state: State, now: float) -> None:
        """It is in another state from now on."""
        self.state, self.since = state, now

    def begins_with(self, slots: Mapping[Lane, int]) -> None:
        """It is empty."""
        self._room = Counter(slots)

    def sent(self, lane: Lane, completions: int) -> None:
        """Groups were submitted; its room does not know of them yet."""
        self.submits += 1
        self._unseen.append((self.submits, lane, completions))

    def said(self, harvest: Harvest) -> None:
        """What it has room for, as it says itself."""
        while self._unseen and self._unseen[0][0] <= harvest.seen:
            self._unseen.popleft()
        self._room = Counter({lane: harvest.room.get(lane, 0) for lane in LANES})
        self.busy = harvest.busy

    def free(self, lane: Lane, ahead: int) -> int:
        """Completions that may be submitted, `ahead` of them to queue inside the engine."""
        return self._room[lane] + ahead - sum(n for _, of, n in self._unseen if of == lane)
