"""The recorded run tells its story, and a real Prometheus can be asked for it."""

import itertools
import time
from pathlib import Path

import httpx
import pytest

from controlplane.contract.metrics import SAMPLES
from tests.golden import observed, pages, serve


def test_the_record_holds_fault_rollback_and_recovery() -> None:
    trainer = pages()
    steps = [page.values["rl_trainer_global_step"] for page in trainer if "rl_trainer_global_step" in page.values]
    assert steps[-1] == 250
    assert min(b - a for a, b in itertools.pairwise(steps)) < -20, "no rollback"
    ratios = [page.values.get("rl_rollout_pass_ratio", 1.0) for page in trainer]
    assert min(ratios) < 0.3
    assert ratios[-1] > 0.8
    assert observed()[-1][1].branch == 1
    names = {series.partition("{")[0] for page in trainer for series in page.values}
    assert names <= SAMPLES.keys()


@pytest.mark.slow
def test_prometheus_has_the_run_and_its_recording_rules(tmp_path: Path) -> None:
    end = time.time() - 60
    with serve(tmp_path, end) as url:

        def ask(expression: str) -> float:
            query = {"query": expression, "time": f"{end:.0f}"}
            found = httpx.get(f"{url}/api/v1/query", params=query, trust_env=False, timeout=30).json()["data"]["result"]
            assert found, f"{expression} has no data"
            return float(found[0]["value"][1])

        assert ask('max_over_time(rl_trainer_global_step{run="golden"}[30m])') == 250
        assert 0 < ask("time() - max_over_time(rl_trainer_last_step_timestamp_seconds[5m])") < 120
        assert ask("max_over_time(run:rl_rollout_samples_pass_per_samples:ratio_rate10m[10m])") > 0.7
        assert ask('sum(increase(rl_controller_decisions_total{rule="collapse",result="act"}[30m]))') > 0.9
