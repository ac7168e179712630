"""What is recorded is what the pages said, and Prometheus can take it over."""

import json
import math
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.agent.exposition import Store
from controlplane.contract.metrics import TRAINER
from controlplane.contract.rundir import RunDir
from controlplane.metricstore import MetricStore, Recorder, openmetrics
from controlplane.sources.exposition import parse
from tests.programs import require_program


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[RunDir, Store]]:
    """A run directory whose trainer serves a page."""
    rundir, store = RunDir(tmp_path), Store(TRAINER)
    port = store.serve("127.0.0.1", 0)
    rundir.target.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}"], "labels": {}}]))
    yield rundir, store
    store.close()


def test_the_recorder_keeps_what_the_page_said(served: tuple[RunDir, Store]) -> None:
    rundir, page = served
    recorder = Recorder(rundir, interval=0.05)
    page.set("rl_trainer_global_step", 1)
    recorder.start()
    time.sleep(0.3)
    page.set("rl_trainer_global_step", 2)
    page.set("rl_trainer_grad_norm", math.nan)
    recorder.close()
    store = MetricStore(rundir.metrics, read_only=True)
    times, values = store.read("rl_trainer_global_step")
    assert values[0] == 1
    assert values[-1] == 2
    assert abs(times[-1] - time.time()) < 5
    assert math.isnan(store.read("rl_trainer_grad_norm")[1][-1])
    assert set(store.read('up{job="scalerl-trainer"}')[1]) == {1.0}
    assert store.series("up") == ['up{job="scalerl-trainer"}']


def test_a_dead_trainer_is_down_and_one_that_took_leave_is_gone(served: tuple[RunDir, Store]) -> None:
    rundir, page = served
    recorder = Recorder(rundir)
    page.close()
    assert recorder.values() == {'up{job="scalerl-trainer"}': 0.0}
    rundir.target.unlink()
    assert recorder.values() == {}


def test_a_store_that_cannot_be_written_never_stops_the_recorder(served: tuple[RunDir, Store]) -> None:
    rundir, page = served
    rundir.metrics.parent.mkdir()
    rundir.metrics.write_text("not a database at all" * 100)
    recorder = Recorder(rundir, interval=0.02)
    page.set("rl_trainer_global_step", 1)
    recorder.start()
    time.sleep(0.1)
    rundir.metrics.unlink()
    time.sleep(0.2)
    recorder.close()
    assert MetricStore(rundir.metrics, read_only=True).read("rl_trainer_global_step")[1].size > 0


def test_prometheus_takes_the_exported_store(tmp_path: Path) -> None:
    promtool = require_program("promtool")
    page, store = Store(TRAINER), MetricStore(tmp_path / "m.db")
    for at in range(60):
        page.inc("rl_trainer_steps_total")
        page.observe_many("rl_rollout_length_tokens", [100.0 + at])
        page.set("rl_trainer_grad_norm", math.nan if at % 7 == 0 else 0.5)
        store.append(1_700_000_000.0 + 15 * at, parse(page.text(), None) | {'up{job="scalerl-trainer"}': 1.0})
    (tmp_path / "m.om").write_text("".join(openmetrics(store, "tiny")))
    done = subprocess.run(
        [promtool, "tsdb", "create-blocks-from", "openmetrics", "m.om", "data"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "data" / "wal").mkdir()  # promtool wants a database that a server has opened before
    dump = subprocess.run([promtool, "tsdb", "dump", "data"], cwd=tmp_path, capture_output=True, text=True, check=True)
    samples = [line for line in dump.stdout.splitlines() if '__name__="rl_trainer_steps_total"' in line]
    assert len(samples) == 60
    assert 'job="scalerl-trainer", run="tiny"' in samples[0]
    assert samples[-1].endswith(" 60 1700000885000")
