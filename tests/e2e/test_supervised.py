"""Our own trainer under `scalerl supervise`: killed, it goes on from its checkpoint, without a flag, to its end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from controlplane.contract.rundir import RunDir, read_lines
from tests.e2e.test_processes import ROOT, TRAINER
from tests.trainer.conftest import MICRO


@pytest.mark.slow
def test_our_trainer_killed_under_supervision_goes_on_to_its_end(tmp_path: Path) -> None:
    recipe, run = tmp_path / "micro.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump({**MICRO, "steps": 12}))
    train = [sys.executable, "-c", TRAINER, str(recipe), "--run", str(run)]
    command = [sys.executable, "-m", "controlplane.supervise", "--run", str(run), "--first-wait", "0.1", "--", *train]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("wb") as log:
        supervisor = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while sum(1 for _ in read_lines(RunDir(run).steps)) < 5:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.02)
        children = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        assert supervisor.wait(timeout=180) == 0, (tmp_path / "log").read_text()[-2000:]
    finally:
        supervisor.terminate()
        supervisor.wait(timeout=60)
    told = [(line["then"], line["code"]) for line in read_lines(RunDir(run).supervised) if line["event"] == "decided"]
    assert told == [("again", -9), ("end", 0)]
    events = [line["event"] for line in read_lines(RunDir(run).events)]
    assert events.count("resume") == 1
    assert events[-1] == "end"
    assert sorted({line["step"] for line in read_lines(RunDir(run).ledger)}) == list(range(1, 13))
