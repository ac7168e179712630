"""The train command: refuses before writing, survives kill -9, and goes on where it stopped."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from controlplane.contract.rundir import RunDir, read_lines
from controlplane.contract.yamlfile import FileError
from tests.trainer.conftest import MICRO
from trainer.cli import train
from trainer.recipe import Recipe, find_recipe, load_recipe

ROOT = Path(__file__).parents[2]
APP = typer.Typer()
APP.command()(train)

PROGRAM = """
import typer
from tests.trainer.conftest import even_sum_passes
from trainer.tasks.arithmetic import Arithmetic
from trainer.cli import train
Arithmetic.verify = even_sum_passes
typer.run(train)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "micro.yaml"
    path.write_text(yaml.safe_dump({**MICRO, "steps": 40, "checkpoint": {"every": 3}}))
    return path


def launch(file: Path, run: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, str(file), "--run", str(run)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_step(run: Path, step: int, process: "subprocess.Popen[str]") -> None:
    while not any(line["step"] >= step for line in read_lines(RunDir(run).steps)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def test_a_killed_run_goes_on_and_trains_every_prompt_exactly_once(file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch(file, run)
    wait_for_step(run, 17, process)
    refused = CliRunner().invoke(APP, [str(file), "--run", str(run)])
    assert refused.exit_code == 2
    assert "another trainer works in this directory" in refused.output
    process.kill()
    process.communicate()
    process = launch(file, run)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    rundir = RunDir(run)
    assert [event["event"] for event in read_lines(rundir.events) if event["event"] != "checkpoint"] == [
        "start", "resume", "end",
    ]  # fmt: skip
    last = {(line["branch"], line["step"]): line for line in read_lines(rundir.ledger)}
    assert sorted(last) == [(0, step) for step in range(1, 41)]
    items = [(line["epoch"], ordinal) for line in last.values() for ordinal in line["ordinals"]]
    items += [tuple(pair) for line in last.values() for pair in line.get("next_epoch", [])]
    assert len(items) == 160
    assert max(Counter(items).values()) == 1
    assert Counter(epoch for epoch, _ in items)[0] == 40  # the first epochs are complete
    again = CliRunner().invoke(APP, [str(file), "--run", str(run)])
    assert again.exit_code == 0
    assert "has ended" in again.output


def test_sigterm_finishes_the_step_and_leaves_a_checkpoint(file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch(file, run)
    wait_for_step(run, 4, process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    done = [line["step"] for line in read_lines(RunDir(run).steps)][-1]
    assert (run / "checkpoints" / f"step-{done:06d}-b0" / "manifest.json").exists()
    *_, event = read_lines(RunDir(run).events)
    assert (event["event"], event["reason"], event["step"]) == ("stop", "SIGTERM", done)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nsteps: 3\noptimiser: {lr: 1}\n", ":3: optimiser: unknown key; did you mean 'optimizer'?"),
        ("name: x\nsteps: three\n", ":2: steps: "),
        ("name: x\nsteps: 3\nbatch:\n  samples_per_prompt: 1\n", ":4: batch.samples_per_prompt: "),
        (
            "name: x\nsteps: 3\nguard_rails: {bounds: {lr_scale: {min: 2, max: 3}}}\n",
            ":3: guard_rails.bounds.lr_scale: the recipe's own lr_scale of 1 is outside 2 to 3",
        ),
        (
            "name: x\nsteps: 3\nguard_rails: {bounds: {clip: {min: 0, max: 1}}}\n",
            ":3: guard_rails: unknown tunable 'clip'; known are lr_scale",
        ),
        (
            "name: x\nsteps: 3\nprecision:\n  learner_head: model\n",
            ":4: precision.learner_head: generator_head must be the same: ",
        ),
        ("name: x\nsteps: 3\nmodel: {path: nowhere}\n", ":3: model.path: nowhere is not a model directory"),
        ("name: x\nsteps: 3\nfaults: [{step: 1, kind: gamma, factor: 2}]\n", "faults[0].kind"),
    ],
)
def test_a_bad_recipe_is_one_line_and_nothing_is_written(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    result = CliRunner().invoke(APP, [str(file), "--run", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "unknown key; did you mean 'lr'?"),
        ("steps", "give KEY=VALUE"),
        ("steps=-1", "steps: "),
        ("steps.more=1", "single value"),
    ],
)
def test_a_bad_override_is_one_line_and_nothing_is_written(tmp_path: Path, override: str, message: str) -> None:
    result = CliRunner().invoke(APP, ["tiny", "--run", str(tmp_path / "run"), "--set", override])
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_recipe_names_the_shipped_ones() -> None:
    with pytest.raises(FileError, match=r"no such recipe.*tiny"):
        find_recipe("tinny")


def test_another_recipe_for_an_existing_run_is_refused_before_anything_is_written(file: Path, tmp_path: Path) -> None:
    rundir = RunDir(tmp_path / "run")
    rundir.root.mkdir()
    rundir.recipe.write_text(load_recipe(file).dump())
    rundir.info.write_text("{}")
    before = {path: path.read_bytes() for path in rundir.root.iterdir()}
    result = CliRunner().invoke(APP, [str(file), "--run", str(rundir.root), "--set", "optimizer.lr=3e-5"])
    assert result.exit_code == 2
    assert "another recipe (different: optimizer)" in result.output
    assert {path: path.read_bytes() for path in rundir.root.iterdir()} == before


def test_a_missing_vllm_is_one_sentence(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    run = str(tmp_path / "run")
    result = CliRunner().invoke(APP, [str(file), "--run", run, "--quiet", "--set", "rollout.generator=vllm"])
    assert result.exit_code == 2
    assert "cannot start: sampling with vLLM needs vllm" in result.output.splitlines()[-1]


def test_the_shipped_recipe_is_what_it_says_and_reads_back(tmp_path: Path) -> None:
    recipe = load_recipe(find_recipe("tiny"))
    assert (recipe.batch.prompts_per_step, recipe.batch.samples_per_prompt, recipe.loss.ratio_max) == (16, 8, 5.0)
    path = tmp_path / "again.yaml"
    path.write_text(recipe.dump())
    assert load_recipe(path) == recipe
    assert load_recipe(path).digest() == recipe.digest()
    changed = load_recipe(
        find_recipe("tiny"), {"optimizer.lr": "3e-5", "faults": "[{step: 5, kind: base_lr, factor: 10}]"}
    )
    assert changed.optimizer.lr == 3e-5
    assert changed.faults[0].factor == 10
    assert isinstance(changed, Recipe)


def test_the_command_line_is_quick_because_torch_comes_late() -> None:
    code = "import sys, trainer.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
