"""The control directory as the controller uses it. The HTTP server is a door to the same directory, so both transports
have one state and one set of rules.

    Post.publish  --> control/desired.json   --> agent           control/observed.json --> Post.observed
    people        --> control/said/*.json    --> Post.said

The directory fences by itself: a document never replaces one of a higher epoch, however late its writer wakes up.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from controlplane.contract.approvals import Approval, Order
from controlplane.contract.documents import Desired, Observed
from controlplane.contract.rundir import RunDir, write_atomic
from controlplane.post.said import Spoken

LARGEST = 4 * 1024 * 1024
"""Bytes of an observed document; one with a thousand checkpoints has some hundred thousand."""


class Post:
    """What one controller sends and receives for one run."""

    def __init__(self, rundir: RunDir) -> None:
        self._rundir = rundir
        self._spoken = Spoken(rundir)

    def observed(self) -> tuple[Observed | None, str]:
        """What the trainer says is true, or None and one sentence that says why not."""
        path = self._rundir.observed
        try:
            return Observed.model_validate_json(read_bounded(path, LARGEST)), ""
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                return None, f"{path} cannot be read: the trainer's agent has not written yet"
            return None, f"{path} cannot be read ({error.strerror or error})"
        except ValidationError as error:
            return None, f"{path} is not an observed document ({error.error_count()} errors)"

    def publish(self, document: Desired) -> bool:
        """Replace the desired document; on disk when this returns. False if a controller with a higher epoch has written."""
        with locked(self._rundir.control):
            if self._epoch_there() > document.epoch:
                return False
            write_atomic(self._rundir.desired, document.model_dump_json(), durable=True)
        return True

    def said(self, now: float) -> tuple[tuple[Approval, ...], tuple[Order, ...]]:
        """Answers and orders of people that count at `now`, oldest first."""
        return self._spoken.read(now)

    def done(self, order_id: str) -> None:
        """A decision has carried out or refused this order; it is not handed out again."""
        self._spoken.forget(order_id)

    def _epoch_there(self) -> int:
        try:
            return Desired.model_validate_json(read_bounded(self._rundir.desired, LARGEST)).epoch
        except (OSError, ValidationError):
            return 0  # nothing there, or nothing that an agent would believe


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a file; OSError when it is larger than `most` bytes."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(f"{path} is larger than {most} bytes")
    return data


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One writer at a time in `directory`; the lock goes with its process."""
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
