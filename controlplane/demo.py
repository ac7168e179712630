"""`scalerl demo`: trainer and controller as two processes, a fault on the way, a live view, a report at the end.

Nothing here steers the run. The trainer is told of the fault (a drill in its recipe); the controller is told nothing.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from controlplane.contract.rundir import RunDir
from controlplane.digest import facts, summary
from controlplane.record import Record

FAULT_STEP = 85
FAULT_FACTOR = 10
LOOK_SECONDS = 0.4  # a step of the demo takes about half a second
RECORD_SECONDS = 2.0  # the whole demo is a few minutes long

console = Console()


@dataclass(frozen=True)
class Arm:
    """One run of the demo."""

    name: str
    seed: int
    fault: bool = True
    at_most: str = "act"

    @property
    def settings(self) -> list[str]:
        """Overrides of the shipped recipe."""
        fault = f"[{{step: {FAULT_STEP}, kind: base_lr, factor: {FAULT_FACTOR}}}]" if self.fault else "[]"
        return [f"name={self.name}", f"seed={self.seed}", f"faults={fault}"]


def run_demo(out: Path, seed: int, fault: bool = True, at_most: str = "act") -> int:
    """One run with a live view and a report; exit code."""
    name = f"demo-{'' if fault else 'quiet-'}{'' if at_most == 'act' else at_most + '-'}seed{seed}"
    root = _directory(out, name)
    if not _run(root, Arm(name, seed, fault, at_most)):
        console.print(f"\nStopped. The same command goes on from the last checkpoint; the run is in {root}")
        return 130
    _finish([root], RunDir(root).report)
    return 0


def run_compare(out: Path, seed: int) -> int:
    """Three runs of one seed: guarded, only observed, and without the fault; one report over all."""
    arms = [
        Arm(f"compare-guarded-seed{seed}", seed),
        Arm(f"compare-observed-seed{seed}", seed, at_most="observe"),
        Arm(f"compare-undisturbed-seed{seed}", seed, fault=False),
    ]
    roots = []
    for arm in arms:
        root = _directory(out, arm.name)
        roots.append(root)
        console.rule(arm.name)
        if not _run(root, arm):
            console.print("\nStopped. The same command goes on where it was.")
            return 130
    _finish(roots, out / f"compare-seed{seed}.html")
    return 0


def _directory(out: Path, name: str) -> Path:
    """The unfinished run of that name, or a new one beside the finished ones."""
    for number in range(1, 10_000):
        root = out / (name if number == 1 else f"{name}-{number}")
        record = Record.of(root) if (root / "run.json").exists() else None
        if record is None or not facts.finished(record):
            return root
    raise OSError(f"{out}: too many runs named {name}; remove some")


def _run(root: Path, arm: Arm) -> bool:
    """Both processes until the run ends; False when a person stopped it."""
    from controlplane.view import watch

    rundir = RunDir(root)
    root.mkdir(parents=True, exist_ok=True)
    settings = [word for setting in arm.settings for word in ("--set", setting)]
    train = ["train", "tiny", "--run", str(root), *settings]
    control = ["control", str(root), "--policy", "demo", "--at-most", arm.at_most, "--interval", str(LOOK_SECONDS)]
    control += ["--record", str(RECORD_SECONDS)]
    stop = threading.Event()
    with (
        _interruptible(stop),
        _process(train, rundir.trainer_log) as trainer,
        _process(control, rundir.controller_log) as controller,
    ):
        over = threading.Event()
        waiter = threading.Thread(target=_wait, args=(trainer, stop, over), daemon=True)
        waiter.start()
        watch(root, over)
        waiter.join()
        if trainer.returncode == 0 and not stop.is_set():
            _wait_briefly(controller)
    if stop.is_set():
        return False
    if trainer.returncode != 0:
        raise OSError(f"the trainer failed with exit code {trainer.returncode}: {_last_line(rundir.trainer_log)}")
    return True


def _wait(trainer: "subprocess.Popen[bytes]", stop: threading.Event, over: threading.Event) -> None:
    """Until the trainer is gone; a person's Ctrl-C is handed on to it once, and it then saves and ends."""
    told = False
    while trainer.poll() is None:
        if stop.wait(0.2) and not told:
            trainer.send_signal(signal.SIGINT)
            told = True
    over.set()


def _wait_briefly(controller: "subprocess.Popen[bytes]") -> None:
    try:
        controller.wait(timeout=10)
    except subprocess.TimeoutExpired:
        controller.terminate()


@contextmanager
def _process(arguments: list[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A `scalerl` command as a process of its own session (the terminal's Ctrl-C reaches only us), gone at the end."""
    with open(log, "ab") as file:
        command = [sys.executable, "-m", "controlplane.cli", *arguments]
        process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@contextmanager
def _interruptible(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stop` instead of raising."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else f"{log} is empty"


def _finish(roots: list[Path], page: Path) -> None:
    from controlplane.report import write

    write(roots, page)
    for root in roots:
        console.rule(root.name)
        for line in summary(Record.of(root)):
            console.print(line, markup=False, highlight=False)
    console.rule()
    console.print(f"report       {page}", markup=False, highlight=False)
    console.print(f"again        scalerl report {' '.join(map(str, roots))}", markup=False, highlight=False)
    console.print(
        f"one by one   scalerl train --help · scalerl control --help · scalerl watch {roots[0]}", markup=False
    )
