"""kill -9 of trainer, metric source and controller while they run; the full count of rounds is in bench/kill_rounds.py."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from controlplane.contract.rundir import append_line, read_lines
from tests.e2e.test_processes import ROOT, TRAINER
from tests.programs import require_program
from tests.trainer.conftest import MICRO


def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kill_rounds", ROOT / "bench" / "kill_rounds.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_rounds"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_killed_one_after_the_other_nothing_is_lost_repeated_or_blocked(tmp_path: Path) -> None:
    kill_rounds, recipe = bench(), tmp_path / "micro.yaml"
    recipe.write_text(yaml.safe_dump({**MICRO, "steps": 100_000}))
    train = [sys.executable, "-c", TRAINER, str(recipe)]
    kills = kill_rounds.Kills(tmp_path, 1, require_program("prometheus"), train)
    try:
        kills.run(3)
    finally:
        kills.close()
    result = kill_rounds.judge(kills)
    assert result["problems"] == []
    assert result["kills"] == {"trainer": 1, "source": 1, "controller": 1}
    assert (result["controller starts"], result["trainer starts"]) == (2, 2)
    assert sum(result["answers"].values()) == result["orders"] == 3
    assert result["answers"].get("none") is None
    # The judge sees what it is there to see.
    answered = next(line for line in read_lines(kills.rundir.control_log) if line["event"] == "answered")
    append_line(kills.rundir.control_log, answered)
    last = list(read_lines(kills.rundir.ledger))[-1]
    append_line(kills.rundir.ledger, {**last, "step": last["step"] + 1})
    problems = kill_rounds.judge(kills)["problems"]
    assert any("was answered" in problem for problem in problems)
    assert any("was trained 2 times" in problem for problem in problems)
