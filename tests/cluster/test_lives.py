"""What ends more than a generator: learners that die, a rollback, a driver that is killed or told to stop, a machine that is gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.contract.documents import Action, Design, Health, Probe, Setting, Target
from controlplane.contract.rundir import RunDir, read_lines
from tests.cluster.runs import check, events, go, joined, recipe, wait_for
from tests.trainer.test_cli import PROGRAM
from tests.trainer.test_with_agent import Operator
from trainer.cluster.drive import LearnersGivenUp
from trainer.cluster.learner_group import LearnerGroup
from trainer.loop import Loop

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
TWO = {"learners": {"ranks": 2}}


def kill_rank(number: int) -> Any:
    def kill(loop: Loop) -> None:
        os.kill(loop.session.learner.processes[number][1], signal.SIGKILL)  # type: ignore[attr-defined]

    return kill


@pytest.mark.usefixtures("local_ray")
def test_when_a_learner_rank_is_killed_the_run_goes_on_from_its_newest_checkpoint_with_the_same_generators(
    tmp_path: Path,
) -> None:
    spec = recipe(cluster=TWO)
    _, reason = go(tmp_path, spec, {6: kill_rank(1), 7: lambda loop: None})
    assert reason == "end"
    (lost,) = events(tmp_path, "learners_lost")
    assert lost["reason"].startswith("learner rank 1 died after")
    (resumed,) = events(tmp_path, "resume")
    assert resumed["step"] == 4
    assert events(tmp_path, "generator_lost") == []
    check(tmp_path, spec)


@pytest.mark.usefixtures("local_ray")
def test_learners_that_are_lost_too_often_end_the_run_in_one_sentence_and_the_same_command_goes_on(
    tmp_path: Path,
) -> None:
    spec = recipe(cluster={**TWO, "restarts": {"limit": 0}})
    with pytest.raises(
        LearnersGivenUp, match=r"lost more than 0 times within 3600 s; the last time: learner rank 0 died"
    ):
        go(tmp_path, spec, {6: kill_rank(0)})
    assert go(tmp_path, spec)[1] == "end"
    check(tmp_path, spec)


@pytest.mark.usefixtures("local_ray")
def test_a_rollback_gives_all_generators_the_weights_of_its_target_bit_for_bit_under_a_new_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rails = {"cooldown_steps": 0}
    spec = recipe(checkpoint={"replay": "same", "snapshots": 2}, guard_rails=rails, cluster=TWO)
    operator, digests, export = Operator(RunDir(tmp_path)), list[tuple[int, int, str]](), LearnerGroup.export
    where: list[Loop] = []

    def noted(self: LearnerGroup, path: Path) -> str:
        digest = export(self, path)
        version = where[0].state.version if where else None
        digests.append((version.branch if version else 0, version.n if version else 0, digest))
        return digest

    monkeypatch.setattr(LearnerGroup, "export", noted)

    def ask(loop: Loop) -> None:
        loop._control_point()
        seen = operator.look()
        assert seen is not None
        good = [checkpoint for checkpoint in seen.checkpoints if checkpoint.health is Health.good]
        target = Target(step=good[-1].step, digest=good[-1].digest)
        operator.ask(seen, action=Action.rollback, target=target, set={"lr_scale": Setting(value=0.5)})
        wait_for(lambda: loop._control_point() or loop.state.branch == 1)

    go(tmp_path, spec, {1: where.append, 11: ask})
    (rollback,) = events(tmp_path, "rollback")
    target = int(rollback["target"].split("-")[1])
    before = {n: digest for branch, n, digest in digests if branch == 0}
    after = [(n, digest) for branch, n, digest in digests if branch == 1]
    assert after[0] == (12, before[target])
    assert rollback["source"] == "memory"
    again = [line["ordinals"] for line in read_lines(RunDir(tmp_path).ledger) if line["branch"] == 1]
    assert len(again) == spec.steps - target


@pytest.mark.usefixtures("local_ray")
def test_a_probe_may_use_devices_that_are_free_and_the_run_goes_on(tmp_path: Path) -> None:
    spec = recipe(steps=60, guard_rails={"cooldown_steps": 0}, cluster=TWO)
    operator, record = Operator(RunDir(tmp_path)), tmp_path / "probes" / "p1.jsonl"

    def ask(loop: Loop) -> None:
        seen = operator.look()
        assert seen is not None
        probe = Probe(
            probe_id="p1", arms={"up": {"lr_scale": Setting(value=2.0)}}, steps=2, where=Design.spare, wait_seconds=0.0
        )
        operator.ask(seen, action=Action.probe, probe=probe)
        wait_for(lambda: loop._control_point() or events(tmp_path, "probe"))

    def ended(loop: Loop) -> None:
        wait_for(lambda: loop._control_point() or loop._probing.look() or events(tmp_path, "probe_end"), 120)

    assert go(tmp_path, spec, {4: ask, 6: ended})[1] == "end"
    (end,) = events(tmp_path, "probe_end")
    assert (end["outcome"], end["reason"]) == ("control", "no ruling came in time")
    steps = [line for line in read_lines(record) if line["kind"] == "step"]
    assert [(line["arm"], line["t"]) for line in steps] == [("control", 1), ("up", 1), ("control", 2), ("up", 2)]
    assert steps[0]["prompts"] == steps[1]["prompts"]  # from the same snapshot
    check(tmp_path, spec)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    spec = recipe(steps=40, cluster=TWO)
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    return [sys.executable, "-c", PROGRAM, str(file), "--run", str(tmp_path / "run"), "--cluster", "ray"]


def launch(command: list[str]) -> "subprocess.Popen[str]":
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, start_new_session=True, **streams)


def descendants(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return found - {pid}


def helper(pid: int) -> bool:
    """Two processes of Ray itself, without a connection to anything, look once a minute whether they are still needed."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent"))
    except OSError:
        return False


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists() and "Z" not in _state(pid)}


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def reached(run: Path, step: int, process: "subprocess.Popen[str]") -> None:
    while not any(line["step"] >= step for line in read_lines(RunDir(run).steps)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def test_a_driver_that_is_killed_leaves_no_process_behind_and_the_same_command_goes_on(
    command: list[str], tmp_path: Path
) -> None:
    process, run = launch(command), tmp_path / "run"
    reached(run, 10, process)
    family = descendants(process.pid)
    assert len(family) > 6
    process.kill()
    process.communicate()
    wait_for(lambda: not {pid for pid in alive(family) if not helper(pid)}, 20)
    again = launch(command)
    output = again.communicate()[0]
    assert again.returncode == 0, output
    check(run, recipe(steps=40, cluster=TWO))
    assert len(events(run, "resume")) == 1


def test_ctrl_c_finishes_the_step_leaves_a_checkpoint_and_no_process(command: list[str], tmp_path: Path) -> None:
    process, run = launch(command), tmp_path / "run"
    reached(run, 5, process)
    family = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    wait_for(lambda: not alive(family), 10)
    *_, last = read_lines(RunDir(run).events)
    assert (last["event"], last["reason"]) == ("stop", "SIGINT")
    assert (run / "checkpoints" / f"step-{last['step']:06d}-b0" / "manifest.json").exists()
    assert output.count("\n") < 60, output  # Ray is quiet
    assert not list(Path("/tmp").glob(f"scalerl-ray-{process.pid}-*"))


def test_a_machine_that_is_lost_takes_its_generators_and_a_new_one_is_used_when_it_comes(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.cluster.two_nodes", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "end"
    run = tmp_path / "run"
    (lost,) = events(run, "generator_lost")
    assert lost["name"] in joined(run)
    check(run, recipe(steps=14))
