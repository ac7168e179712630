import json
from pathlib import Path

import numpy as np
import pytest

from controlplane.contract.rundir import RunDir, append_line
from controlplane.contract.yamlfile import FileError
from controlplane.recorded import read_run


def csv(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


def test_a_verl_log_is_understood_and_what_was_guessed_is_said(tmp_path: Path) -> None:
    header = (
        "step,critic/score/mean,actor/grad_norm,response_length/clip_ratio,response_length/mean,critic/rewards/mean"
    )
    table = read_run(csv(tmp_path / "run.csv", header, "1,-0.5,0.6,0.002,1032,9", "2,0.5,0.7,0.004,1100,9"))
    assert table.name == "run"
    assert table.columns["pass_rate"].tolist() == [0.25, 0.75]
    assert table.columns["truncation"].tolist() == [0.002, 0.004]
    assert table.columns["gen_length"].tolist() == [1032, 1100]
    assert "pass_rate: column critic/score/mean, mapped from -1 to 1 onto 0 to 1" in table.notes


def test_a_trainer_state_merges_the_training_and_the_evaluation_row_of_a_step(tmp_path: Path) -> None:
    history = [
        {"step": 5, "reward": 0.25, "completions/clipped_ratio": 0.1, "grad_norm": float("nan"), "num_tokens": 100},
        {"step": 5, "eval_reward": 0.5},
        {"step": 10, "reward": 0.5, "completions/clipped_ratio": 0.2, "grad_norm": 1.5, "num_tokens": 220},
        {"step": 10, "train_runtime": 3.0},
    ]
    path = tmp_path / "checkpoint-10" / "trainer_state.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"log_history": history}))
    table = read_run(path)
    assert table.name == "checkpoint-10"
    assert table.step.tolist() == [5, 10]
    assert table.points("eval_pass_rate")[2].tolist() == [0.5]
    assert (table.compute.tolist(), table.compute_unit) == ([100, 220], "tokens")
    assert table.columns["nonfinite"].tolist() == [1, 0]
    assert read_run(path.parent).step.tolist() == [5, 10]


def test_our_own_run_directory_brings_its_evaluations_and_branches(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path)
    for step, branch, skipped in ((1, 0, ""), (2, 0, "nonfinite"), (3, 0, ""), (2, 1, "")):
        row = {"step": step, "branch": branch, "pass_ratio": 0.5, "n": 64, "compute": 2.0 * step, "skipped": skipped}
        append_line(rundir.steps, row)
    for step in (0, 3):
        append_line(rundir.evals, {"step": step, "branch": 0, "compute": 2.0 * step, "pass_ratio": 0.1 * step})
    table = read_run(tmp_path)
    assert table.step.tolist() == [0, 1, 2, 3, 2]
    assert table.branch.tolist() == [0, 0, 0, 0, 1]
    assert table.samples == 64
    assert table.columns["nonfinite"].tolist() == [0, 0, 1, 0, 0]
    assert table.points("eval_pass_rate")[0].tolist() == [0, 3]
    assert table.lineage().step.tolist() == [0, 1, 2]


def test_the_lineage_leaves_out_what_was_abandoned(tmp_path: Path) -> None:
    rows = [f"{step},0.{value},1" for value, step in enumerate((0, 1, 2, 3, 1, 1, 2), start=1)]
    table = read_run(csv(tmp_path / "run.csv", "step,accuracy,time/total", *rows))
    assert table.branch.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert table.lineage().columns["pass_rate"].tolist() == [0.1, 0.6, 0.7]
    assert table.lineage().compute.tolist() == [1, 2, 3]
    assert any("falls back 1 time" in note for note in table.notes)


def test_samples_are_seen_from_the_grain_and_never_from_the_print(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    grains = [f"{i},{k / 176:.6f}" for i, k in enumerate(rng.integers(90, 170, 40))]
    assert read_run(csv(tmp_path / "a.csv", "step,accuracy", *grains)).samples == 176
    smooth = [f"{i},{value:.3f}" for i, value in enumerate(rng.uniform(0, 1, 40))]
    assert read_run(csv(tmp_path / "b.csv", "step,accuracy", *smooth)).samples is None


def test_counts_become_shares_and_complements_are_turned_round(tmp_path: Path) -> None:
    header = "step,accuracy,rollout_count,truncated_count,env/all/by_group/frac_mixed"
    table = read_run(csv(tmp_path / "a.csv", header, "1,0.5,20,5,0.75", "2,0.6,20,0,1.0"))
    assert table.columns["truncation"].tolist() == [0.25, 0]
    assert table.columns["zero_variance"].tolist() == [0.25, 0]


def test_the_caller_may_name_a_column_and_a_range(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", "step,reward,reward/f", "1,3,10", "2,4,20")
    table = read_run(path, {"pass_rate": "reward/f"}, bounds=(0, 40))
    assert table.columns["pass_rate"].tolist() == [0.25, 0.5]
    with pytest.raises(FileError, match="has no column 'nope'; it has step, reward"):
        read_run(path, {"pass_rate": "nope"})
    with pytest.raises(FileError, match="there is no signal 'nope'"):
        read_run(path, {"nope": "reward"})


def test_an_export_of_weights_and_biases_is_cleaned(tmp_path: Path) -> None:
    header = '"Step","big-run - train/reward","big-run - train/reward__MIN","big-run - train/reward__MAX"'
    table = read_run(csv(tmp_path / "a.csv", header, '"1","0.1","0.0","0.9"', '"2","0.2","0.0","0.9"'))
    assert table.columns["pass_rate"].tolist() == [0.1, 0.2]
    assert table.step.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "step,accuracy\n"), ("a.json", "{}"), ("a.json", "{"), ("a.jsonl", "[1]\n"), ("a.jsonl", "\x00")],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FileError, match=str(tmp_path)) as error:
        read_run(tmp_path / name)
    assert "\n" not in str(error.value)
    with pytest.raises(FileError, match="cannot be read"):
        read_run(tmp_path / "missing.csv")
