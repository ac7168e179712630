"""The built-in scraper and a real Prometheus give the same values for the same run, and nothing rather than half."""

import json
import math
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.agent.exposition import Store
from controlplane.contract.metrics import TRAINER
from controlplane.detect import SERIES
from controlplane.sources import PrometheusSource, ScrapeSource, SourceError
from tests.programs import require_program


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A served page with a few values, and the target file that names it."""
    store = Store(TRAINER)
    port = store.serve("127.0.0.1", 0)
    with store.update():
        store.set("rl_trainer_global_step", 42)
        store.set("rl_trainer_branch", 1)
        store.set("rl_trainer_grad_norm", math.nan)
        store.inc("rl_rollout_samples_total", 96, outcome="pass")
        store.inc("rl_rollout_samples_total", 32, outcome="fail")
        store.set("rl_eval_pass_ratio", 0.75, dataset="held_out", k="4")
        store.observe_many("rl_rollout_length_tokens", [100, 200])
    path = tmp_path / "target.json"
    path.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}"], "labels": {"job": "scalerl-trainer", "run": "r1"}}]))
    yield path
    store.close()


@pytest.fixture
def prometheus(target: Path, tmp_path: Path) -> Iterator[str]:
    """A real Prometheus on loopback that scrapes the target every second; its address."""
    program = require_program("prometheus")
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\nscrape_configs:\n  - job_name: scalerl\n    file_sd_configs:\n"
        f"      - files: ['{target}']\n        refresh_interval: 1s\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_the_scraper_reads_the_wanted_series_and_nothing_else(target: Path) -> None:
    sample = ScrapeSource(target).read(SERIES)
    assert sample.values["rl_trainer_global_step"] == 42
    assert sample.values['rl_rollout_samples_total{outcome="pass"}'] == 96
    assert sample.values["rl_rollout_length_tokens_sum"] == 300
    assert math.isnan(sample.values["rl_trainer_grad_norm"])
    assert {key.partition("{")[0] for key in sample.values} <= SERIES
    assert abs(sample.at - time.time()) < 5


def test_prometheus_gives_the_same_values_as_the_scraper(target: Path, prometheus: str) -> None:
    source = PrometheusSource(prometheus, "r1")
    deadline = time.monotonic() + 30
    while True:
        try:
            there = source.read(SERIES)
            break
        except SourceError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    here = ScrapeSource(target).read(SERIES)
    assert there.values.keys() == here.values.keys()
    for key, value in here.values.items():
        assert there.values[key] == value or (math.isnan(value) and math.isnan(there.values[key]))
    assert abs(there.at - time.time()) < 10
    asked = {
        "double": 'rl_trainer_global_step{run="$run"} * 2',
        "nothing": "no_such_metric",
        "scalar": "scalar(vector(7))",
    }
    assert source.ask(asked) == {"double": 84.0, "scalar": 7.0}
    with pytest.raises(SourceError, match="signal many: its query gives 2 series"):
        source.ask({"many": "rl_rollout_samples_total{outcome=~'pass|fail'}"})
    with pytest.raises(SourceError, match="refused a query"):
        source.ask({"wrong": "rate("})
    with pytest.raises(SourceError, match="no fresh sample"):
        PrometheusSource(prometheus, "another").read(SERIES)


def test_a_dead_trainer_is_an_error_and_not_an_empty_sample(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the trainer is not running"):
        ScrapeSource(tmp_path / "target.json").read(SERIES)
    (tmp_path / "target.json").write_text(json.dumps([{"targets": ["127.0.0.1:9"], "labels": {}}]))
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:9 cannot be read"):
        ScrapeSource(tmp_path / "target.json").read(SERIES)
    (tmp_path / "target.json").write_text("[]")
    with pytest.raises(SourceError, match="not a target file"):
        ScrapeSource(tmp_path / "target.json").read(SERIES)
    with pytest.raises(SourceError, match="cannot be read"):
        PrometheusSource("http://127.0.0.1:9", "r1").read(SERIES)


def test_a_run_name_cannot_break_out_of_the_query() -> None:
    with pytest.raises(ValueError, match="character"):
        PrometheusSource("http://127.0.0.1:9", 'x"} or {y="')
