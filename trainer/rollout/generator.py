"""The seam between the step machine and whatever samples tokens (torch here; an inference server later)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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


@runtime_checkable
class LoadsFiles(Protocol):
    """A generator whose weights may be in another process, which had better map them itself than be sent them."""

    def load_file(self, path: Path, digest: str, version: Version) -> None:
        """`Generator.load` from a file (trainer.sync.files), proven by its digest in the process that decodes.

        Raises:
            ValueError: it is not that file, or lacks a tensor of the model; nothing was loaded.
        """
        ...


@runtime_checkable
class Meets(Protocol):
    """A generator that takes part in a broadcast of weights."""

    def meet(self, group: str, join: Mapping[str, Any], info: Mapping[str, Any], version: Version) -> None:
        """`Generator.load` of what is being sent to all members of `group`, which it joins if it is not in it."""
        ...

    def fingerprint(self) -> str:
        """Digest of the weights that it holds: the same in all generators that are built alike and hold the same ones."""
        ...
