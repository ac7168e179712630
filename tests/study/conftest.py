"""Studies run with a trainer that pretends."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from controlplane.study import runs as processes
from controlplane.study import study as studies


def pretend(recipe: str, root: Path, settings: Mapping[str, str]) -> tuple[str, ...]:
    """The command of the trainer that pretends."""
    return sys.executable, str(Path(__file__).with_name("pretender.py")), str(root), json.dumps(dict(settings))


@pytest.fixture(autouse=True)
def pretender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "trainer_command", pretend)
    monkeypatch.setattr(processes, "LOOK_SECONDS", 0.02)
