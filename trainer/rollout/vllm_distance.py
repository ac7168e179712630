"""What it takes to deal with an engine in another process: an event loop in a thread, a watch over its progress, its environment."""

import asyncio
import concurrent.futures
import contextlib
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

LOOK = 1.0
"""Seconds between two looks at whether tokens still come, while no part ends."""


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="vllm-loop")
        self._thread.start()

    def soon(self, call: Callable[[], None]) -> None:
        """Let the loop call it; returns at once."""
        self._loop.call_soon_threadsafe(call)

    def run(self, answer: Coroutine[Any, Any, Any], seconds: float) -> Any:
        """What `answer` gives.

        Raises:
            TimeoutError: nothing within `seconds`.
        """
        future = asyncio.run_coroutine_threadsafe(answer, self._loop)
        try:
            return future.result(seconds)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the thread; what it waits for is given up."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)


class Watch:
    """Tells a slow engine from one that has stopped: the latter gives no token for `patience` seconds."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.moves = 0
        """Times that something had happened."""
        self.reset()

    def reset(self) -> None:
        """Something happened."""
        self.moves += 1
        self._alive = self._looked = time.monotonic()
        self._seen: list[int | None] = []

    def due(self) -> bool:
        """Whether it is time for another look."""
        return time.monotonic() - self._looked >= min(LOOK, self.patience / 4)

    def stalled(self, tokens: list[int | None]) -> bool:
        """A look: the tokens of every request."""
        self._looked = time.monotonic()
        if tokens != self._seen:
            self._alive, self._seen = self._looked, tokens
            self.moves += 1
        return self._looked - self._alive > self.patience


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """What the processes started meanwhile find in their environment."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
