"""The learners of a run on a cluster: ranks in processes of their own, or none, and then the driver learns itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.agent import Directive
from controlplane.contract.rundir import RunDir
from trainer.build import Groundwork, device
from trainer.cluster import ClusterFailure
from trainer.learn import Learner
from trainer.learn.learner import PlainLearner
from trainer.model import load_model
from trainer.sync import files


class LearnerLost(RuntimeError):
    """A learner rank is gone, has failed or is late, and with it all of them. One sentence."""

    def __init__(self, rank: int, doing: str, seconds: float, what: str) -> None:
        super().__init__(f"learner rank {rank} {what} after {seconds:.1f} s of {doing}")
        self.rank, self.doing, self.seconds = rank, doing, seconds


class Poisoned(ClusterFailure):
    """A rollback broke while it was put in force, and nobody has looked at it yet. One sentence."""


@dataclass(frozen=True)
class Limits:
    """Longest that anybody waits for the learner ranks, in seconds."""

    start: float = 600.0
    """From devices to ranks that have met and opened the model."""
    work: float = 1800.0
    """Of one step, save, load or export."""
    vote: float = 30.0
    """Of a vote between two steps."""


@dataclass(frozen=True)
class Learners:
    """A learner, and what else the driver wants of it."""

    learner: Learner
    export: Callable[[Path], str]
    """Writes the weights into a file for the generators; returns its SHA-256."""
    vote: Callable[[Directive], str]
    """What stands in the way of a directive, on any rank; empty when nothing does."""
    close: Callable[[], None]
    """Ends their processes."""
    apply: Callable[..., Sequence[Any]] | None = None
    """Calls a function with the learner of every rank, in its process; None where there are no ranks."""


def start_learners(work: Groundwork, rundir: RunDir, gpus: int) -> Learners:
    """As many ranks as the recipe says, with `gpus` each; a single one on a CPU is the driver itself.

    Raises:
        LearnerLost: they could not be started.
        Poisoned: see there.
    """
    spec, limits = work.recipe.cluster.learners, work.recipe.cluster.deadlines
    if spec.ranks == 1 and not gpus:
        return _in_the_driver(work)
    from trainer.cluster.learner_group import LearnerGroup

    group = LearnerGroup(
        work.recipe,
        work.start.absolute(),
        gpus=gpus,
        checkpoints=rundir.checkpoints.absolute(),
        poison=rundir.poison,
        limits=Limits(start=limits.start, work=spec.step_seconds),
    )
    return Learners(group, group.export, group.vote, group.close, group.apply)


def _in_the_driver(work: Groundwork) -> Learners:
    recipe = work.recipe
    learner = PlainLearner(load_model(work.start), recipe.optimizer, recipe.loss, recipe.precision, device(recipe))

    def export(path: Path) -> str:
        weights = learner.model.state_dict()
        return files.write(path, weights, weights.items())

    return Learners(learner, export, lambda _: "", lambda: None)
