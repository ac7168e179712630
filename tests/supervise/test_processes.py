"""`scalerl supervise` with real processes: crashes, a rollback by restart, signals, a crash loop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from controlplane.agent import read_key
from controlplane.contract.documents import AckState, Action, Desired, Observed, Setting, Target
from controlplane.contract.rundir import RunDir, read_lines, write_atomic

ROOT = Path(__file__).parents[2]
RESUME = "--resume-from={checkpoint}"


def supervise(run: Path, *options: str, program: list[str] | None = None) -> "subprocess.Popen[str]":
    trainer = program or [sys.executable, "-m", "tests.supervise.foreign", str(run), *options]
    command = [sys.executable, "-m", "controlplane.supervise", "--run", str(run), "--resume-with", RESUME]
    command += ["--first-wait", "0.05", "--max-crashes", "2", "--", *trainer]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def observed(run: Path) -> Observed | None:
    try:
        return Observed.model_validate_json(RunDir(run).observed.read_bytes())
    except OSError:
        return None


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def starts(run: Path) -> list[int]:
    return [line["started_at"] for line in read_lines(run / "trainer.jsonl") if "started_at" in line]


def lineage(run: Path) -> float:
    """Weights that a trainer would have that did every step of the branch in force once."""
    weights: dict[int, float] = {}
    for line in read_lines(run / "trainer.jsonl"):
        if "weights" in line:
            weights[line["step"]] = line["weights"]
    return weights[max(weights)]


def test_a_rollback_restarts_the_trainer_with_its_own_flag_and_is_answered_by_the_new_process(tmp_path: Path) -> None:
    process = supervise(tmp_path, "--steps", "40")
    wait_for(lambda: (seen := observed(tmp_path)) is not None and seen.step >= 22, process)
    before = observed(tmp_path)
    assert before is not None
    document = Desired(
        run_uid=before.run_uid,
        incarnation=before.incarnation,
        epoch=1,
        generation=1,
        base_generation=0,
        decision_id="back",
        issued_at=0.0,
        expires_at_step=39,
        set={"lr_scale": Setting(scale=0.5)},
        action=Action.rollback,
        target=Target(step=20, digest="0020"),
        reason="it went bad",
    )
    write_atomic(RunDir(tmp_path).desired, document.signed(read_key(RunDir(tmp_path))).model_dump_json())
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert starts(tmp_path) == [0, 20]
    after = observed(tmp_path)
    assert after is not None
    assert after.last_ack is not None
    assert (after.last_ack.decision_id, after.last_ack.state) == ("back", AckState.applied)
    assert (after.branch, after.step, after.applied_generation) == (1, 40, 1)
    assert after.tunables["lr_scale"].value == 0.5
    assert after.rollbacks_left == 1
    assert lineage(tmp_path) == 20 + 20 * 0.5  # twenty steps before it, twenty after it, none twice
    assert not RunDir(tmp_path).resume.exists()
    answers = [line["ack"]["state"] for line in read_lines(RunDir(tmp_path).control_log) if line["event"] == "answered"]
    assert answers == ["applied"]
    told = [line for line in read_lines(RunDir(tmp_path).supervised) if line["event"] == "decided"]
    assert [(line["then"], line["code"]) for line in told] == [("again", 85), ("end", 0)]
    assert told[0]["from_step"] == 20


def test_a_crashed_trainer_goes_on_where_it_was(tmp_path: Path) -> None:
    process = supervise(tmp_path, "--steps", "20", "--crash-at", "12")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert "was killed by signal 6" in output
    assert starts(tmp_path) == [0, 10]
    assert lineage(tmp_path) == 20


def test_a_crash_loop_is_left_to_a_person_with_the_code_of_the_trainer(tmp_path: Path) -> None:
    process = supervise(tmp_path, program=[sys.executable, "-c", "raise SystemExit(7)"])
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 7
    assert "a person has to look" in output
    assert len([line for line in read_lines(RunDir(tmp_path).supervised) if line["event"] == "started"]) == 3


def test_a_signal_is_passed_on_and_ends_the_supervision_without_a_restart(tmp_path: Path) -> None:
    child = "import signal,sys,time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); print('up', flush=True); time.sleep(60)"
    process = supervise(tmp_path, program=[sys.executable, "-c", child])
    assert process.stdout is not None
    while process.stdout.readline().strip() != "up":
        pass
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 3, output
    assert len([line for line in read_lines(RunDir(tmp_path).supervised) if line["event"] == "started"]) == 1


def test_a_killed_supervisor_leaves_no_trainer_behind(tmp_path: Path) -> None:
    process = supervise(tmp_path, "--steps", "4000")
    wait_for(lambda: (seen := observed(tmp_path)) is not None and seen.step >= 2, process)
    trainer = next(line["pid"] for line in read_lines(tmp_path / "trainer.jsonl") if "pid" in line)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{trainer}").exists() and "Z" not in Path(f"/proc/{trainer}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_supervisors_do_not_share_a_run(tmp_path: Path) -> None:
    process = supervise(tmp_path, "--steps", "4000")
    wait_for(lambda: observed(tmp_path) is not None, process)
    second = supervise(tmp_path, "--steps", "4000")
    assert "another supervisor" in second.communicate(timeout=60)[0]
    assert second.returncode == 2
    process.terminate()
    process.communicate(timeout=60)
