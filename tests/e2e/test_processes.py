"""Trainer and controller as real processes: neither needs the other to live, and neither loses anything when killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.contract.rundir import RunDir, read_lines
from controlplane.journal import EntryKind, Journal
from controlplane.metricstore import MetricStore, StoreError
from controlplane.record import Record
from controlplane.replay import replay
from tests.trainer.conftest import MICRO

ROOT = Path(__file__).parents[2]
STEPS = 50

TRAINER = """
import typer
from tests.trainer.conftest import even_sum_passes
from trainer.tasks.arithmetic import Arithmetic
from trainer.cli import train
Arithmetic.verify = even_sum_passes
typer.run(train)
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "micro.yaml"
    path.write_text(yaml.safe_dump({**MICRO, "steps": STEPS}))
    return path


def process(*command: str) -> "subprocess.Popen[str]":
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def train(recipe: Path, run: Path) -> "subprocess.Popen[str]":
    return process("-c", TRAINER, str(recipe), "--run", str(run))


def control(run: Path) -> "subprocess.Popen[str]":
    return process(
        "-m", "controlplane", "control", str(run), "--policy", "demo", "--interval", "0.05", "--record", "0.2"
    )


def looks(run: Path) -> int:
    try:
        return len(Record.of(run).looks)
    except OSError:
        return 0


def recorded_starts(run: Path) -> set[float]:
    """Starts of controllers that the built-in store has seen."""
    try:
        return set(MetricStore(RunDir(run).metrics, read_only=True).read("rl_controller_start_timestamp_seconds")[1])
    except StoreError:
        return set()


def wait_until(condition: Any, *running: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "took too long"
        for each in running:
            assert each.poll() is None, each.communicate()[0]
        time.sleep(0.02)


def learned(run: Path) -> list[tuple[Any, ...]]:
    """What the trainer did, without its times."""
    steps = [
        (s["step"], s["branch"], s["loss"], s["grad_norm"], s["pass_ratio"], s["lr"])
        for s in read_lines(RunDir(run).steps)
    ]
    return [*map(repr, steps), *[(x["step"], x["ordinals"]) for x in read_lines(RunDir(run).ledger)]]


def test_killing_the_controller_changes_nothing_and_a_new_one_carries_on(recipe: Path, tmp_path: Path) -> None:
    alone, watched = tmp_path / "alone", tmp_path / "watched"
    lonely = train(recipe, alone)
    output = lonely.communicate()[0]
    assert lonely.returncode == 0, output
    watched.mkdir()
    controller, trainer = control(watched), train(recipe, watched)
    wait_until(lambda: looks(watched) >= 5 and recorded_starts(watched), controller, trainer)
    os.kill(controller.pid, signal.SIGKILL)
    controller.wait()
    seen = looks(watched)
    controller = control(watched)
    output = trainer.communicate()[0]
    assert trainer.returncode == 0, output
    assert controller.wait(timeout=30) == 0
    assert learned(watched) == learned(alone)
    record = Record.of(watched)
    assert record.controller_starts == 2
    assert record.controller_ended
    assert len(record.looks) > seen
    journal = Journal(record.rundir.journal)
    assert replay(journal).differences == ()
    kinds = [entry.kind for entry in journal.entries()]
    assert kinds[0] is EntryKind.start
    assert kinds[-1] is EntryKind.stop
    recorded = MetricStore(record.rundir.metrics, read_only=True)
    assert recorded.read("rl_trainer_global_step")[1].max() >= 5
    assert len(recorded_starts(watched)) == 2
    last = recorded.span()[1]
    assert recorded.read("rl_controller_start_timestamp_seconds", last)[1].size == 1, "the last page is recorded, too"


def test_sigterm_ends_a_controller_cleanly_and_leaves_the_trainer_alone(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    controller, trainer = control(run), train(recipe, run)
    wait_until(lambda: looks(run) >= 2, controller, trainer)
    controller.send_signal(signal.SIGTERM)
    assert controller.wait(timeout=20) == 0
    assert Record.of(run).controller_ended
    assert not RunDir(run).controller_target.exists()
    output = trainer.communicate()[0]
    assert trainer.returncode == 0, output


def test_a_controller_that_waits_for_its_trainer_can_be_stopped(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    controller = control(run)
    assert controller.stdout is not None
    assert "waits for a trainer" in controller.stdout.readline()
    controller.send_signal(signal.SIGTERM)
    assert controller.wait(timeout=20) == 0
    assert list(run.iterdir()) == []
