import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from controlplane.journal import Journal
from tests.postgres import server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a real server, shared by the tests; a short path, because sockets have short names."""
    place = Path(tempfile.mkdtemp(prefix="pg"))
    place.chmod(0o755)
    try:
        with server(place / "s") as url:
            yield url
    finally:
        shutil.rmtree(place, ignore_errors=True)


@dataclass
class Place:
    """Where the journal under test is: `open` gives another handle on the same journal."""

    open: Callable[..., Journal]
    where: Path | str
    run: str

    @cached_property
    def shared(self) -> Journal:
        return self.open()


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    where: Path | str = tmp_path / "journal.db"
    run = str(uuid.uuid4())  # the server is shared; the run is not
    if request.param == "postgres":
        where = request.getfixturevalue("postgres")
    opened: list[Journal] = []

    def open_(**more: bool) -> Journal:
        opened.append(Journal(where, run, **more))
        return opened[-1]

    yield Place(open_, where, run)
    for journal in opened:
        journal.close()
