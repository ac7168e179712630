"""A real Alertmanager with our configuration: the hint arrives, and what is inhibited is silent."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlplane.alerts.alertmanager import alertmanager
from controlplane.hints import Hints
from tests.programs import require_program


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def hints() -> Iterator[Hints]:
    found = Hints()
    yield found
    found.close()


@pytest.fixture
def manager(tmp_path: Path, hints: Hints) -> Iterator[str]:
    """Address of an Alertmanager that sends hints to `hints`."""
    program, port = require_program("prometheus-alertmanager"), free_port()
    config = tmp_path / "alertmanager.yml"
    config.write_text(alertmanager(f"http://127.0.0.1:{hints.port}/hint"))
    url = f"http://127.0.0.1:{port}"
    command = [program, f"--config.file={config}", f"--storage.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"{url}/-/ready", trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def send(url: str, *alerts: dict[str, str]) -> None:
    ends = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    body = [{"labels": {"run": "r1", "component": "trainer", **labels}, "endsAt": ends} for labels in alerts]
    httpx.post(f"{url}/api/v2/alerts", content=json.dumps(body), headers={"Content-Type": "application/json"}, trust_env=False).raise_for_status()  # fmt: skip


def states(url: str) -> dict[tuple[str, str], str]:
    found: list[dict[str, Any]] = httpx.get(f"{url}/api/v2/alerts", trust_env=False).json()
    return {(alert["labels"]["alertname"], alert["labels"]["run"]): alert["status"]["state"] for alert in found}


@pytest.mark.slow
def test_a_hint_reaches_the_controller_and_the_worse_alert_silences_the_others(manager: str, hints: Hints) -> None:
    warning = {"severity": "warning"}
    send(
        manager,
        {"alertname": "RLTrainerStalled", "severity": "critical", "signal": "stall"},
        {"alertname": "RLGPUUtilizationLow", "signal": "utilization", **warning},
        {"alertname": "RLTruncationHigh", "signal": "truncation", **warning},
        {"alertname": "RLGPUUtilizationLow", "signal": "utilization", **warning, "run": "another"},
    )
    deadline = time.monotonic() + 30
    while len(found := states(manager)) < 4 or "unprocessed" in found.values():
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    assert found == {
        ("RLTrainerStalled", "r1"): "active",
        ("RLGPUUtilizationLow", "r1"): "suppressed",
        ("RLTruncationHigh", "r1"): "active",
        ("RLGPUUtilizationLow", "another"): "active",
    }
    assert hints._hinted.wait(30), "no hint came"
