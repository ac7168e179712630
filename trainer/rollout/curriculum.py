"""Order of prompts: each is trained exactly once per epoch, whatever crashes, resumes or is dropped.

An epoch is a permutation of the prompts, decided by seed and epoch (and by the branch that shuffled it again). A prompt
is *issued* when a group is requested and *done* when the learner has used it (a group without signal counts: it was
looked at and filtered). What was issued and not done is in nobody's state: a restart issues it again. Generation runs
ahead, so the next epoch may open before the last prompts of this one are done.

A rollback makes a new state from that of its target:

    replay      data position        order            seeds of what is issued from now on
    skip        stays (exactly once  as it was        new (salt = the branch)
                over all branches)
    same        that of the target   as it was        those of the target
    reshuffle   that of the target   new              new

No-positive resampling (ScaleRL, section 3): when an epoch opens, prompts whose pass rate over all their completions
reached the threshold are left out of it, and of all later ones.
"""

import random
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from trainer.types import Item

Replay = Literal["skip", "same", "reshuffle"]


class Curriculum:
    """Issues prompts by ordinal. `state_dict` is all there is to save."""

    def __init__(self, prompts: int, seed: int, threshold: float, min_samples: int) -> None:
        self._prompts = prompts
        self._seed = seed
        self._threshold = threshold
        self._min_samples = min_samples
        self._shuffled = 0
        self.salt = 0
        """Goes into the seed of every request; changes with a rollback that is not to sample as before."""
        self._passed = [0] * prompts
        self._seen = [0] * prompts
        self._done: dict[int, set[int]] = {}
        self._left_out: dict[int, frozenset[int]] = {}
        self._pending: deque[Item] = deque()
        self._open(0)

    def issue(self) -> Item:
        """The next prompt; opens the next epoch when this one is exhausted."""
        if not self._pending:
            self._open(max(self._done) + 1)
        return self._pending.popleft()

    def requeue(self, items: Iterable[Item]) -> None:
        """Issued prompts that were not trained (dropped, aborted): issue them again, first of all."""
        self._pending.extendleft(sorted(items, reverse=True))

    def done(self, item: Item, passed: int, samples: int) -> None:
        """The learner has used this prompt's group.

        Raises:
            ValueError: it was done before in this epoch.
        """
        trained = self._done.get(item.epoch)
        if trained is None or item.ordinal in trained:
            raise ValueError(f"prompt {item.ordinal} was already trained in epoch {item.epoch}")
        trained.add(item.ordinal)
        self._passed[item.ordinal] += passed
        self._seen[item.ordinal] += samples
        self._close()

    @property
    def epoch(self) -> int:
        """Oldest epoch that is not complete."""
        return min(self._done)

    def state_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "epochs": [
                {"epoch": epoch, "done": sorted(done), "left_out": sorted(self._left_out[epoch])}
                for epoch, done in sorted(self._done.items())
            ],
            "passed": list(self._passed),
            "seen": list(self._seen),
            "salt": self.salt,
            "shuffled": self._shuffled,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state: what was issued and not done then is issued again."""
        self.salt, self._shuffled = state["salt"], state["shuffled"]
        self._passed, self._seen = list(state["passed"]), list(state["seen"])
        self._done = {entry["epoch"]: set(entry["done"]) for entry in state["epochs"]}
        self._left_out = {entry["epoch"]: frozenset(entry["left_out"]) for entry in state["epochs"]}
        self._pending = deque(
            Item(epoch, ordinal)
            for epoch in sorted(self._done)
            for ordinal in self._order(epoch)
            if ordinal not in self._done[epoch]
        )

    @property
    def pending(self) -> tuple[Item, ...]:
        """What will be issued next, in order, as far as epochs are open. Set it where what is in flight is known too."""
        return tuple(self._pending)

    @pending.setter
    def pending(self, items: tuple[Item, ...]) -> None:
        self._pending = deque(items)

    def rewound(self, state: dict[str, Any], replay: Replay, branch: int) -> tuple[dict[str, Any], Sequence[Item]]:
        """The state in which a rollback to `state` goes on as `branch`, and the prompts trained since then that it
        leaves out: all of them with `skip` (the same data in the same order is what went wrong), else none."""
        if replay == "same":
            return state, ()
        if replay == "reshuffle":
            return {**state, "salt": branch, "shuffled": branch}, ()
        rates = {"passed": state["passed"], "seen": state["seen"]}
        return {**self.state_dict(), **rates, "salt": branch}, self._since(state)

    def _since(self, state: dict[str, Any]) -> list[Item]:
        """Prompts trained since a saved state."""
        before = {entry["epoch"]: set(entry["done"]) for entry in state["epochs"]}
        saved = {entry["epoch"]: frozenset(entry["left_out"]) for entry in state["epochs"]}
        self._left_out = {**saved, **self._left_out}  # a restart forgets those of epochs closed since then
        return [
            Item(epoch, ordinal)
            for epoch in range(min(before), max(self._done) + 1)
            for ordinal in sorted(self._consumed(epoch) - before.get(epoch, set()))
        ]

    def _consumed(self, epoch: int) -> set[int]:
        """Prompts done in an epoch; a closed one is complete."""
        return self._done[epoch] if epoch in self._done else set(self._order(epoch))

    def _open(self, epoch: int) -> None:
        self._left_out[epoch] = frozenset(ordinal for ordinal in range(self._prompts) if self._mastered(ordinal))
        if len(self._left_out[epoch]) == self._prompts:
            self._left_out[epoch] = frozenset()  # an epoch is never empty: when all are mastered, all stay
        self._done[epoch] = set()
        self._pending.extend(Item(epoch, ordinal) for ordinal in self._order(epoch))

    def _close(self) -> None:
        """Forget complete epochs, but never the newest."""
        while len(self._done) > 1 and len(self._done[self.epoch]) == self._prompts - len(self._left_out[self.epoch]):
            del self._done[self.epoch]

    def _order(self, epoch: int) -> list[int]:
        order = list(range(self._prompts))
        key = f"{self._seed}-{epoch}" + (f"-{self._shuffled}" if self._shuffled else "")
        random.Random(key).shuffle(order)
        left_out = self._left_out.get(epoch, frozenset())
        return [ordinal for ordinal in order if ordinal not in left_out]

    def _mastered(self, ordinal: int) -> bool:
        seen = self._seen[ordinal]
        return seen >= self._min_samples and self._passed[ordinal] >= self._threshold * seen
