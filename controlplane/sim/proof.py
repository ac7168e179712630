"""Checkpoints of a simulated run and when they count as good: the rules of the trainer's own health check, in short.

Good: `STEPS` healthy steps in a row and a passing evaluation, both after the checkpoint. Bad: a rollback went behind it.
"""

import math
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from controlplane.contract.documents import CheckpointState, Health

STEPS = 20
KEPT = 8
"""Checkpoints on disk, beside the last two good ones."""
_SPREAD = 0.3
State = TypeVar("State")


@dataclass
class Saved(Generic[State]):
    """One checkpoint on disk."""

    step: int
    branch: int
    state: State
    compute: float
    reference: float
    """Mean pass ratio of the ten batches before it, and the best evaluation by then."""
    best: float
    healthy: int = 0
    evaluated: bool = False
    health: Health = Health.fresh

    @property
    def digest(self) -> str:
        return f"{self.branch}-{self.step}"

    def seen(self) -> CheckpointState:
        return CheckpointState(step=self.step, branch=self.branch, digest=self.digest, health=self.health)


@dataclass
class Shelf(Generic[State]):
    """The checkpoints of one run, oldest first."""

    prompts: int
    eval_prompts: int
    saved: list[Saved[State]] = field(default_factory=list)
    _recent: list[float] = field(default_factory=list)
    _best: float = -math.inf
    _seen: tuple[CheckpointState, ...] | None = None

    @property
    def states(self) -> tuple[CheckpointState, ...]:
        """As the observed document shows them."""
        if self._seen is None:
            self._seen = tuple(each.seen() for each in self.saved)
        return self._seen

    def save(self, step: int, branch: int, state: State, compute: float) -> None:
        reference = sum(self._recent) / len(self._recent) if self._recent else math.nan
        self.saved = [each for each in self.saved if each.step != step]
        self.saved.append(Saved(step, branch, state, compute, reference, self._best))
        good = [each for each in self.saved if each.health is Health.good][-2:]
        newest = self.saved[-KEPT:]
        self.saved = [each for each in self.saved if each in newest or each in good]
        self._seen = None

    def stepped(self, pass_ratio: float, finite: bool) -> None:
        """A step was made; proves what it can."""
        allowed = 4.0 * _SPREAD / math.sqrt(self.prompts)
        for each in self.saved:
            if each.health is Health.fresh:
                fine = finite and not pass_ratio < each.reference - allowed
                each.healthy = each.healthy + 1 if fine else 0
        self._recent = [*self._recent[-9:], pass_ratio] if finite else self._recent
        self._prove()

    def evaluated(self, step: int, pass_ratio: float) -> None:
        """A held-out evaluation of the weights of `step`."""
        allowed = 3.0 * _SPREAD * math.sqrt(2.0 / self.eval_prompts)
        for each in self.saved:
            if each.health is Health.fresh and step > each.step:
                each.evaluated = pass_ratio >= each.best - allowed
        self._best = max(self._best, pass_ratio)
        self._prove()

    def restore(self, step: int) -> Saved[State]:
        """Go back to the checkpoint of `step`; later ones are bad and gone."""
        self.saved = [each for each in self.saved if each.step <= step]
        self._recent, self._seen = [], None
        self._best = self.saved[-1].best
        return self.saved[-1]

    def _prove(self) -> None:
        for each in self.saved:
            if each.health is Health.fresh and each.evaluated and each.healthy >= STEPS:
                each.health, self._seen = Health.good, None
