"""The spare process: trains the arms of one probe from the snapshot in its folder, and ends. `python -m trainer.probe.helper`.

    folder: recipe.yaml, snapshot.pt, order.json, stopped.json (by the trainer)      -> steps in the record of the probe

It has the lowest priority, takes orders between two steps alone, and dies with its trainer: its parent is looked at twice a second, and
a folder that is gone means that nobody waits for it. It reads the run directory and writes nothing there but its record.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from controlplane.agent import BoundaryState, Directive
from controlplane.contract.documents import AckState
from controlplane.contract.reports import CheckpointReport, EvalReport, StepReport
from controlplane.contract.rundir import RunDir, write_atomic
from trainer.checkpoint.ring import Snapshot
from trainer.probe.arms import Arm, Machine, turn
from trainer.probe.record import Record
from trainer.recipe import Recipe, load_recipe
from trainer.stepper import Stepped

NICENESS = 10
LOOK_SECONDS = 0.5
STOP_SECONDS = 5.0
ORPHANED = 3
"""Exit code of a helper whose trainer has gone."""


class LocalHelper:
    """A child process of the trainer, on the same machine: an implementation of `Helper`."""

    def __init__(self, recipe: Recipe, start: Path, folder: Path) -> None:
        """Raises OSError when no process can be started."""
        write_atomic(folder / "recipe.yaml", recipe.dump())
        self._log = folder / "log"
        command = [sys.executable, "-m", "trainer.probe.helper", str(folder), str(start), "--parent", str(os.getpid())]
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C in the terminal is meant for the trainer, which ends this process in its own way.
            self._process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def failed(self) -> str | None:
        code = self._process.poll()
        if not code:
            return None if code is None else ""
        said = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return f"the spare process ended with {code}: {said[-1][:200] if said else 'it said nothing'}"

    def stop(self) -> None:
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # stuck in the kernel: it will not come back from there
            self._process.wait(STOP_SECONDS)


@dataclass(frozen=True)
class LocalProcess:
    """The `Launch` of a trainer that has cores or memory to spare on its own machine. `start`: directory of the first model."""

    recipe: Recipe
    start: Path

    def __call__(self, folder: Path) -> LocalHelper:
        return LocalHelper(self.recipe, self.start, folder)


@dataclass
class Order:
    """What the trainer wants, as far as it is known now."""

    folder: Path
    steps: int
    tunables: Mapping[str, float]
    arms: Mapping[str, Mapping[str, float]]
    record: str

    @classmethod
    def read(cls, folder: Path) -> "Order":
        """The order of a folder."""
        return cls(folder, **json.loads((folder / "order.json").read_bytes()))

    def stopped(self) -> list[str]:
        """Arms that need no further step."""
        with suppress(FileNotFoundError):
            return list(json.loads((self.folder / "stopped.json").read_bytes()))
        return []


def train(machine: Machine, order: Order, snapshot: Snapshot, record: Record) -> None:
    """All arms from the snapshot, in turns, until none has a step left to take or the folder is gone."""
    arms = {name: Arm(sets, end=snapshot) for name, sets in order.arms.items()}
    before = ""

    def each(stepped: Stepped, name: str) -> bool:
        if not order.folder.exists():
            return False  # the probe is over, and its record has another writer
        record.step(name, arms[name].taken, stepped)
        for given_up in order.stopped():
            stop(given_up)
        return not machine.session.poisoned

    def stop(name: str) -> None:
        if not arms[name].stopped:
            arms[name].stopped = True
            record.stopped(name)

    while order.folder.exists() and (next_ := turn(arms, order.steps)):
        name, until = next_
        arm, here = arms[name], machine.session
        if name != before:
            if before:
                left = arms[before]
                left.end = None if left.stopped or left.taken == order.steps else machine.savepoints.snapshot()
            assert arm.end is not None
            machine.fork(arm.end)
            here.tunables.clear()
            here.tunables.update(order.tunables)
        machine.train(arm, until, partial(each, name=name))
        if here.poisoned and order.folder.exists():
            stop(name)  # nothing can be learned after a step that is not finite
        elif arm.taken < until and not arm.stopped:
            return
        before = name


class Deaf:
    """A control that asks nobody and tells nobody: an arm has no metrics, no checkpoints and no controller of its own."""

    def step(self, report: StepReport) -> None: ...
    def evaluation(self, report: EvalReport) -> None: ...
    def checkpoint(self, report: CheckpointReport) -> None: ...

    def boundary(self, state: BoundaryState) -> Directive | None:
        return None

    def acknowledge(
        self, directive: Directive, state: AckState, at_step: int, readback: dict[str, float], reason: str = ""
    ) -> None: ...


def main(arguments: list[str] | None = None) -> None:
    """Train the arms of a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("start", type=Path, help="directory with the model that the run began with")
    parser.add_argument("--parent", type=int, help="process without which this one has no business")
    options = parser.parse_args(arguments)
    os.nice(NICENESS)
    if options.parent:
        threading.Thread(target=_die_with, args=(options.parent,), daemon=True).start()

    # Late on purpose: torch takes seconds to import, and the lifeline is out before.
    import torch

    from trainer.build import assemble
    from trainer.stopwatch import Stopwatch

    folder: Path = options.folder
    recipe, order = load_recipe(folder / "recipe.yaml"), Order.read(folder)
    loop = assemble(recipe, RunDir(folder), options.start, Deaf(), dict(order.tunables), Stopwatch())
    snapshot: Any = torch.load(
        folder / "snapshot.pt", weights_only=False
    )  # written by our own trainer, in a folder of mode 0700
    train(loop.machine, order, snapshot, Record(folder.parent / order.record))
    loop.close()


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(ORPHANED)


if __name__ == "__main__":
    main()
