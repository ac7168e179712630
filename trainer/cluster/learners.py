"""The learners of a run on a cluster: ranks in processes of their own, or none, and then the driver learns itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.build import Groundwork, device
from trainer.learn import Learner
from trainer.learn.learner import PlainLearner
from trainer.model import load_model
from trainer.sync import files


class LearnerLost(RuntimeError):
    """The learners, or one of them, are gone or do not answer. One sentence."""


@dataclass(frozen=True)
class Learners:
    """A learner, and how its weights leave it."""

    learner: Learner
    export: Callable[[Path], str]
    """Writes the weights into a file for the generators; returns its SHA-256."""
    close: Callable[[], None]
    """Ends their processes."""


def start_learners(work: Groundwork, gpus: int) -> Learners:
    """As many ranks as the recipe says, with `gpus` each."""
    return _in_the_driver(work)


def _in_the_driver(work: Groundwork) -> Learners:
    recipe = work.recipe
    learner = PlainLearner(load_model(work.start), recipe.optimizer, recipe.loss, recipe.precision, device(recipe))

    def export(path: Path) -> str:
        weights = learner.model.state_dict()
        return files.write(path, weights, weights.items())

    return Learners(learner, export, lambda: None)
