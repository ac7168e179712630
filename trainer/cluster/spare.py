"""The spare process of a probe on a cluster: `trainer.probe.helper` in a Ray actor with devices of its own.

It holds the whole model in one process, so it suits a model that fits into the memory of one GPU with its optimizer. The
folder of the probe lies in the run directory, on a file system that all machines see. It ends with its driver.
"""

import time
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from controlplane.contract.rundir import write_atomic
from trainer.cluster.ray_engine import awaited
from trainer.recipe import Recipe

STOP_SECONDS = 20.0


@ray.remote(max_restarts=0, max_task_retries=0)
class SpareActor:
    """One probe long."""

    def train(self, folder: str, start: str) -> None:
        """All arms of a folder."""
        from trainer.probe import helper

        helper.main([folder, start])


class RayHelper:
    """Implements `Helper`. Waits for devices as long as a generator does."""

    def __init__(self, recipe: Recipe, start: Path, gpus: int, folder: Path) -> None:
        write_atomic(folder / "recipe.yaml", recipe.dump())
        spec = recipe.cluster
        devices = {"CPU": spec.learners.cpus, **({"GPU": gpus} if gpus else {})}
        self._patience, self._since, self._placed = spec.deadlines.start, time.monotonic(), False
        self._group = placement_group([devices], name=folder.name)
        place = PlacementGroupSchedulingStrategy(self._group)
        options = SpareActor.options(num_cpus=spec.learners.cpus, num_gpus=gpus, scheduling_strategy=place)  # type: ignore[attr-defined]
        self._actor = options.remote()
        self._done = awaited(self._actor.train.remote(str(folder.absolute()), str(start.absolute())))

    def failed(self) -> str | None:
        if self._done.done():
            error = self._done.exception()
            return f"the spare process ended: {error}" if error else ""
        self._placed = self._placed or bool(self._group.wait(0))
        if not self._placed and time.monotonic() - self._since > self._patience:
            return f"no devices were free for the spare process within {self._patience:g} s"
        return None

    def stop(self) -> None:
        with suppress(RayError, ValueError):
            ray.kill(self._actor)
        wait([self._done], STOP_SECONDS)  # its future fails when the process is gone
        with suppress(RayError, ValueError):
            remove_placement_group(self._group)


@dataclass(frozen=True)
class OnCluster:
    """The `Launch` of a run on a cluster. `start`: directory of the first model; `gpus`: those of a learner rank."""

    recipe: Recipe
    start: Path
    gpus: int

    def __call__(self, folder: Path) -> RayHelper:
        return RayHelper(self.recipe, self.start, self.gpus, folder)
