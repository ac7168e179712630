"""A generator process as the driver sees it: every call returns at once, and what comes of it is a future.

    driver: Pool ---submit, load, abort---> engine: Decoder around any `Generator`
                 <----collect (long poll)---

An engine has a name that no other ever has. What it says counts as long as the pool has its name in its list, and not a
moment longer: an error means that the answer is lost, not that the work was not done.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from trainer.types import Group, GroupRequest, Version

Lane = Literal["rollout", "evaluation"]
"""What a group is for. Each lane has its slots in every engine; they share the weights."""
LANES: tuple[Lane, ...] = ("rollout", "evaluation")


@dataclass(frozen=True)
class WeightsFile:
    """Weights that lie in a file which every engine can map."""

    path: Path
    digest: str
    """SHA-256, in hexadecimal."""


@dataclass(frozen=True)
class Invitation:
    """Weights that rank 0 of the learner sends right now, to a group of engines at once (trainer.cluster.broadcast)."""

    group: str
    """Who meets. An engine that is in another one leaves it and joins this one first."""
    join: Mapping[str, Any]
    """How: what vLLM's weight transfer wants to know."""
    info: Mapping[str, Any]
    """What is sent: names, formats and shapes, in order."""
    prove: bool = False
    """Sum up the weights afterwards; the engines of a group are compared."""


Weights = WeightsFile | Invitation | Mapping[str, Any]
"""Where an engine finds its weights: a file, a broadcast, or the tensors themselves where they are small."""


@dataclass(frozen=True)
class Loaded:
    """An engine samples under these weights from its next token on."""

    version: Version
    digest: str
    """Of the file that was read, or of the weights as they lie on the device where that was asked for; else empty."""


@dataclass(frozen=True)
class Harvest:
    """What an engine has to say: groups that were never said before, and how it is."""

    groups: Sequence[tuple[Lane, int, Group]]
    """Lane, round that the group was submitted in, group."""
    room: Mapping[Lane, int]
    """Completions that could start at once; negative where some are queued."""
    seen: int
    """Calls of `submit` that `room` knows of."""
    stalled: float
    """Seconds without a new token while there was work."""
    busy: float
    """Seconds spent on tokens since the engine began."""


class Engine(Protocol):
    """One generator process. The future of each call fails when the process is gone."""

    name: str
    needs: str
    """The devices it needs, in words."""
    ready: "Future[Mapping[str, Any] | None]"
    """Done when it can take work; says where it is, for people."""

    def placed(self) -> bool:
        """Whether it has its devices; without them it waits for as long as it takes."""
        ...

    def submit(self, lane: Lane, round: int, requests: Sequence[GroupRequest]) -> "Future[Any]":
        """Queue groups. A round below that of the last `abort` of the lane is ignored."""
        ...

    def collect(self, wait: float) -> "Future[Harvest]":
        """What is new, as soon as there is something, and after `wait` seconds at the latest."""
        ...

    def load(self, weights: Weights, version: Version) -> "Future[Loaded]":
        """Change the weights between two tokens; completions under way keep their KV cache."""
        ...

    def abort(self, lane: Lane, round: int) -> "Future[int]":
        """Forget every group of the lane; a new round begins. Gives the number of tokens thrown away."""
        ...

    def kill(self) -> None:
        """End the process without asking it, and give its devices back. May be repeated."""
        ...
