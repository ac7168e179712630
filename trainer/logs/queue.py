"""Between the step machine and a tracker: a bounded queue and a thread, so that a tracker can hold up nothing."""

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Protocol

log = logging.getLogger("log")


class Tracker(Protocol):
    """Where curves are looked at."""

    def log(self, figures: Mapping[str, float]) -> None:
        """One step or evaluation; `figures["step"]` says which. May block, may raise."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class LogQueue:
    """Calls a tracker in a thread of its own, which also opens it. `put` never blocks and never raises."""

    def __init__(self, open_: Callable[[], Tracker], size: int) -> None:
        self.dropped = 0
        """Entries that found the queue full, or came after the tracker was given up."""
        self.failed = 0
        """Entries that the tracker refused."""
        self.error = ""
        """What it said first."""
        self._open, self._left_out = open_, threading.Lock()
        self._queue: Queue[Mapping[str, float] | None] = Queue(size)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def put(self, figures: Mapping[str, float]) -> None:
        """Hand over one entry, or drop it."""
        try:
            if self._closing.is_set():
                raise Full
            self._queue.put_nowait(figures)
        except Full:
            self._drop(1)

    def close(self, patience: float = 10.0) -> str:
        """Let the tracker finish, but wait no longer than `patience` seconds. Returns what went wrong, or nothing."""
        self._closing.set()
        with suppress(Full):  # then the thread sees `_closing` when it has emptied the queue
            self._queue.put_nowait(None)
        self._thread.join(patience)
        if self._thread.is_alive():
            self._empty()
            self._fault(f"did not finish within {patience:g} s")
        return self.words

    @property
    def words(self) -> str:
        """One sentence on what the tracker did not get; empty if it got all."""
        if not (self.dropped or self.failed or self.error):
            return ""
        return f"{self.dropped} entries dropped, {self.failed} refused" + (
            f"; first: {self.error}" if self.error else ""
        )

    def _work(self) -> None:
        try:
            tracker = self._open()
        except BaseException as error:  # a tracker may even try to end the process
            self._fault(f"cannot be opened: {error!r}")
            self._closing.set()
            self._empty()
            return
        while (figures := self._next()) is not None:
            try:
                tracker.log(figures)
            except BaseException as error:
                self.failed += 1
                self._fault(repr(error))
        try:
            tracker.close()
        except BaseException as error:
            self._fault(f"cannot be closed: {error!r}")

    def _next(self) -> Mapping[str, float] | None:
        """The next entry; None when the run has ended and nothing is left."""
        if self._closing.is_set() and self._queue.empty():
            return None
        return self._queue.get()

    def _empty(self) -> None:
        with suppress(Empty):
            while True:
                self._drop(self._queue.get_nowait() is not None)

    def _drop(self, entries: int) -> None:
        with self._left_out:
            self.dropped += entries

    def _fault(self, words: str) -> None:
        if not self.error:
            self.error = words
            log.warning("the tracker %s; the run goes on without it", words)
