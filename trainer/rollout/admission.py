"""When groups are admitted to the generator and when a batch is handed to the learner: one policy for each mode. Pure.

    Pipeline   PipelineRL-k: as many groups as k + 1 steps need are under way at any time; the learner takes a batch as
               soon as it does not age out another group by it.
    Phases     PPO-off-policy-k: k batches are generated under one policy, nothing is admitted while they are trained
               step by step, and the next phase begins when all are used. k = 1 is synchronous.

Both look at `Load` alone: versions tell a phase that is being filled (every group was admitted under the learner's
version) from one that is being trained (some were admitted before), so that there is no mode to keep or to save.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Load:
    """What the buffer holds, and the settings in force."""

    now: int
    """Learner's version."""
    running: Mapping[int, int]
    """Groups in flight by version at admission. They may be a hundred thousand, and this is asked at every turn: the policies
    count versions, of which there are a handful, and never groups."""
    ready: Mapping[int, int]
    """The same of the groups that wait for the learner; none of them is too old."""
    held: int
    """Groups that the learner works on."""
    k: int
    batch: int
    """Prompts per optimizer step."""

    @property
    def groups(self) -> int:
        """Groups in flight or ready."""
        return sum(self.running.values()) + self.waiting

    @property
    def waiting(self) -> int:
        """Groups that are ready."""
        return sum(self.ready.values())

    def left(self) -> list[tuple[int, int]]:
        """(version, groups) of what is left when the oldest `batch` ready groups are taken, oldest first."""
        rest, taken = Counter(self.running), self.batch
        for since, groups in sorted(self.ready.items()):
            gone = min(groups, taken)
            rest[since] += groups - gone
            taken -= gone
        return sorted((+rest).items())


class Admission(Protocol):
    """A mode of `staleness.mode`."""

    def bound(self, k: int) -> int:
        """Most steps between the oldest weights in a group and the learner that uses it."""
        ...

    def capacity(self, k: int, batch: int) -> int:
        """Groups that may exist at once."""
        ...

    def free(self, load: Load) -> int:
        """Groups that may be admitted now."""
        ...

    def serves(self, load: Load) -> bool:
        """Whether the learner may take the oldest `batch` ready groups now."""
        ...


class Pipeline:
    """Admits whatever fits: a group has at most k steps of work before it, so that waiting alone keeps it fresh."""

    def bound(self, k: int) -> int:
        return k

    def capacity(self, k: int, batch: int) -> int:
        return (k + 1) * batch

    def free(self, load: Load) -> int:
        return max(0, self.capacity(load.k, load.batch) - load.groups - load.held)

    def serves(self, load: Load) -> bool:
        """Not if some remaining group would miss its last batch by it (earliest deadline first)."""
        if load.waiting < load.batch:
            return False
        if not load.running:
            return True
        place = 0
        for since, groups in load.left():
            place += groups  # the last one of its version waits longest
            if since + load.k < load.now + 1 + (place - 1) // load.batch:
                return False
        return True


class Phases:
    """Fills a phase under one version, then lets it be trained.

    k and batch size are those in force. When they change while a phase is trained, its groups are used as long as they
    are fresh enough; a last batch that they do not fill is completed with new groups of the current version.
    """

    def bound(self, k: int) -> int:
        return max(1, k) - 1

    def capacity(self, k: int, batch: int) -> int:
        return max(1, k) * batch

    def free(self, load: Load) -> int:
        if load.held:
            return 0
        filling = all(since == load.now for since in (*load.running, *load.ready))
        wanted = self.capacity(load.k, load.batch) if filling else load.batch
        return max(0, wanted - load.groups)

    def serves(self, load: Load) -> bool:
        return not load.running and load.waiting >= load.batch and self.free(load) == 0


def admission(mode: Literal["pipeline", "ppo_off_policy"]) -> Admission:
    """The policy of a mode."""
    return Pipeline() if mode == "pipeline" else Phases()
