"""What can be said of vLLM's set-up without vLLM: where its engine works, over how many GPUs, and who has which rank."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.trainer.conftest import MICRO
from trainer.recipe import Recipe
from trainer.rollout.vllm_common import Setup
from trainer.rollout.vllm_distance import Watch, environment
from trainer.sync.vllm_transfer import _Client


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trainer.model import make_tiny
    from trainer.settings import TinyModel
    from trainer.tasks.tokenizer import character_tokenizer

    path = tmp_path_factory.mktemp("model")
    make_tiny(TinyModel(kv_heads=2), character_tokenizer(), seed=1).save_pretrained(path)
    return path


def setup(directory: Path, devices: int) -> Setup:
    return Setup(directory, 16, 128, 1, tensor_parallel_size=devices)


def recipe(generators: Mapping[str, Any], **rollout: Any) -> Recipe:
    return Recipe.model_validate(
        {**MICRO, "rollout": {"slots": 16, "generator": "vllm", **rollout}, "cluster": {"generators": generators}}
    )


def test_a_model_is_not_split_without_gpus(directory: Path) -> None:
    with pytest.raises(ValueError, match="tensor_parallel_size is 2, and without GPUs a model is not split"):
        setup(directory, 2).arguments(on_cpu=True)
    assert setup(directory, 1).arguments(on_cpu=True)["tensor_parallel_size"] == 1


def test_gpus_share_the_kv_memory_of_the_heads_and_vllm_is_never_left_to_choose_ray(directory: Path) -> None:
    one, two, four = (setup(directory, devices).arguments(on_cpu=False) for devices in (1, 2, 4))
    assert one["kv_cache_memory_bytes"] == 2 * two["kv_cache_memory_bytes"]
    assert two["kv_cache_memory_bytes"] == four["kv_cache_memory_bytes"]  # two heads: each of four devices has one
    assert [each["distributed_executor_backend"] for each in (one, two, four)] == ["uni", "mp", "mp"]


def test_the_split_is_the_generators_gpus_or_the_recipe_is_refused() -> None:
    assert recipe({"gpus": 4}).rollout.tensor_parallel_size is None
    assert recipe({"gpus": 4}, tensor_parallel_size=4, process="own")
    with pytest.raises(ValidationError, match=r"must be cluster\.generators\.gpus, which is 4"):
        recipe({"gpus": 4}, tensor_parallel_size=2)
    with pytest.raises(ValidationError, match="must be own or auto"):
        recipe({"gpus": 2}, process="same")


def test_where_an_engine_works_does_not_make_another_run() -> None:
    assert recipe({}).digest() == recipe({}, process="own").digest() == recipe({}, tensor_parallel_size=2).digest()
    assert recipe({}).digest() != recipe({}, temperature=0.5).digest()


def test_every_generator_gets_ranks_of_its_own() -> None:
    class Four:
        workers: Sequence[int] = (2, 4, 1, 2)

        def join(self, infos: Sequence[Mapping[str, Any]]) -> None:
            self.infos = infos

    client, four = _Client(), Four()
    client.generators = four  # type: ignore[assignment]
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 10, "master_port": 5})
    assert [info["rank_offset"] for info in four.infos] == [1, 3, 7, 8]
    assert {info["world_size"] for info in four.infos} == {10}


def test_an_engine_is_stalled_only_when_no_request_has_a_new_token_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("trainer.rollout.vllm_distance.time.monotonic", lambda: now[0])
    watch = Watch(10.0)
    assert not watch.due()
    looks = [(105.0, [3, 1], False), (114.0, [3, 2], False), (123.0, [3, 2], False), (125.0, [3, 2], True)]
    for at, tokens, stalled in looks:
        now[0] = at
        assert watch.due()
        assert watch.stalled(tokens) is stalled
    now[0] = 126.0
    moves = watch.moves
    watch.reset()  # a request ended
    now[0] = 130.0
    assert not watch.stalled([3])
    assert watch.moves == moves + 2


def test_the_environment_is_lent_for_the_start_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALERL_OLD", "old")
    with environment({"SCALERL_OLD": "new", "SCALERL_NEW": "new"}):
        assert (os.environ["SCALERL_OLD"], os.environ["SCALERL_NEW"]) == ("new", "new")
    assert os.environ["SCALERL_OLD"] == "old"
    assert "SCALERL_NEW" not in os.environ
