"""The process under supervision: started in a session of its own, told what we are told, and gone before the next one starts."""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence

ENDING = (signal.SIGINT, signal.SIGTERM)
"""Signals that end the supervision; the trainer gets them too, to save and end."""
PASSED_ON = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that are only passed on: schedulers announce the end of a job with them."""
GRACE_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


class Supervised:
    """Runs one process at a time and forwards signals to it."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._told = 0

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Forward signals while this lasts. At the third one that ends, the process is killed."""
        before = {number: signal.signal(number, self._forward) for number in (*ENDING, *PASSED_ON)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, command: Sequence[str], while_running: Callable[[], None], every: float = 1.0) -> int:
        """Start, wait, clear away; the exit code, or minus the number of the signal. Raises OSError: cannot be started."""
        process = subprocess.Popen(command, start_new_session=True, preexec_fn=_die_with_us)  # noqa: S603
        self._process = process
        if self.stopping.is_set():  # told while it was being started
            process.send_signal(signal.SIGTERM)
        try:
            while True:
                try:
                    return process.wait(timeout=every)
                except subprocess.TimeoutExpired:
                    while_running()
        finally:
            self._process = None
            _clear_away(process)

    def _forward(self, number: int, _frame: object) -> None:
        if number in ENDING:
            self.stopping.set()
            self._told += 1
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGKILL if self._told >= 3 else number)


def _die_with_us() -> None:
    """A supervisor that is killed must not leave a trainer behind that a second one would collide with."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _clear_away(process: "subprocess.Popen[bytes]") -> None:
    """End what is left of the session: ranks that outlive their launcher would hold devices, ports and files."""
    for number, wait in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline and _alive(process):
            time.sleep(0.05)


def _alive(process: "subprocess.Popen[bytes]") -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
