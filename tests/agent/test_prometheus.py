"""The exposition judged by Prometheus itself."""

import json
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from controlplane.agent.exposition import Store
from controlplane.contract.metrics import CONTROLLER
from controlplane.contract.rundir import RunDir
from tests.agent.house import make_agent, report
from tests.programs import require_program


def lint(text: str) -> tuple[int, str]:
    promtool = require_program("promtool")
    done = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_promtool_has_nothing_to_say_about_the_trainer(rundir: RunDir) -> None:
    agent = make_agent(rundir)
    assert lint(agent.store.text()) == (0, "")
    agent.step(report())
    assert lint(agent.store.text()) == (0, "")


def test_promtool_has_nothing_to_say_about_the_controller() -> None:
    assert lint(Store(CONTROLLER).text()) == (0, "")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def query(port: int, expression: str) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return result
    except OSError:
        return []  # not up yet


@pytest.mark.slow
def test_prometheus_finds_the_agent_by_its_target_file_and_answers(rundir: RunDir, tmp_path: Path) -> None:
    program, port = require_program("prometheus"), free_port()
    agent = make_agent(rundir, port=0)
    agent.step(report(step=7))
    config = tmp_path / "prometheus.yml"
    scrape = {"job_name": "runs", "scrape_interval": "200ms", "file_sd_configs": [{"files": [str(rundir.target)]}]}
    config.write_text(json.dumps({"scrape_configs": [{**scrape, "scrape_timeout": "200ms"}]}))
    with (tmp_path / "prometheus.log").open("w") as log:
        server = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            found: list[dict[str, Any]] = []
            for _ in range(300):
                found = query(port, 'rl_trainer_global_step{run="tiny"}')
                if found:
                    break
                time.sleep(0.1)
            assert found, (tmp_path / "prometheus.log").read_text()
            assert found[0]["value"][1] == "7"
            assert found[0]["metric"]["job"] == "scalerl-trainer"
            assert query(port, 'sum(rl_rollout_length_tokens_bucket{le="+Inf"})')[0]["value"][1] == "128"
            assert query(port, 'rl_trainer_state{state="idle"}')[0]["value"][1] == "1"
        finally:
            server.terminate()
            server.wait(timeout=20)
            agent.close()
