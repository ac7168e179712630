"""A bounded queue and a thread in front of a channel: offering never waits, and what does not fit is dropped and counted."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Literal, Protocol

from controlplane.notify.notice import Notice

log = logging.getLogger("notify")

Result = Literal["sent", "failed", "dropped"]
Count = Callable[[str, Result], None]
"""Called with the channel's name and what became of a notice; from any thread."""

SIZE = 64
ATTEMPTS = 3
PAUSE_SECONDS = 1.0


class DeliveryError(Exception):
    """A notice was not taken; one sentence without secrets. `final`: trying again would not help."""

    def __init__(self, message: str, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class Channel(Protocol):
    """Somewhere to tell. `deliver` may block for as long as its timeouts; it raises `DeliveryError`."""

    name: str

    def deliver(self, notice: Notice) -> None: ...


class Outbox:
    """Delivers to one channel, in order, from a daemon thread of its own."""

    def __init__(self, channel: Channel, count: Count, size: int = SIZE, pause: float = PAUSE_SECONDS) -> None:
        self._channel, self._count, self._pause = channel, count, pause
        self._queue: queue.Queue[Notice] = queue.Queue(maxsize=size)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"notify-{channel.name}", daemon=True)
        self._thread.start()

    def offer(self, notice: Notice) -> bool:
        """Take a notice if there is room; returns at once either way."""
        try:
            self._queue.put_nowait(notice)
        except queue.Full:
            self._count(self._channel.name, "dropped")
            return False
        return True

    def close(self, seconds: float = 5.0) -> None:
        """Deliver what is waiting, for at most this long; what is left is dropped and counted."""
        self._closing.set()
        self._thread.join(seconds)
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                return
            self._count(self._channel.name, "dropped")

    def _work(self) -> None:
        while not (self._closing.is_set() and self._queue.empty()):
            try:
                notice = self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            self._count(self._channel.name, "sent" if self._deliver(notice) else "failed")

    def _deliver(self, notice: Notice) -> bool:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._channel.deliver(notice)
                return True
            except DeliveryError as error:
                if error.final or attempt == ATTEMPTS:
                    log.warning("%s was not told of %s: %s", self._channel.name, notice.key, error)
                    return False
            except Exception as error:  # a defect here must not end the thread, and never reaches the controller
                log.warning("%s was not told of %s: %s", self._channel.name, notice.key, type(error).__name__)
                return False
            self._closing.wait(self._pause * attempt)
        return False
