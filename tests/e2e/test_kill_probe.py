"""kill -9 of trainer, controller and spare process in the middle of probes; more rounds are in bench/tuning/kill_probe.py."""

import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("optuna", reason="the extra `tune` is not installed")

from bench.tuning.kill_probe import Kills, judge, lines
from controlplane.contract.rundir import append_line
from tests.e2e.test_processes import TRAINER
from tests.trainer.conftest import MICRO


@pytest.mark.slow
def test_killed_in_the_middle_of_a_probe_nothing_is_adopted_twice_and_no_trial_stays_open(tmp_path: Path) -> None:
    recipe = tmp_path / "micro.yaml"
    recipe.write_text(yaml.safe_dump({**MICRO, "steps": 100_000, "guard_rails": {"cooldown_steps": 0}}))
    kills = Kills(tmp_path, 1, [sys.executable, "-c", TRAINER, str(recipe)])
    try:
        kills.run(["inline", "inline", "spare", "spare"])
    finally:
        kills.close()
    result = judge(kills)
    assert result["problems"] == []
    assert result["kills"] == {"trainer": 2, "controller": 1, "helper": 1}
    assert result["probes"] == 4
    # The judge sees what it is there to see.
    ledger = lines(kills.rundir.ledger)
    append_line(kills.rundir.ledger, {**ledger[-1], "ordinals": [*ledger[-1]["ordinals"], *ledger[-1]["ordinals"]]})
    append_line(next(iter(kills.rundir.probes.glob("*.jsonl"))), {"kind": "end", "outcome": "up"})
    problems = judge(kills)["problems"]
    assert any("has 2 ends" in problem for problem in problems)
    assert any("was trained 2 times" in problem for problem in problems)
