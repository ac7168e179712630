"""Arms in a second process, from a snapshot on disk: the run goes on undisturbed, and pays with spare capacity instead of time.

    run                                              probes/<id>.spare/                  helper (helper.py)
    snapshot ---------------------------------------> snapshot.pt, order.json ---------> control and the others, in turns
    goes on                                           stopped.json   ------------------> stops an arm
    ruling: the helper is ended, values are set       log                                     |
         ^----------------- controller <------------- probes/<id>.jsonl <----------- step by step

`control` is trained by the helper too, so the run may be paused, evaluated and saved meanwhile. What changes its tunables or its
weights from outside (a new value, a rollback) ends the probe: it would be about another run. Adopted are values, from the
next step on; the weights of an arm are thrown away with the folder. A helper never outlives its trainer.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from controlplane.agent import Directive
from controlplane.contract.documents import CONTROL, Action, Probe, Ruling
from controlplane.contract.rundir import write_atomic
from trainer.checkpoint.ring import Snapshot
from trainer.checkpoint.shards import Shards, StoredShards
from trainer.checkpoint.store import CheckpointError, Content
from trainer.probe.arms import Machine, Standstill, arms_of
from trainer.probe.record import Record
from trainer.stepper import Stepped

FOLDER = ".spare"
"""Suffix of the folder of a probe, while it lasts."""


class Helper(Protocol):
    """A process that trains arms."""

    def failed(self) -> str | None:
        """None while it works, empty when it has ended as it should, else one sentence that says how it ended."""
        ...

    def stop(self) -> None:
        """End it now, and wait for that. Safe to repeat."""
        ...


Launch = Callable[[Path], Helper]
"""Starts a helper on the folder of a probe: a process here (helper.py), or with devices of its own on a cluster (cluster/spare.py)."""


class Spare:
    """An `Underway`. `over` ends it, `launch` starts the helper."""

    def __init__(
        self,
        machine: Machine,
        spec: Probe,
        arms: Mapping[str, Mapping[str, float]],
        record: Record,
        over: Callable[[str, str, float], None],
        launch: Launch,
    ) -> None:
        """Write snapshot and order, and start the helper.

        Raises:
            OSError: no room on the disk, or no process could be started. Nothing is left behind.
        """
        session = machine.session
        self.probe_id, self._spec = spec.probe_id, spec
        self._session, self._record, self._over = session, record, over
        self._values = dict(session.tunables)
        self.arms = arms_of(arms)
        self._folder = record.path.with_suffix(FOLDER)
        self._deadline: float | None = None
        self.standstill: Standstill | None = None
        self.tunables: Mapping[str, float] | None = None
        order = {
            "steps": spec.steps,
            "tunables": self._values,
            "arms": {name: dict(arm.sets) for name, arm in self.arms.items()},
            "record": record.path.name,
        }
        try:
            self._folder.mkdir(parents=True, mode=0o700)
            _save(machine, self._folder)
            write_atomic(self._folder / "order.json", json.dumps(order))
            record.begin(session.state.step, spec.steps, arms, self._values)
            self._helper = launch(self._folder)
        except OSError:
            shutil.rmtree(self._folder, ignore_errors=True)
            record.path.unlink(missing_ok=True)
            raise

    def rule(self, ruling: Ruling) -> str:
        if ruling.adopt:
            if any(self._session.tunables[name] != value for name, value in self._values.items()):
                return "the values of the run itself have changed since the probe began"
            self._finish(ruling.adopt, f"adopted the values of {ruling.adopt}")
        elif ruling.end:
            self.cancel("the controller ended it")
        else:
            for name in ruling.stop:
                self.arms[name].stopped = True
            stopped = [name for name, arm in self.arms.items() if arm.stopped]
            write_atomic(self._folder / "stopped.json", json.dumps(stopped))
        return ""

    def disturbed_by(self, directive: Directive) -> bool:
        """A pause or a checkpoint changes nothing that the arms began with."""
        return bool(directive.values) or directive.action in (Action.rollback, Action.probe)

    def look(self) -> None:
        """Has the helper ended, and for how long is a ruling waited for?"""
        failed = self._helper.failed()
        if failed:
            self.cancel(failed)
        elif failed is not None and self._deadline is None:
            self._record.waiting()
            self._deadline = time.monotonic() + self._spec.wait_seconds
        elif self._deadline is not None and time.monotonic() >= self._deadline:
            self.cancel("no ruling came in time")

    def before_step(self) -> None:
        """The run's own steps are nobody's arm."""

    def after_step(self, stepped: Stepped) -> None:
        """The run's own steps are nobody's arm."""

    def cancel(self, reason: str) -> None:
        self._finish(CONTROL, reason)

    def _finish(self, outcome: str, reason: str) -> None:
        """From here on this process is the record's only writer."""
        self._helper.stop()
        self._record.mend()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._over(outcome, reason, self._record.end(outcome, reason))


def _save(machine: Machine, folder: Path) -> None:
    """Everything that the arms begin with: weights, optimizer, curriculum, and what was in flight."""
    try:
        torch.save(_portable(machine.savepoints.snapshot(), folder), folder / "snapshot.pt")
    except (RuntimeError, CheckpointError) as error:  # torch tells of a full disk by a RuntimeError
        raise OSError(f"the snapshot could not be written: {error}") from error


def _portable(snapshot: Snapshot, folder: Path) -> Snapshot:
    """The snapshot for another process: what learner ranks keep in their memory is written beside it."""
    content = snapshot.content()
    tensors = dict(content.tensors)
    for name, part in tensors.items():
        if isinstance(part, Shards):
            (folder / name).mkdir()
            part.write(folder / name)
            tensors[name] = StoredShards(folder / name)
    return Snapshot(snapshot.digest, snapshot.flight, Content(tensors, content.values))
