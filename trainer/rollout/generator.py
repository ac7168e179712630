"""The seam between the step machine and whatever samples tokens (torch here; an inference server later)."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from trainer.types import Group, GroupRequest, Version


class Generator(Protocol):
    """Samples groups of completions. One `poll` may advance every running completion by one token."""

    def submit(self, request: GroupRequest) -> None:
        """Queue a group; it starts when there is room for all of its completions."""
        ...

    def poll(self) -> list[Group]:
        """Make progress and hand over the groups finished by it."""
        ...

    def load(self, weights: Mapping[str, Tensor], version: Version) -> None:
        """Sample under new weights from the next token on; running completions keep their KV cache."""
        ...

    def abort(self) -> int:
        """Forget every queued and running group; returns the number of generated tokens thrown away."""
        ...

    @property
    def inflight(self) -> int:
        """Completions being generated."""
        ...

    @property
    def room(self) -> int:
        """Completions that could still start at once, those queued taken off."""
        ...
