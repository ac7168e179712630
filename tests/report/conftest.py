"""Runs written once for all tests of the report and of the live view."""

from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.record import Record
from tests.report.written import write_run

Runs = Callable[[str], Path]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The directory of a run by its kind; see `written.KINDS`."""
    written: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in written:
            written[kind] = write_run(tmp_path_factory.mktemp("runs") / kind, kind)
        return written[kind]

    return of


@pytest.fixture
def record(runs: Runs) -> Callable[[str], Record]:
    """A fresh record of a run by its kind."""
    return lambda kind: Record.of(runs(kind))
