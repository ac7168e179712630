from pathlib import Path

import pytest

from controlplane.contract.rundir import RunDir
from tests.agent.house import MemoryMailbox


@pytest.fixture
def rundir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


@pytest.fixture
def mailbox() -> MemoryMailbox:
    return MemoryMailbox()
