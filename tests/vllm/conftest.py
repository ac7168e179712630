"""A tiny sharpened model in one engine for all tests; every test starts under the base weights and a version of its own.

Without vLLM everything here is skipped: `make test-vllm` sets up an environment that has it.
"""

import importlib.util
import itertools
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.model import make_tiny
from trainer.rollout.length import Interruption
from trainer.rollout.vllm_engine import VllmEngine
from trainer.rollout.vllm_generator import VllmGenerator
from trainer.settings import TinyModel
from trainer.tasks.tokenizer import character_tokenizer
from trainer.types import Version

SLOTS = 16
PHRASE = "</think><answer>"
TESTS = Path(__file__).parent

if importlib.util.find_spec("vllm") is not None:
    # vLLM imports Ray, and Ray reads how it is protected when it is imported.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if TESTS in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="vllm is not installed here: run `make test-vllm`"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return character_tokenizer()


def sharpened(model: Any) -> Any:
    """A random model says almost the same of every token; larger weights make it have preferences."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model.eval()


@pytest.fixture(scope="session")
def model(tokenizer: Any) -> Any:
    """The shipped tiny shape; float32."""
    return sharpened(make_tiny(TinyModel(), tokenizer, seed=3))


@pytest.fixture(scope="session")
def other_weights(tokenizer: Any) -> Mapping[str, Tensor]:
    return dict(sharpened(make_tiny(TinyModel(), tokenizer, seed=4)).state_dict())


@pytest.fixture(scope="session")
def directory(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def shared_engine(directory: Path, tokenizer: Any) -> VllmEngine:
    torch.set_num_threads(1)
    return VllmEngine(directory, SLOTS, 512, tokenizer.eos_token_id)


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    return itertools.count(1)


@pytest.fixture
def engine(shared_engine: VllmEngine, model: Any, numbers: Iterator[int]) -> Iterator[VllmEngine]:
    shared_engine.load(model.state_dict(), Version(0, next(numbers) * 100))
    yield shared_engine
    for key in list(shared_engine._asks):
        shared_engine.drop(key)


@pytest.fixture(scope="session")
def interruption(tokenizer: Any) -> Interruption:
    return Interruption(tuple(tokenizer.encode(PHRASE)), tokenizer.convert_tokens_to_ids("</think>"), (0.5, 1.0))


@pytest.fixture
def generator(engine: VllmEngine, interruption: Interruption) -> VllmGenerator:
    return VllmGenerator(engine, SLOTS, interruption)
