"""Weights from the learner to the generators."""

from typing import Protocol

from trainer.types import Version


class WeightSync(Protocol):
    """Brings the learner's current weights to every generator."""

    def publish(self, version: Version) -> None:
        """Returns when every generator samples under `version`; raises where that cannot be reached."""
        ...
