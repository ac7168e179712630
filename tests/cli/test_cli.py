"""The command line: what is wrong is said in one line, exit code 2, and nothing is started or written."""

import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.policy import find


def scalerl(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "controlplane", *arguments], cwd=cwd, text=True, capture_output=True, timeout=60
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("max_per_run: 2", "max_per_rum: 2", ":34: rules[0].limits.max_per_rum: unknown key"),
        ("min: 0.1, max: 1.0", "min: 3, max: 1.0", "min 3 is above max 1"),
        ("above: 0.10", "above: much", "valid number"),
    ],
)
def test_a_bad_policy_starts_nothing(run: Path, old: str, new: str, says: str) -> None:
    policy = run.parent / "policy.yaml"
    policy.write_text(find("demo")[1].replace(old, new, 1))
    result = scalerl("control", "run", "--policy", "policy.yaml", cwd=run.parent)
    assert result.returncode == 2
    assert result.stderr.startswith("policy.yaml:")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(run.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("control", "nowhere"), "nowhere: there is no such run directory"),
        (("control", "run", "--policy", "none.yaml"), "shipped policies are demo, guard, lecture, observe, paper"),
        (("control", "run", "--at-most", "everything"), "must be one of observe, advise, act"),
        (("report", "run"), "is not a run directory"),
        (("watch", "nowhere"), "there is no such run directory"),
        (("demo", "--at-most", "everything"), "must be one of observe, advise, act"),
    ],
)
def test_a_bad_argument_is_one_line_and_writes_nothing(run: Path, arguments: tuple[str, ...], says: str) -> None:
    result = scalerl(*arguments, cwd=run.parent)
    assert result.returncode == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert [p.name for p in run.parent.rglob("*")] == ["run"]


def test_every_command_says_what_a_person_needs(tmp_path: Path) -> None:
    top = scalerl("--help", cwd=tmp_path).stdout
    for command in ("train", "control", "report", "watch", "demo", "policy"):
        assert command in top
        assert scalerl(command, "--help", cwd=tmp_path).returncode == 0


def test_a_shipped_policy_can_be_shown_and_checked(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(scalerl("policy", "show", "demo", cwd=tmp_path).stdout)
    result = scalerl("policy", "check", "mine.yaml", cwd=tmp_path)
    assert result.returncode == 0
    assert "6 detectors, 3 rules; rollback: act, lr: observe" in result.stdout
