"""Arms beside the run: the run goes on as if there were none, and what is adopted is a value."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from controlplane.agent import BoundaryState, Directive
from controlplane.contract.documents import AckState, Action, Design, Probe, Setting
from controlplane.contract.rundir import RunDir, read_lines
from tests.trainer import rig
from tests.trainer.conftest import Script
from tests.trainer.test_probe import ARMS, LAST, START, STEPS, arm, outcome, ruling
from trainer.loop import Loop
from trainer.probe import helper
from trainer.probe.helper import LocalProcess, Order
from trainer.probe.record import Record
from trainer.recipe import Recipe

Then = Callable[[BoundaryState, list[dict[str, Any]]], Directive | None]
SPEC = rig.recipe(steps=LAST, staleness={"max_staleness": 2}, batch={"prompts_per_step": 3}, checkpoint={"keep": 9})


class AtOnce:
    """A helper that is the same code in a thread, joined where a test wants all arms to be there."""

    def __init__(self, folder: Path, wait: bool = True, fails: str = "", pause: float = 0.0) -> None:
        self._folder, self._fails, self._pause = folder, fails, pause
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()
        if wait:
            self._thread.join()

    def _train(self) -> None:
        loop = rig.assemble(self._folder, SPEC, helper.Deaf())
        order = Order.read(self._folder)
        snapshot = torch.load(self._folder / "snapshot.pt", weights_only=False)
        if self._pause:
            step = loop.machine.stepper.step
            loop.machine.stepper.step = lambda: (time.sleep(self._pause), step())[1]  # type: ignore[method-assign]
        helper.train(loop.machine, order, snapshot, Record(self._folder.parent / order.record))

    def failed(self) -> str | None:
        return None if self._thread.is_alive() else self._fails

    def stop(self) -> None:
        (self._folder / "stopped.json").write_text('["control", "up", "down"]')
        self._thread.join()


def order(
    where: Design = Design.spare, wait: float = 0.0, arms: dict[str, dict[str, float]] | None = None
) -> Directive:
    arms = arms or ARMS
    settings = {name: {n: Setting(value=v) for n, v in sets.items()} for name, sets in arms.items()}
    turns = ("control", "up", "up", "control") if where is Design.switchback else ()
    steps = 2 if where is Design.switchback else STEPS
    spec = Probe(probe_id="p1", arms=settings, steps=steps, wait_seconds=wait, where=where, segments=turns)
    return Directive("d1", 1, {}, Action.probe, probe=spec, arms=arms)


def ran(root: Path, then: Then = lambda *_: None, launch: Any = AtOnce, **order_: Any) -> tuple[Loop, Script, RunDir]:
    ordered = False

    def ask(state: BoundaryState) -> Directive | None:
        nonlocal ordered
        if state.step == START and not ordered:
            ordered = True
            return order(**order_)
        return then(state, list(read_lines(root / "probes/p1.jsonl"))) if state.probe else None

    script = Script(ask)
    loop = rig.assemble(root, SPEC, script, launch=launch)
    assert loop.run() == "end"
    return loop, script, RunDir(root)


def untouched(root: Path) -> tuple[Loop, RunDir]:
    loop = rig.assemble(root, SPEC, Script())
    loop.run()
    return loop, RunDir(root)


def test_the_run_goes_on_bit_for_bit_as_without_a_probe_while_its_arms_are_trained(tmp_path: Path) -> None:
    plain, quiet = untouched(tmp_path / "plain")
    probed, script, rundir = ran(tmp_path / "run")
    assert outcome(rundir) == ("control", "no ruling came in time")
    one, other = plain._learner.state_dict(), probed._learner.state_dict()
    assert one["model"]["weight"].equal(other["model"]["weight"])
    assert [line["ordinals"] for line in read_lines(quiet.ledger)] == [
        line["ordinals"] for line in read_lines(rundir.ledger)
    ]
    assert not any(boundary.standing_still for boundary in script.boundaries)


def test_the_control_of_the_helper_is_the_run_itself_and_all_arms_share_prompts_and_seeds(tmp_path: Path) -> None:
    _, _, rundir = ran(tmp_path / "run", arms={"same": {"temperature": 0.9999}, "up": {"lr_scale": 2.0}})
    record = list(read_lines(rundir.probes / "p1.jsonl"))
    control, same, up = (
        [(line["step"], line["prompts"]) for line in arm(record, name)] for name in ("control", "same", "up")
    )
    own = {
        line["step"]: sorted([[line["epoch"], o] for o in line["ordinals"]] + line.get("next_epoch", []))
        for line in read_lines(rundir.ledger)
    }
    assert [sorted(prompt[:2] for prompt in prompts) for _, prompts in control] == [own[step] for step, _ in control]
    assert len(control) == STEPS
    assert same == control
    assert up[0] == control[0]
    assert up[1:] != control[1:]


def test_arms_in_turns_are_what_each_would_be_alone(tmp_path: Path) -> None:
    _, _, together = ran(tmp_path / "both")
    _, _, alone = ran(tmp_path / "one", arms={"down": ARMS["down"]})
    mine, theirs = (
        [
            (line["t"], line["prompts"], line["grad_norm"])
            for line in arm(list(read_lines(run.probes / "p1.jsonl")), "down")
        ]
        for run in (together, alone)
    )
    assert len(mine) == STEPS
    assert mine == theirs


def test_adopted_is_the_value_alone_from_the_next_step_on(tmp_path: Path) -> None:
    def adopt(state: BoundaryState, record: list[dict[str, Any]]) -> Directive | None:
        return ruling({"lr_scale": 2.0}, adopt="up") if record[-1]["kind"] == "waiting" else None

    loop, script, rundir = ran(tmp_path / "run", adopt, wait=20.0)
    assert outcome(rundir) == ("up", "adopted the values of up")
    assert script.acks[-1][1] is AckState.applied
    at = script.acks[-1][2]
    assert (loop.tunables["lr_scale"], loop.state.branch, loop.state.forks) == (2.0, 0, {})
    scales = {report.step: report.tunables["lr_scale"] for report in script.steps}
    assert all((scale == 2.0) == (step > at) for step, scale in scales.items())
    assert [report.step for report in script.steps] == list(range(1, LAST + 1))
    end = list(read_lines(rundir.probes / "p1.jsonl"))[-1]
    assert end["device_seconds_not_kept"] == pytest.approx(sum(end["device_seconds"].values()))
    assert len(end["device_seconds"]) == 3
    assert not list(rundir.probes.glob("*.spare"))


def test_an_arm_is_stopped_by_a_ruling_and_the_next_one_begins(tmp_path: Path) -> None:
    def stop(state: BoundaryState, record: list[dict[str, Any]]) -> Directive | None:
        time.sleep(0.03)
        return ruling(stop=("up",)) if record[-1]["kind"] in ("begin", "step") and not arm(record, "down") else None

    _, _, rundir = ran(tmp_path / "run", stop, lambda folder: AtOnce(folder, wait=False, pause=0.05), wait=5.0)
    record = list(read_lines(rundir.probes / "p1.jsonl"))
    stopped = [line["arm"] for line in record if line["kind"] == "stopped"]
    assert stopped[:1] == ["up"]
    assert len(stopped) == len(set(stopped)), "the end of the probe stops what is left, and nothing twice"
    assert len(arm(record, "up")) < STEPS
    assert arm(record, "down")


@pytest.mark.parametrize("where", [Design.spare, Design.switchback])
def test_a_value_changed_from_outside_ends_the_probe_and_a_pause_does_not(tmp_path: Path, where: Design) -> None:
    said: list[Directive] = [
        Directive("d2", 2, {}, Action.pause),
        Directive("d3", 3, {}, Action.resume),
        Directive("d4", 4, {"lr_scale": 0.7}),
    ]

    def other(state: BoundaryState, record: list[dict[str, Any]]) -> Directive | None:
        return said.pop(0) if said else None

    arms = {"up": {"lr_scale": 2.0}} if where is Design.switchback else ARMS
    loop, script, rundir = ran(tmp_path / "run", other, where=where, arms=arms, wait=9.0)
    assert outcome(rundir) == ("control", "decision d4 is carried out on the run itself")
    assert not said
    assert loop.tunables["lr_scale"] == 0.7
    assert script.acks[-1][:2] == ("d4", AckState.applied)


def test_a_helper_that_breaks_ends_the_probe_and_nothing_else(tmp_path: Path) -> None:
    loop, _, rundir = ran(tmp_path / "run", launch=lambda folder: AtOnce(folder, fails="it broke"))
    assert outcome(rundir) == ("control", "it broke")
    assert loop.state.step == LAST


def test_a_helper_that_cannot_start_is_a_refusal_that_leaves_nothing_behind(tmp_path: Path) -> None:
    def launch(folder: Path) -> AtOnce:
        raise OSError("no process can be had")

    _, script, rundir = ran(tmp_path / "run", launch=launch)
    assert script.acks[0][1] is AckState.rejected
    assert "no process can be had" in script.acks[0][4]
    assert not list(rundir.probes.iterdir())


def test_without_room_for_a_second_process_spare_is_refused(tmp_path: Path) -> None:
    _, script, _ = ran(tmp_path / "run", launch=None)
    assert "no room for a second process" in script.acks[0][4]


def test_a_switchback_takes_turns_inside_the_run_and_shows_the_value_in_force_to_nobody(tmp_path: Path) -> None:
    loop, script, rundir = ran(tmp_path / "run", where=Design.switchback, arms={"up": {"lr_scale": 2.0}})
    scales = [report.tunables["lr_scale"] for report in script.steps]
    assert scales == [1.0] * (START + 1) + [2.0, 2.0] + [1.0] * (LAST - START - 3)
    assert {boundary.values["lr_scale"] for boundary in script.boundaries} == {1.0}
    record = list(read_lines(rundir.probes / "p1.jsonl"))
    assert [(line["arm"], line["t"]) for line in record if line["kind"] == "step"] == [
        ("control", 1),
        ("up", 2),
        ("up", 3),
        ("control", 4),
    ]
    assert record[-1]["device_seconds_not_kept"] == 0
    assert loop.state.branch == 0


def test_a_crash_during_a_probe_is_closed_at_the_next_start_whatever_the_crash_has_left(tmp_path: Path) -> None:
    root = tmp_path / "run"
    _, _, rundir = ran(root)
    whole = (rundir.probes / "p1.jsonl").read_text()
    torn = "".join(line + "\n" for line in whole.splitlines() if '"kind":"step"' in line or '"begin"' in line) + '{"kin'
    (rundir.probes / "p2.jsonl").write_text(torn)
    (rundir.probes / "p2.spare").mkdir()
    rig.assemble(root, rig.recipe(**{**SPEC.model_dump(), "steps": LAST + 1}), Script()).run()
    assert (rundir.probes / "p1.jsonl").read_text() == whole
    last = list(read_lines(rundir.probes / "p2.jsonl"))[-1]
    assert (last["outcome"], last["reason"]) == ("control", "the trainer ended during the probe")
    assert last["device_seconds"]["up"] > 0
    assert not (rundir.probes / "p2.spare").exists()


# The real process, on the smallest real model


def beside(start: Callable[..., Loop], recipe: Recipe, ask: Callable[[BoundaryState], Directive | None]) -> Script:
    script = Script(ask)
    loop = start(recipe, script)
    loop.run()
    return script


@pytest.fixture
def long(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"steps": 400, "evaluation": recipe.evaluation.model_copy(update={"every": 1000})})


def test_a_process_of_its_own_trains_the_arms_from_weights_and_completions_in_flight(
    start: Callable[..., Loop], rundir: RunDir, long: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, so that both sides have the same verifier; everything goes through the files."""
    monkeypatch.setattr(helper, "NICENESS", 0)

    class Here:
        def __init__(self, process: LocalProcess, folder: Path) -> None:
            (folder / "recipe.yaml").write_text(process.recipe.dump())
            helper.main([str(folder), str(process.start)])

        def failed(self) -> str:
            return ""

        def stop(self) -> None: ...

    monkeypatch.setattr(LocalProcess, "__call__", lambda process, folder: Here(process, folder))
    beside(
        start,
        long.model_copy(update={"steps": LAST}),
        lambda state: order(arms={"up": {"lr_scale": 3.0}}) if state.step == START and not state.probe else None,
    )
    record = list(read_lines(rundir.probes / "p1.jsonl"))
    own = {line["step"]: line for line in read_lines(rundir.steps)}
    control, up = arm(record, "control"), arm(record, "up")
    assert [line["grad_norm"] for line in control] == [own[line["step"]]["grad_norm"] for line in control]
    assert len({line["grad_norm"] for line in control}) == STEPS
    assert up[0]["grad_norm"] == control[0]["grad_norm"]
    assert up[-1]["grad_norm"] != control[-1]["grad_norm"]


