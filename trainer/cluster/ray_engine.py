"""Engines as Ray actors: one process each, in a placement group of its own, never restarted by Ray behind our back."""

import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from trainer.cluster.engine import Harvest, Lane, Loaded, Weights
from trainer.cluster.settings import Generators
from trainer.types import GroupRequest, Version


@ray.remote(concurrency_groups={"control": 1, "collect": 1}, max_restarts=0, max_task_retries=0)
class GeneratorActor:
    """A `Decoder` in a process of its own. `collect` waits in a thread of its own while notes are left for the decoder."""

    def __init__(self, work: Any, threads: int, gpus: int) -> None:
        """`work`: the groundwork of the run."""
        import torch

        from trainer.build import generators
        from trainer.cluster.decoding import Decoder

        torch.set_num_threads(threads)
        rollout, judge = generators(work, gpus)
        self._decoder = Decoder({"rollout": rollout, "evaluation": judge}, work.recipe.batch.samples_per_prompt)

    def where(self) -> dict[str, Any]:
        """Process and machine; answered once the model is there."""
        return {"pid": os.getpid(), "node": ray.util.get_node_ip_address()}

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def submit(self, lane: Lane, round: int, requests: Sequence[GroupRequest]) -> None:
        self._decoder.submit(lane, round, requests)

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def load(self, weights: Weights, version: Version) -> Loaded:
        return self._decoder.load(weights, version)

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def abort(self, lane: Lane, round: int) -> int:
        return self._decoder.abort(lane, round)

    @ray.method(concurrency_group="collect")  # type: ignore[untyped-decorator]
    def collect(self, wait: float) -> Harvest:
        return self._decoder.collect(wait)


class RayEngine:
    """Implements `Engine`. Waits for its devices as long as Ray needs to find them."""

    def __init__(self, name: str, work: Any, spec: Generators, gpus: int) -> None:
        devices = {"CPU": spec.cpus, **({"GPU": gpus} if gpus else {})}
        self.name = name
        self.needs = " and ".join(f"{count:g} {device}" for device, count in devices.items())
        self._group = placement_group([devices], strategy="STRICT_PACK", name=name)
        self._actor = GeneratorActor.options(  # type: ignore[attr-defined]
            num_cpus=spec.cpus,
            num_gpus=gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group),
        ).remote(work, spec.threads, gpus)
        self.ready: Future[Mapping[str, Any] | None] = awaited(self._actor.where.remote())

    def placed(self) -> bool:
        return bool(self._group.wait(0))

    def submit(self, lane: Lane, round: int, requests: Sequence[GroupRequest]) -> "Future[Any]":
        return awaited(self._actor.submit.remote(lane, round, requests))

    def collect(self, wait: float) -> "Future[Harvest]":
        return awaited(self._actor.collect.remote(wait))

    def load(self, weights: Weights, version: Version) -> "Future[Loaded]":
        return awaited(self._actor.load.remote(weights, version))

    def abort(self, lane: Lane, round: int) -> "Future[int]":
        return awaited(self._actor.abort.remote(lane, round))

    def kill(self) -> None:
        with suppress(RayError, ValueError):
            ray.kill(self._actor)
        self._end_here()
        with suppress(RayError, ValueError):
            remove_placement_group(self._group)

    def _end_here(self) -> None:
        """Ray asks a process to end, which one that is stopped never does; on this machine it is ended without asking."""
        if not self.ready.done() or self.ready.exception():
            return
        where = self.ready.result() or {}
        if where.get("node") == ray.util.get_node_ip_address():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(where["pid"], signal.SIGKILL)


def awaited(ref: Any) -> "Future[Any]":
    """The future of a Ray call; its error is one sentence."""
    mine: Future[Any] = Future()

    def settle(theirs: "Future[Any]") -> None:
        error = theirs.exception()
        if error is None:
            mine.set_result(theirs.result())
        else:
            mine.set_exception(RuntimeError(sentence(error)))

    ref.future().add_done_callback(settle)
    return mine


def sentence(error: BaseException) -> str:
    """What happened, without the traceback that Ray puts into its messages."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ActorDiedError) and "creation task" in str(error):
        return lines[-1]
    if isinstance(error, ActorDiedError):
        return "the process has died"
    return lines[0] if lines else type(error).__name__
