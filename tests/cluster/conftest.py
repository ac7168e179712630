"""Two ranks for the whole session; and nobody sleeps while a fake clock goes on."""

from collections.abc import Iterator

import pytest

import trainer.cluster.pool
from tests.cluster.gloo import Ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    pool = Ranks(2, tmp_path_factory.mktemp("gloo") / "store")
    yield pool
    pool.close()


@pytest.fixture(scope="session", autouse=True)
def _no_patience() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.cluster.pool, "PATIENCE", 0.0)
        yield
