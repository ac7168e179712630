"""Where the time goes: exactly one phase runs at any moment, so the phases add up to the wall time."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from controlplane.contract.documents import Phase

GENERATOR = (Phase.generating, Phase.verifying, Phase.syncing_weights)
LEARNER = (Phase.training,)
EVALUATOR = (Phase.evaluating,)


@dataclass
class Devices:
    """What a run holds while it goes on: GPUs, or CPU cores where there is none. It may change between two steps."""

    generator: int = 1
    learner: int = 1
    pace: Literal["turns", "paced", "free"] = "turns"
    """turns: the same devices, used in turns. Otherwise each pool has its own, and the next batch is generated while the
    learner trains: paced by the driver up to a point that no clock decides, or by generators that go on by themselves."""

    @property
    def apart(self) -> bool:
        """Both pools hold theirs all the time."""
        return self.pace != "turns"

    @property
    def held(self) -> int:
        """All of them."""
        return self.generator + self.learner if self.apart else self.learner


class Stopwatch:
    """Adds wall time to the current phase. `on_switch` hears of every change (the exporter shows it).

    `cpu` counts the CPU seconds of the process, for the use of the devices where these are CPU cores; None where they are not.
    """

    def __init__(
        self,
        on_switch: Callable[[Phase], None] = lambda _: None,
        clock: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] | None = time.process_time,
    ) -> None:
        self._clock, self._cpu = clock, cpu
        self._used = cpu() if cpu else 0.0
        self._busy: dict[Phase, float] = {}
        self.busy: Mapping[Phase, float] = {}
        """CPU seconds by phase of the lap that `lap` gave last; empty where they are not counted."""
        self._on_switch = on_switch
        self._since = clock()
        self._lap: dict[Phase, float] = {}
        self.phase = Phase.idle

    def switch(self, phase: Phase) -> None:
        """The trainer does something else from now on."""
        if phase is self.phase:
            return
        self._settle()
        self.phase = phase
        self._on_switch(phase)

    def lap(self) -> Mapping[Phase, float]:
        """Seconds by phase since the last lap."""
        self._settle()
        lap, self._lap = self._lap, {}
        self.busy, self._busy = self._busy, {}
        return lap

    def _settle(self) -> None:
        now = self._clock()
        self._lap[self.phase] = self._lap.get(self.phase, 0.0) + now - self._since
        self._since = now
        if self._cpu is not None:
            used = self._cpu()
            self._busy[self.phase] = self._busy.get(self.phase, 0.0) + used - self._used
            self._used = used


def utilization(lap: Mapping[Phase, float], busy: Mapping[Phase, float], devices: Devices) -> dict[str, float]:
    """Share of the CPU cores' time in use, 0 to 1: of the whole lap (`process`), and of the phases of generator and learner.

    Where both work at the same time in one process, only the whole can be told. Empty where nothing was counted.
    """
    alone = {"generator": GENERATOR, "learner": LEARNER}
    roles = {"process": tuple(lap), **({} if devices.apart else alone)}
    walls = {role: sum(lap.get(phase, 0.0) for phase in phases) for role, phases in roles.items()}
    return {
        role: min(1.0, sum(busy.get(phase, 0.0) for phase in roles[role]) / (wall * devices.held))
        for role, wall in walls.items()
        if busy and wall > 0
    }


def device_seconds(lap: Mapping[Phase, float], devices: Devices) -> dict[str, float]:
    """Devices held x wall time, by pool; a phase outside the three pools holds devices for nobody's account."""
    generating, learning, evaluating = (
        sum(lap.get(phase, 0.0) for phase in phases) for phases in (GENERATOR, LEARNER, EVALUATOR)
    )
    if devices.apart:
        generating = learning = generating + learning
    return {
        "generator": devices.generator * generating,
        "learner": devices.learner * learning,
        "evaluator": devices.held * evaluating,
    }
