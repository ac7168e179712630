"""Two ranks for the whole session."""

from collections.abc import Iterator

import pytest

from tests.cluster.gloo import Ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    pool = Ranks(2, tmp_path_factory.mktemp("gloo") / "store")
    yield pool
    pool.close()
