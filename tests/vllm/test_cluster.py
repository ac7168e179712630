"""A Ray actor of the cluster with vLLM in it, as the driver has them."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.trainer.conftest import MICRO
from tests.vllm.test_async import ended
from tests.vllm.test_generator import CLOSE, difference, request, with_weights
from trainer.build import Groundwork
from trainer.cluster.engine import WeightsFile
from trainer.cluster.settings import Generators
from trainer.recipe import Recipe
from trainer.rollout.length import Interruption
from trainer.sync.files import write
from trainer.types import Group, Version

PATIENCE = 120.0
"""Seconds; the machine may be busy, and a first start imports vLLM twice."""


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    from trainer.cluster.ray_session import connected

    with connected("", 2):
        yield


def groundwork(directory: Path, tokenizer: Any, interruption: Interruption, process: str) -> Groundwork:
    settings = {**MICRO, "rollout": {"slots": 16, "generator": "vllm", "process": process}, "device": "cpu"}
    return Groundwork(Recipe.model_validate(settings), directory, interruption, tokenizer.eos_token_id, longest=400)


def harvest(engine: Any, groups: int) -> list[Group]:
    found: list[Group] = []
    deadline = time.monotonic() + PATIENCE
    while len(found) < groups and time.monotonic() < deadline:
        found += [group for _, _, group in engine.collect(0.5).result(PATIENCE).groups]
    assert len(found) == groups
    return found


@pytest.mark.parametrize("process", ["own", "same"])
def test_an_actor_takes_weights_in_flight_and_every_token_says_which(
    ray: None,
    directory: Path,
    model: Any,
    other_weights: Mapping[str, Tensor],
    tokenizer: Any,
    interruption: Interruption,
    tmp_path: Path,
    process: str,
) -> None:
    from trainer.cluster.ray_engine import RayEngine

    engine = RayEngine(f"g-{process}", groundwork(directory, tokenizer, interruption, process), Generators(), 0)
    try:
        engine.ready.result(PATIENCE)
        first, second = Version(0, 1), Version(0, 2)
        weights = model.state_dict()
        file = WeightsFile(tmp_path / "first", write(tmp_path / "first", weights, weights.items()))
        assert engine.load(file, first).result(PATIENCE).digest == file.digest
        engine.submit("rollout", 0, [request(tokenizer, 100, n=1, limit=2)])
        harvest(engine, 1)  # the first steps are slow
        file = WeightsFile(tmp_path / "second", write(tmp_path / "second", other_weights, other_weights.items()))
        for index in range(2):
            engine.submit("rollout", 0, [request(tokenizer, index, n=8, limit=1000, heat=0.01)])
        busy = engine.collect(0.0).result(PATIENCE).busy
        while engine.collect(0.05).result(PATIENCE).busy < busy + 0.2:
            pass
        assert engine.load(file, second).result(PATIENCE).version == second
        flying = harvest(engine, 2)
        assert {span.version for g in flying for c in g.completions for span in c.spans} == {first, second}
        through = [c for group in flying for c in group.completions if len(c.spans) == 2]
        assert through
        engine.submit("evaluation", 0, [request(tokenizer, 7, n=2)])
        (fresh,) = harvest(engine, 1)
        assert fresh.oldest == second
        assert difference(with_weights(model, other_weights, tokenizer), fresh).abs().max() < CLOSE
        wrong = WeightsFile(file.path, "0" * 64)
        with pytest.raises(RuntimeError, match="digest"):
            engine.load(wrong, Version(0, 3)).result(PATIENCE)
        cores = _cores_of(engine)
        assert bool(cores) == (process == "own")
    finally:
        engine.kill()
    assert all(ended(core) for core in cores)


def _cores_of(engine: Any) -> tuple[int, ...]:
    """Processes of vLLM that the actor has."""
    import ray

    actor = ray.get(engine._actor.where.remote())["pid"]
    return tuple(
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _parent(entry) == actor and b"EngineCore" in (entry / "cmdline").read_bytes()
    )


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def test_a_run_on_ray_trains_with_vllm_in_a_process_of_its_own(ray: None, tmp_path: Path) -> None:
    from controlplane.contract.rundir import RunDir, read_lines
    from tests.cluster.runs import check, go, recipe

    spec = recipe(
        steps=6,
        model={"head_dim": 32},
        rollout={"generator": "vllm", "process": "own"},
        cluster={
            "generators": {"max": 1},
            "deadlines": {"start": PATIENCE, "hang": PATIENCE, "load": PATIENCE, "abort": PATIENCE},
        },
    )
    _, why = go(tmp_path, spec)
    assert why == "end"
    check(tmp_path, spec)
    steps = list(read_lines(RunDir(tmp_path).steps))
    assert max(line["staleness_max"] for line in steps) > 0  # the weights changed while completions were under way
    assert all(abs(line["ratio_mean"] - 1) < 0.05 for line in steps)
    assert all(line["mismatch_kl"] < 0.01 for line in steps)