def test_a_real_helper_runs_to_its_end_beside_the_run_and_a_killed_one_says_so(
    start: Callable[..., Loop], rundir: RunDir, long: Recipe
) -> None:
    for probe_id, kill, expected in (("p1", False, "the controller ended it"), ("p2", True, "ended with -9")):
        path, began = rundir.probes / f"{probe_id}.jsonl", time.monotonic()

        def ask(
            state: BoundaryState, path: Path = path, probe_id: str = probe_id, kill: bool = kill, began: float = began
        ) -> Any:
            record = list(read_lines(path))
            if not record:
                spec = order(arms={"up": {"lr_scale": 3.0}}, wait=30.0)
                assert isinstance(spec.probe, Probe)
                probe = spec.probe.model_copy(update={"probe_id": probe_id})
                return Directive(f"d{state.step}", 1, {}, Action.probe, probe=probe, arms=spec.arms)
            time.sleep(0.02)
            if record[-1]["kind"] == "end" or time.monotonic() - began > 60:
                return Directive("stop", 3, {}, Action.stop)
            if kill and record[-1]["kind"] == "step":
                for child in children():  # none is left between its death and the line that tells of it
                    os.kill(child, signal.SIGKILL)
                return None
            if record[-1]["kind"] == "waiting":
                ends = ruling(end=True)
                ended = ends.probe.model_copy(update={"probe_id": probe_id})  # type: ignore[union-attr]
                return Directive("end", 2, {}, Action.probe, probe=ended)
            return None

        script = beside(start, long, ask)
        last = list(read_lines(path))[-1]
        assert expected in last["reason"]
        assert last["device_seconds"]["control"] > 0
        assert not children()
        assert len(script.steps) > 3


def children() -> list[int]:
    """Helpers of this process that are alive."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes().split(b"\0")
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if b"trainer.probe.helper" in command and parent == os.getpid():
            found.append(int(directory.name))
    return found


def test_a_helper_dies_with_its_trainer(tmp_path: Path) -> None:
    """A trainer that is killed cannot end its helper; the helper sees it."""
    lonely = (
        "import subprocess, sys, os, time\n"
        "child = subprocess.Popen([sys.executable, '-c', "
        "'import os, sys; from trainer.probe.helper import _die_with; _die_with(int(sys.argv[1]))', str(os.getpid())])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", lonely], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(1.5)
    assert Path(f"/proc/{child}/cmdline").exists()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
