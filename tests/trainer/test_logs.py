"""A tracker beside a run: it gets every figure, and whatever it does reaches no step."""

import math
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from controlplane.contract.reports import EvalReport, RolloutStats, StepReport
from controlplane.contract.rundir import RunDir, RunInfo, read_lines
from controlplane.contract.yamlfile import FileError
from tests.trainer.conftest import MICRO, even_sum_passes
from trainer.build import build
from trainer.logs.figures import of_evaluation, of_step
from trainer.logs.queue import LogQueue
from trainer.logs.trackers import opened
from trainer.recipe import Recipe
from trainer.settings import Log
from trainer.tasks.arithmetic import Arithmetic
from trainer.warmstart import warm_started

INFO = RunInfo(
    run_uid="0123456789ab", name="r", created_at=0.0, planned_steps=1, config_hash="x", framework="scalerl",
    algorithm="cispo", model="m",
)  # fmt: skip
ROLLOUTS = RolloutStats(
    rewards=(1.0, -1.0), passed=1, failed=1, lengths=(10, 30), staleness=(0, 2), truncated=1, groups={"mixed": 1}
)
STEP = StepReport(7, 0, 2.5, {"training": 1.0}, 100.0, {}, ROLLOUTS, loss=0.5, tunables={"lr_scale": 1.0})


class Recorder:
    """A tracker that keeps what it gets, when it is let."""

    def __init__(self) -> None:
        self.got: list[Mapping[str, float]] = []
        self.closed = False
        self.gate = threading.Event()
        self.gate.set()

    def log(self, figures: Mapping[str, float]) -> None:
        self.gate.wait(5)
        if figures.get("refuse"):
            raise ConnectionError("gone")
        self.got.append(figures)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """wandb and trackio as far as anybody here calls them."""
    calls: dict[str, Any] = {"init": [], "log": [], "finish": 0, "define": []}

    class Run:
        def log(self, values: dict[str, float], step: int | None = None) -> None:
            calls["log"].append((values, step))

        def define_metric(self, *names: str, **keys: str) -> None:
            calls["define"].append((names, keys))

        def finish(self) -> None:
            calls["finish"] += 1

    def init(**keys: Any) -> Run:
        calls["init"].append(keys)
        return Run()

    for name in ("wandb", "trackio"):
        module = ModuleType(name)
        module.init = init  # type: ignore[attr-defined]
        module.Settings = dict  # type: ignore[attr-defined]
        module.__spec__ = sys.__spec__
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_what_was_not_measured_is_left_out_and_zero_is_not() -> None:
    figures = of_step(STEP)
    assert all(math.isfinite(value) for value in figures.values())
    assert "train/entropy" not in figures
    assert figures["train/skipped"] == 0.0
    assert figures["train/loss"] == 0.5
    expected = {
        "rollout/pass_ratio": 0.5,
        "rollout/length": 20.0,
        "rollout/staleness": 1.0,
        "rollout/truncated_ratio": 0.5,
    }
    assert {name: figures[name] for name in expected} == expected
    assert figures["tunable/lr_scale"] == 1.0


def test_an_evaluation_goes_by_the_name_of_its_set() -> None:
    figures = of_evaluation(EvalReport("aime", 7, 0, 1.0, 8, 4, 0.5, 0.75, 100.0, 0.0, 3.0, pass_at={1: 0.5, 2: 0.6}))
    assert figures["eval/aime/pass_ratio"] == 0.5
    assert [figures[f"eval/aime/pass_at_{j}"] for j in (1, 2, 4)] == [0.5, 0.6, 0.75]
    assert "eval/aime/pass_ratio_stderr" not in figures


def test_everything_put_arrives_in_order_and_the_tracker_is_closed() -> None:
    tracker = Recorder()
    queue = LogQueue(lambda: tracker, 100)
    for step in range(50):
        queue.put({"step": float(step)})
    assert queue.close() == ""
    assert [entry["step"] for entry in tracker.got] == list(range(50))
    assert tracker.closed


def test_a_hanging_tracker_blocks_nobody_and_what_it_misses_is_counted() -> None:
    tracker = Recorder()
    tracker.gate.clear()
    queue = LogQueue(lambda: tracker, 3)
    for step in range(13):
        queue.put({"step": float(step)})
    assert queue.dropped >= 9
    assert "did not finish within 0.5 s" in queue.close(patience=0.5)
    assert queue.dropped == 12  # all but the one that it has in hand
    tracker.gate.set()


