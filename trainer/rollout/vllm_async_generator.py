"""Groups of completions from an engine in a process of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.rollout.length import Interruption
from trainer.rollout.vllm_async import AsyncEngine
from trainer.rollout.vllm_generator import VllmGenerator
from trainer.types import Version


class AsyncVllmGenerator(VllmGenerator):
    """`VllmGenerator` over an engine in a process of its own, which maps new weights itself and decodes between two polls."""

    def __init__(self, engine: AsyncEngine, slots: int, interruption: Interruption) -> None:
        super().__init__(engine, slots, interruption)
        self._own = engine

    @property
    def progress(self) -> int:
        """Grows as long as tokens come; a `poll` may see none."""
        return self._own.progress

    def load_file(self, path: Path, digest: str, version: Version) -> None:
        """Implements `LoadsFiles`."""
        self._own.load_file(path, digest, version)

    def meet(self, group: str, join: Mapping[str, Any], info: Mapping[str, Any], version: Version) -> None:
        """Implements `Meets`."""
        self._own.join(group, join)
        self._own.begin_update()
        self._own.receive(info)
        self._own.end_update(version)

    def fingerprint(self) -> str:
        """See `AsyncEngine.fingerprint`."""
        return self._own.fingerprint()
