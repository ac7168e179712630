"""Which engines there are, and which there should be: the number that people want, restarts with budget and back-off. No I/O.

    (slot free) --launch--> starting --ready--> joining --weights confirmed--> live --fewer wanted--> draining --> gone
         ^                     |                   |                            |
         +---- back-off -------+------ lost -------+----------------------------+       too often: slot given up

A slot is a place in the fleet, an engine one life in it: `g2.3` is the third engine in slot 2. Slots that are given up are
replaced by others as long as there are any; with fewer than `min` left the run ends.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from trainer.cluster import ClusterFailure
from trainer.cluster.budget import Budget
from trainer.cluster.engine import Engine
from trainer.cluster.member import Member
from trainer.cluster.settings import ClusterSpec


class NoGenerators(ClusterFailure):
    """Too few generators, and no hope for more. One sentence."""


class Tell(Protocol):
    """Takes an event for people."""

    def __call__(self, event: str, /, **fields: Any) -> None: ...


def silent(event: str, /, **fields: Any) -> None:
    """Tells nobody."""


@dataclass
class _Slot:
    budget: Budget
    lives: int = 0
    given_up: bool = False


class Fleet:
    """Holds the members; the pool tells it what became of them."""

    def __init__(
        self, launch: Callable[[str], Engine], spec: ClusterSpec, wanted: Callable[[], int], tell: Tell = silent
    ) -> None:
        """`launch` begins an engine of a name and returns at once; `wanted` says how many there should be now."""
        self.members: dict[str, Member] = {}
        self.lost_in_all = 0
        self._launch, self._spec, self._wanted, self._tell = launch, spec, wanted, tell
        self._slots = [_Slot(Budget(spec.restarts)) for _ in range(spec.generators.max)]
        self._desired = 0
        self._last_failure = "none"

    def alive(self, *states: Literal["starting", "joining", "live", "draining"]) -> list[Member]:
        """The members in any of these states."""
        return [member for member in self.members.values() if member.state in states]

    def tick(self, now: float) -> list[Member]:
        """Bring the fleet towards what is wanted; returns the members that were launched.

        Raises:
            NoGenerators: fewer than `min` slots are worth trying, or none has found devices in time.
        """
        self._want(now)
        self._look_at_starting(now)
        usable = self._usable(now)
        if len(usable) < self._spec.generators.min:
            raise NoGenerators(
                f"only {len(usable)} of at least {self._spec.generators.min} generators are worth another try; "
                f"the last failure: {self._last_failure}"
            )
        return self._resize(usable, now)

    def lost(self, member: Member, reason: str, now: float, **fields: Any) -> None:
        """An engine is not trusted any more: end it, and count the failure of its slot."""
        self.remove(member)
        self.lost_in_all += 1
        slot = self._slots[member.slot]
        slot.budget = slot.budget.after_failure(now)
        self._last_failure = f"{member.engine.name}: {reason}"
        wait = None if slot.budget.spent(now) else max(0.0, slot.budget.due() - now)
        self._tell("generator_lost", name=member.engine.name, reason=reason, restart_in=wait, **fields)

    def remove(self, member: Member) -> None:
        """End an engine and forget it."""
        self.members.pop(member.engine.name, None)
        member.engine.kill()

    def withdraw(self) -> None:
        """End what does not sample yet, and count no failure: others need the devices more. The next look begins again."""
        for member in self.alive("starting"):
            self.remove(member)

    def close(self) -> None:
        """End every engine."""
        for member in list(self.members.values()):
            self.remove(member)

    def _want(self, now: float) -> None:
        bounds = self._spec.generators
        wanted = min(bounds.max, max(bounds.min, self._wanted()))
        if wanted != self._desired:
            self._tell("generators", wanted=wanted, before=self._desired)
            self._desired = wanted

    def _usable(self, now: float) -> list[int]:
        """Slots whose budget is not spent; that one is, is told once."""
        usable = []
        for number, slot in enumerate(self._slots):
            spent = slot.budget.spent(now)
            if spent and not slot.given_up:
                limits = self._spec.restarts
                reason = f"more than {limits.limit} failures within {limits.window_seconds:g} s"
                self._tell("generator_given_up", slot=number, reason=reason)
            slot.given_up = spent
            if not spent:
                usable.append(number)
        return usable

    def _look_at_starting(self, now: float) -> None:
        limit = self._spec.deadlines.start
        starting = self.alive("starting")
        for member in starting:
            if member.placed_at is None and member.engine.placed():
                member.placed_at = now
            if member.placed_at is not None and now - member.placed_at > limit:
                self.lost(member, f"did not come up within {limit:g} s", now)
        waiting = [member for member in starting if member.placed_at is None]
        found, least = len(self.members) - len(waiting), self._spec.generators.min
        if waiting and found < least and all(now - member.since > limit for member in waiting):
            raise NoGenerators(
                f"{found} of at least {least} generators have found devices within {limit:g} s; "
                f"each needs {waiting[0].engine.needs}"
            )

    def _resize(self, usable: list[int], now: float) -> list[Member]:
        staying = [member for member in self.members.values() if member.state != "draining"]
        for member in sorted(staying, key=_worth)[: max(0, len(staying) - self._desired)]:
            self._retire(member, now)
        missing = self._desired - len(staying)
        for member in sorted(self.alive("draining"), key=_worth, reverse=True)[: max(0, missing)]:
            member.enter("live", now)
            missing -= 1
        taken = {member.slot for member in self.members.values()}
        free = [slot for slot in usable if slot not in taken]
        return [self._begin(slot, now) for slot in free[: max(0, missing)] if now >= self._slots[slot].budget.due()]

    def _retire(self, member: Member, now: float) -> None:
        if member.state == "live":
            member.enter("draining", now)
        else:
            self.remove(member)

    def _begin(self, number: int, now: float) -> Member:
        slot = self._slots[number]
        slot.lives += 1
        member = Member(self._launch(f"g{number}.{slot.lives}"), number, now)
        self.members[member.engine.name] = member
        return member


_ORDER: Mapping[str, int] = {"starting": 0, "joining": 1, "draining": 2, "live": 3}


def _worth(member: Member) -> tuple[int, int]:
    """Who is given up first when there are to be fewer: those that do not sample yet, then the highest slots."""
    return _ORDER[member.state], -member.slot
