"""Where the time goes: exactly one phase runs at any moment, so the phases add up to the wall time."""

import time
from collections.abc import Callable, Mapping

from controlplane.contract.documents import Phase

GENERATOR = (Phase.generating, Phase.verifying, Phase.syncing_weights)
LEARNER = (Phase.training,)
EVALUATOR = (Phase.evaluating,)


class Stopwatch:
    """Adds wall time to the current phase. `on_switch` hears of every change (the exporter shows it)."""

    def __init__(
        self, on_switch: Callable[[Phase], None] = lambda _: None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
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
        return lap

    def _settle(self) -> None:
        now = self._clock()
        self._lap[self.phase] = self._lap.get(self.phase, 0.0) + now - self._since
        self._since = now


def device_seconds(lap: Mapping[Phase, float], devices: int, overlap: bool = False) -> dict[str, float]:
    """Devices held x wall time, by pool; a phase outside the three pools holds devices for nobody's account.

    `overlap`: generator and learner have `devices` each and work at the same time, so both pools hold theirs throughout.
    """
    generator, learner, evaluator = (
        devices * sum(lap.get(phase, 0.0) for phase in phases) for phases in (GENERATOR, LEARNER, EVALUATOR)
    )
    if overlap:
        generator = learner = generator + learner
        evaluator *= 2
    return {"generator": generator, "learner": learner, "evaluator": evaluator}
