"""`scalerl prometheus`, with the real server: runs are found and followed, rules are evaluated, nothing is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from controlplane.agent import Agent
from controlplane.contract.rundir import RunDir
from controlplane.prometheus import Extra, configuration, mirror
from controlplane.prometheus.command import app
from tests.agent.house import INFO, RAILS, VALUES, report
from tests.programs import require_program


@contextmanager
def trainer(root: Path, name: str) -> Iterator[Agent]:
    """A trainer's agent that serves its page, in a run directory as a trainer makes it."""
    root.mkdir(parents=True)
    info = INFO.model_copy(update={"name": name, "run_uid": name})
    RunDir(root).info.write_text(info.model_dump_json())
    agent = Agent(RunDir(root), info, VALUES, RAILS, ())
    try:
        yield agent
    finally:
        agent.close()


def test_targets_are_mirrored_and_taken_away_again(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with trainer(tmp_path / "runs/a", "a"), trainer(tmp_path / "runs/study/b", "b"):
        assert mirror(tmp_path / "runs", folder) == 2
        assert sorted(path.name for path in folder.iterdir()) == ["a.trainer.json", "study-b.trainer.json"]
        assert json.loads((folder / "a.trainer.json").read_text())[0]["labels"]["run"] == "a"
        RunDir(tmp_path / "runs/a").target.write_text("{half a fi")
        assert mirror(tmp_path / "runs", folder) == 2
        assert json.loads((folder / "a.trainer.json").read_text()), "a file that is just being written changes nothing"
    assert mirror(tmp_path / "runs", folder) == 0
    assert list(folder.iterdir()) == []


def test_one_run_directory_is_enough(tmp_path: Path) -> None:
    with trainer(tmp_path / "a", "a"):
        assert mirror(tmp_path / "a", tmp_path / "out") == 1
        assert (tmp_path / "out" / "a.trainer.json").exists()


@pytest.mark.parametrize("text", ["a", "a=", "=h:1", "a=h", "a=h:x", "a=:1"])
def test_a_page_that_cannot_be_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="RUN=HOST:PORT"):
        Extra.parse(text)


def test_promtool_accepts_what_config_writes(tmp_path: Path) -> None:
    promtool = require_program("promtool")
    arguments = ["--vllm", "a=127.0.0.1:8000", "--dcgm", "a=[::1]:9400", "--alertmanager", "127.0.0.1:9093"]
    done = CliRunner().invoke(app, ["config", str(tmp_path), "--policy", "guard", *arguments])
    assert done.exit_code == 0, done.output
    data = tmp_path / ".prometheus"
    checked = subprocess.run(
        [promtool, "check", "config", data / "prometheus.yml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr + checked.stdout
    assert "SUCCESS" in checked.stdout
    assert "vllm:.*" in (data / "prometheus.yml").read_text()
    assert "127.0.0.1:9093" in configuration(data, alertmanager="127.0.0.1:9093")


def test_without_the_program_it_says_how_to_get_it_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(app, ["start", str(tmp_path)])
    assert done.exit_code == 1
    assert "https://prometheus.io/download/" in done.output
    assert "work all the same" in done.output
    assert list(tmp_path.iterdir()) == []


def test_check_names_what_is_wrong(tmp_path: Path) -> None:
    with trainer(tmp_path / "a", "a"):
        fine = CliRunner().invoke(app, ["check", str(tmp_path)])
        assert fine.exit_code == 0
        assert "trainer at 127.0.0.1" in fine.output
        kept = RunDir(tmp_path / "a").target.read_text()
    RunDir(tmp_path / "a").target.write_text(kept)  # as a killed trainer leaves it
    dead = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert dead.exit_code == 1
    assert "WRONG a: the trainer's metrics at 127.0.0.1" in dead.output
    away = CliRunner().invoke(app, ["check", str(tmp_path), "--prometheus", "http://127.0.0.1:9"])
    assert away.exit_code == 1


def ask(url: str, expression: str) -> list[dict[str, Any]]:
    try:
        body = httpx.get(f"{url}/api/v1/query", params={"query": expression}, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return []  # not up yet
    result: list[dict[str, Any]] = body["data"]["result"]
    return result


def until(url: str, expression: str, number: int, seconds: float = 40) -> list[dict[str, Any]]:
    """The answer once it has `number` series."""
    deadline = time.monotonic() + seconds
    while len(found := ask(url, expression)) != number:
        assert time.monotonic() < deadline, f"{expression} has {len(found)} series, not {number}"
        time.sleep(0.2)
    return found


@pytest.mark.slow
def test_start_finds_new_runs_and_evaluates_every_rule(tmp_path: Path) -> None:
    require_program("prometheus")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "controlplane.cli", "prometheus", "start", str(runs), "--port", str(port)]
    with trainer(runs / "a", "a") as first:
        first.step(report())
        process = subprocess.Popen([*command, "--interval", "1"], stdout=subprocess.PIPE, text=True, env=os.environ)
        try:
            until(url, 'up{job="scalerl-trainer"} == 1', 1)
            with trainer(runs / "b", "b") as second:
                second.step(report())
                found = until(url, "rl_trainer_global_step", 2)
                assert {row["metric"]["run"] for row in found} == {"a", "b"}
                until(url, 'ALERTS{alertname="RLWatchdog",alertstate="firing"}', 1)
                rules = httpx.get(f"{url}/api/v1/rules", trust_env=False).json()["data"]["groups"]
                assert sum(len(group["rules"]) for group in rules) > 40
                assert [rule["name"] for group in rules for rule in group["rules"] if rule["health"] == "err"] == []
                done = CliRunner().invoke(app, ["check", str(runs), "--prometheus", url])
                assert done.exit_code == 0, done.output
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)