def test_a_tracker_that_raises_is_counted_and_gets_the_next_one() -> None:
    tracker = Recorder()
    queue = LogQueue(lambda: tracker, 10)
    for entry in ({"refuse": 1.0}, {"step": 1.0}, {"refuse": 1.0}):
        queue.put(entry)
    assert queue.close() == "0 entries dropped, 2 refused; first: ConnectionError('gone')"
    assert tracker.got == [{"step": 1.0}]


@pytest.mark.parametrize("error", [RuntimeError("no network"), SystemExit(1)])
def test_a_tracker_that_cannot_be_opened_ends_nothing(error: BaseException) -> None:
    def fail() -> Recorder:
        raise error

    queue = LogQueue(fail, 10)
    queue._thread.join(5)
    queue.put({"step": 1.0})
    assert "1 entries dropped" in queue.close()
    assert "cannot be opened" in queue.error


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_package_that_is_not_there_is_one_sentence_before_the_run(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.logs.trackers.find_spec", lambda name: None)
    with pytest.raises(FileError, match=rf"^log\.kind: {kind} is not installed; pip install 'scalerl\[{kind}\]'"):
        opened(Log(kind=kind), INFO, {}, tmp_path)


def test_wandb_is_given_the_step_as_a_figure_because_a_rollback_takes_it_back(fake: Any, tmp_path: Path) -> None:
    queue = opened(Log(kind="wandb", project="p"), INFO, {"seed": 1}, tmp_path)
    assert queue is not None
    for step in (5.0, 6.0, 5.0):
        queue.put({"step": step, "branch": float(step == 5)})
    assert queue.close() == ""
    assert fake["init"][0]["project"] == "p"
    assert fake["init"][0]["resume"] == "allow"
    assert fake["init"][0]["id"] == INFO.run_uid
    assert fake["define"] == [(("step",), {}), (("*",), {"step_metric": "step"})]
    assert [(values["step"], step) for values, step in fake["log"]] == [(5.0, None), (6.0, None), (5.0, None)]
    assert fake["finish"] == 1


def test_a_run_with_a_tracker_is_the_run_without_and_logs_every_step(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Arithmetic, "verify", even_sum_passes)
    losses = []
    for kind in ("none", "trackio"):
        recipe = Recipe.model_validate({**MICRO, "steps": 3, "log": {"kind": kind}})
        rundir = RunDir(tmp_path / kind)
        run = build(recipe, rundir, warm_started(recipe.model, recipe.task, recipe.warm_start))
        assert run.loop.run() == "end"
        assert run.close() == ""
        losses.append([line["loss"] for line in read_lines(rundir.steps)])
    assert losses[0] == losses[1]
    assert [step for values, step in fake["log"] if "train/loss" in values] == [1, 2, 3]
    assert [step for values, step in fake["log"] if "eval/held_out/pass_ratio" in values] == [0, 2, 3]
    assert fake["init"][0]["config"]["steps"] == 3


def test_a_run_whose_tracker_hangs_takes_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Arithmetic, "verify", even_sum_passes)
    tracker = Recorder()
    tracker.gate.clear()
    monkeypatch.setattr("trainer.build.opened", lambda *_: LogQueue(lambda: tracker, 1))
    recipe = Recipe.model_validate({**MICRO, "steps": 3})
    run = build(recipe, RunDir(tmp_path / "run"), warm_started(recipe.model, recipe.task, recipe.warm_start))
    assert run.loop.run() == "end"
    assert run.loop.state.step == 3
    assert run.tracker is not None
    assert run.tracker.dropped >= 3  # four evaluations and steps at least, one in hand, one waiting
    tracker.gate.set()
    run.close()


def test_another_logger_or_port_is_no_other_run() -> None:
    base = Recipe.model_validate(MICRO)
    for keys in ({"log": {"kind": "wandb"}}, {"metrics": {"port": 9464}}, {"cluster": {"gpus_per_node": 4}}):
        assert Recipe.model_validate({**MICRO, **keys}).digest() == base.digest()
    assert Recipe.model_validate({**MICRO, "seed": 5}).digest() != base.digest()
