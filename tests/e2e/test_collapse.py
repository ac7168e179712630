"""The real thing, small: a real model under real RL is broken on purpose and has to be brought back by the controller."""

import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.contract.documents import AckState
from controlplane.decide import Kind
from controlplane.record import Record

STEPS, FAULT = 105, 60
SETTINGS = (f"steps={STEPS}", "evaluation.prompts=64", f"faults=[{{step: {FAULT}, kind: base_lr, factor: 20}}]")


@pytest.mark.slow
def test_a_real_run_that_collapses_is_rolled_back_and_ends_above_where_it_was(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    scalerl = [sys.executable, "-m", "controlplane"]
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    with open(tmp_path / "log", "w") as log:
        controller = subprocess.Popen(
            [*scalerl, "control", str(run), "--policy", "demo", "--interval", "0.3"], stdout=log, stderr=log
        )
        trainer = subprocess.Popen([*scalerl, "train", "tiny", "--run", str(run), *settings], stdout=log, stderr=log)
        try:
            assert trainer.wait(timeout=500) == 0, (tmp_path / "log").read_text()[-2000:]
            assert controller.wait(timeout=30) == 0, (tmp_path / "log").read_text()[-2000:]
        finally:
            trainer.kill()
            controller.kill()
    record = Record.of(run)
    assert [event["step"] for event in record.events if event["event"] == "fault"] == [FAULT - 1]
    acts = [look.decision for look in record.actions if look.decision.kind is Kind.act]
    assert [act.rule for act in acts] == ["collapse"]
    assert acts[0].step is not None
    assert FAULT < acts[0].step <= FAULT + 20
    (rollback,) = [event for event in record.events if event["event"] == "rollback"]
    assert rollback["step"] < FAULT
    assert record.observed is not None
    assert record.observed.last_ack is not None
    assert record.observed.last_ack.state is AckState.applied
    assert record.observed.tunables["lr_scale"].value == 0.5
    before = [step["pass_ratio"] for step in record.steps if step["branch"] == 0 and step["step"] < FAULT][-10:]
    assert min(step["pass_ratio"] for step in record.steps if step["step"] >= FAULT) < 0.5 * sum(before) / 10
    after = [step["pass_ratio"] for step in record.steps][-10:]
    assert sum(after) > sum(before)
