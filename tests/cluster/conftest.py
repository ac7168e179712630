"""Two gloo ranks and one local Ray for the whole session; and nobody sleeps while a fake clock goes on."""

import os
import secrets
from collections.abc import Iterator

import pytest

os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # read when Ray is imported

import trainer.cluster.pool
from tests.cluster.gloo import Ranks
from trainer.cluster.ray_session import connected


@pytest.fixture(scope="package")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    pool = Ranks(2, tmp_path_factory.mktemp("gloo") / "store")
    yield pool
    pool.close()


@pytest.fixture(scope="package")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """One rank."""
    pool = Ranks(1, tmp_path_factory.mktemp("gloo") / "store")
    yield pool
    pool.close()


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
    """Started as a run would start it; runs of this process find it and leave it alone."""
    with connected("", 8):
        yield


@pytest.fixture
def no_patience() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.cluster.pool, "PATIENCE", 0.0)
        yield
