"""Trainer processes, a few at a time, each in a session of its own so that the terminal's Ctrl-C reaches only us.

Going on is the trainer's business: the same command in the same directory continues a run, says at once that a finished
one has ended, and refuses another recipe. So every job is simply started. One that fails is reported; the others go on.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from controlplane.contract.rundir import RunDir
from controlplane.study.curves import finished

State = Literal["waits", "runs", "done", "failed", "stopped"]
LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 120.0
"""After Ctrl-C a trainer finishes its step and writes a checkpoint; longer than this it may not take."""


@dataclass(frozen=True)
class Job:
    """One run: a command that makes, continues or confirms the run in `root`."""

    name: str
    root: Path
    command: tuple[str, ...]


@dataclass(frozen=True)
class Status:
    """Where a job stands; `reason` only where it failed."""

    job: Job
    state: State
    reason: str = ""


def trainer_command(recipe: str, root: Path, settings: Mapping[str, str]) -> tuple[str, ...]:
    """The trainer in a process of its own, every setting given by `--set`."""
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return (sys.executable, "-m", "trainer", recipe, "--run", str(root), "--quiet", *words)


def run_jobs(
    jobs: Sequence[Job], at_once: int, stop: threading.Event, show: Callable[[Sequence[Status]], None]
) -> list[Status]:
    """Run all jobs, `at_once` at a time; the statuses at the end, in the order given. `show` is called all along.

    The first job has the machine to itself until its run directory is there: what is made once for all runs (a warm
    start) is then made once. After `stop` nothing new starts and what runs is asked to save and end.
    """
    states = [Status(job, "waits") for job in jobs]
    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        while not stop.is_set():
            room = at_once if _prepared(jobs[0], states[0]) else 1
            waiting = [i for i, status in enumerate(states) if status.state == "waits"]
            for index in waiting[: max(0, room - len(running))]:
                running[index] = _start(jobs[index])
                states[index] = Status(jobs[index], "runs")
            show(states)
            if not running:
                return states
            stop.wait(LOOK_SECONDS)
            _reap(running, states)
    finally:
        _end(running)
        for index in running:
            states[index] = _ended(jobs[index])
    show(states)
    return states


@contextmanager
def interruptible(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stop` instead of raising."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _prepared(job: Job, status: Status) -> bool:
    return status.state not in ("waits", "runs") or RunDir(job.root).info.exists()


def _start(job: Job) -> "subprocess.Popen[bytes]":
    job.root.mkdir(parents=True, exist_ok=True)
    with open(RunDir(job.root).trainer_log, "ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own command
            job.command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )


def _reap(running: "dict[int, subprocess.Popen[bytes]]", states: list[Status]) -> None:
    """Take note of every process that is gone."""
    for index, process in list(running.items()):
        if process.poll() is None:
            continue
        del running[index]
        job = states[index].job
        if process.returncode != 0:
            reason = f"exit code {process.returncode}: {_last_line(RunDir(job.root).trainer_log)}"
            states[index] = Status(job, "failed", reason)
        else:
            states[index] = _ended(job)


def _ended(job: Job) -> Status:
    return Status(job, "done" if finished(job.root) else "stopped")


def _end(running: "dict[int, subprocess.Popen[bytes]]") -> None:
    """Ask every process to save and end, and see that it does."""
    for process in running.values():
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + PATIENCE_SECONDS
    for process in running.values():
        try:
            process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else f"{log} is empty"
