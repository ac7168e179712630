"""Weight transfer inside one process: copy tensor by tensor into the generator's own model."""

from trainer.model import Model
from trainer.rollout.generator import Generator
from trainer.types import Version


class DirectSync:
    """Implements `WeightSync`. Completions in flight go on with their KV cache under the new weights."""

    def __init__(self, learner: Model, generator: Generator) -> None:
        self._learner = learner
        self._generator = generator

    def publish(self, version: Version) -> None:
        self._generator.load(self._learner.state_dict(), version)
