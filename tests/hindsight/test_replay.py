import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from controlplane.cli import app
from controlplane.contract.documents import Action
from controlplane.hindsight import Hindsight, fitted, of_table, rehearse, words
from controlplane.policy import load
from controlplane.recorded import Table, read_run
from controlplane.snapshot import Snapshot


def log(path: Path, rows: int = 200, fault_at: int | None = None, seconds: str = "") -> Path:
    """A log as TRL writes it; at `fault_at` the reward falls and the gradient norm rises within eight rows."""
    rng = np.random.default_rng(1)
    lines = [
        "step,reward,grad_norm,completions/clipped_ratio,frac_reward_zero_std,entropy"
        + (",step_time" if seconds else "")
    ]
    for step in range(1, rows + 1):
        sick = 0.0 if fault_at is None else min(1.0, max(0.0, (step - fault_at) / 8))
        reward = float(np.clip(0.6 * (1 - 0.8 * sick) + rng.normal(0, 0.03), 0, 1))
        norm = 0.3 * float(np.exp(rng.normal(0, 0.15))) * (1 + 8 * sick)
        row = f"{step},{reward:.5f},{norm:.5f},{0.01 + 0.2 * sick:.4f},{0.3 + 0.5 * sick:.4f},0.4"
        lines.append(row + (f",{seconds if step == rows // 2 else 30}" if seconds else ""))
    path.write_text("\n".join(lines) + "\n")
    return path


def under(path: Path, policy: str) -> tuple[Table, list[Snapshot], Hindsight]:
    table = read_run(path)
    frames, _ = of_table(table)
    return table, [frame.snapshot for frame in frames], rehearse(frames, fitted(load(policy), table)[0])


def test_a_healthy_log_is_left_alone(tmp_path: Path) -> None:
    table, _, hindsight = under(log(tmp_path / "run.csv"), "guard")
    assert hindsight.acts == ()
    assert "nothing would have been said" in words.headline(table, hindsight)


def test_a_collapse_would_have_been_rolled_back_behind_its_onset(tmp_path: Path) -> None:
    table, _, hindsight = under(log(tmp_path / "run.csv", fault_at=150), "guard")
    first = hindsight.acts[0]
    back = next(each for each in hindsight.acts if each.rolls_back)
    assert 150 < first.step <= back.step <= 165
    assert back.change is not None
    assert back.change.target is not None
    assert back.change.target.step < 150
    assert f"the first action would have come at step {first.step}: " in words.headline(table, hindsight)
    assert hindsight.alarms["pass_drop"][0][0] > 150


def test_a_policy_that_only_observes_never_says_that_it_would_have_acted(tmp_path: Path) -> None:
    path = log(tmp_path / "run.csv", fault_at=150)
    _, _, hindsight = under(path, "guard")
    table = read_run(path)
    observing = rehearse(of_table(table)[0], load("guard").model_copy(update={"autonomy": {}}))
    assert hindsight.acts
    assert observing.acts == ()
    assert any(each.verb == "observe" and each.change for each in observing.said)


def test_a_pause_in_the_log_is_looked_at_while_it_lasts(tmp_path: Path) -> None:
    _, snapshots, hindsight = under(log(tmp_path / "run.csv", seconds="7200"), "guard")
    assert len(snapshots) > 220
    assert any(each.rule == "stalled" for each in hindsight.said)


def test_every_look_is_one_that_a_controller_could_have_had(tmp_path: Path) -> None:
    for snapshot in under(log(tmp_path / "run.csv", rows=60), "observe")[1]:
        again = Snapshot.model_validate_json(snapshot.model_dump_json())
        assert again == Snapshot.model_validate(snapshot.model_dump())
        assert again.observed is not None
        assert Action.rollback in again.observed.actions


def test_the_command_prints_draws_and_says_what_it_guessed(tmp_path: Path) -> None:
    path = log(tmp_path / "run.csv", fault_at=150)
    picture = tmp_path / "run.png"
    result = CliRunner().invoke(app, ["replay", str(path), "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "would act: roll back to step" in result.output
    assert "truncation: column completions/clipped_ratio" in result.output
    assert "checkpoints are assumed every 10 steps" in result.output
    result = CliRunner().invoke(app, ["replay", str(path), "--json"])
    said = json.loads(result.output)
    assert said[-1]["verb"] in ("act", "advise", "page")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--column", "pass_rate", "must be SIGNAL=COLUMN"),
        ("--column", "pass_rate=nope", "has no column 'nope'"),
        ("--range", "3,1", "must be two numbers"),
        ("--plot", "picture.bmp", "ends in .png or .svg"),
        ("--policy", "nope", "shipped policies are"),
    ],
)
def test_what_the_user_gives_wrong_is_one_sentence(tmp_path: Path, option: str, value: str, message: str) -> None:
    result = CliRunner().invoke(app, ["replay", str(log(tmp_path / "run.csv", rows=30)), option, value])
    assert result.exit_code != 0
    assert message in str(result.exception)
