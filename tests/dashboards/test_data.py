"""Every query of every dashboard gives data from a real Prometheus that holds a recorded run."""

import math
import subprocess
from collections.abc import Iterator
from functools import cache

import httpx
import pytest

from tests import golden
from tests.dashboards.files import Asked, asked, filled
from tests.programs import require_program

SPAN = 1500.0
ends_at = cache(golden.ends_at)
VALUES = {"__rate_interval": "60s", "__range": f"{SPAN:.0f}s", "job": ".+", "run": golden.RUN, "runs": ".+"}
ELSEWHERE = {
    'rl_gpu_utilization_ratio{job="scalerl-trainer",run="golden",node="n1",gpu="0",role="learner"}': 0.8,
    'rl_gpu_tensor_active_ratio{job="scalerl-trainer",run="golden",node="n1",gpu="0",role="learner"}': 0.4,
    'rl_gpu_memory_used_bytes{job="scalerl-trainer",run="golden",node="n1",gpu="0",role="learner"}': 6e10,
    'rl_gpu_memory_total_bytes{job="scalerl-trainer",run="golden",node="n1",gpu="0",role="learner"}': 8e10,
    'rl_gpu_power_watts{job="scalerl-trainer",run="golden",node="n1",gpu="0",role="learner"}': 600.0,
    'rl_gpu_temperature_celsius{job="scalerl-trainer",run="golden",node="n1",gpu="0",role="learner"}': 60.0,
    'vllm:num_requests_running{job="vllm",run="golden"}': 12.0,
    'vllm:num_requests_waiting{job="vllm",run="golden"}': 0.0,
    'vllm:kv_cache_usage_perc{job="vllm",run="golden"}': 0.3,
    'ALERTS{alertname="RLStalled",alertstate="firing",severity="critical",run="golden"}': 1.0,
    'rl_trainer_gradient_noise_scale_prompts{job="scalerl-trainer",run="golden"}': 20.0,
    'rl_forecast_coverage_ratio{job="scalerl-controller",run="golden",curve="held_out",nominal="0.8"}': 0.8,
    'rl_forecast_coverage_ratio{job="scalerl-controller",run="golden",curve="held_out",nominal="0.95"}': 1.0,
    'rl_forecast_scored_evaluations{job="scalerl-controller",run="golden",curve="held_out"}': 9.0,
    'rl_controller_notices_total{job="scalerl-controller",run="golden",channel="grafana",result="sent"}': 2.0,
    'rl_controller_notices_total{job="scalerl-controller",run="golden",channel="grafana",result="failed"}': 0.0,
    'rl_controller_notices_total{job="scalerl-controller",run="golden",channel="grafana",result="dropped"}': 0.0,
}
"""What the recorded run lacks: it had no GPU and no vLLM, it is older than a few metrics, and alerts are written only live."""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("prometheus")
    promtool, end = require_program("promtool"), ends_at()
    # The alert begins half-way, so that a query for beginnings has one to find.
    moments = [end - age for age in range(0, int(SPAN) // 2, 15)][::-1]
    lines = [f"{series} {value} {at:.3f}" for series, value in ELSEWHERE.items() for at in moments]
    (folder / "elsewhere.om").write_text("\n".join([*lines, "# EOF", ""]))
    command = [
        promtool,
        "tsdb",
        "create-blocks-from",
        "openmetrics",
        str(folder / "elsewhere.om"),
        str(folder / "tsdb"),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    # One client for all: making one takes longer than a query.
    with golden.serve(folder, end) as url, httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        yield client


def values(prometheus: httpx.Client, one: Asked) -> list[float]:
    """Every number that the panel would draw."""
    end, query = ends_at(), filled(one.expr, VALUES)
    path, when = (
        ("query", {"time": end}) if one.instant else ("query_range", {"start": end - SPAN, "end": end, "step": 15})
    )
    answer = prometheus.post(f"/api/v1/{path}", data={"query": query, **when}).json()
    assert answer["status"] == "success", answer
    rows = answer["data"]["result"]
    return [float(value) for row in rows for _, value in (row.get("values") or [row["value"]])]


def test_every_query_of_every_dashboard_gives_data(prometheus: httpx.Client) -> None:
    empty = []
    for one in asked():
        if not any(math.isfinite(value) for value in values(prometheus, one)):
            empty.append(f"{one.board}, {one.panel}: {one.expr}")
    assert empty == []


def test_a_query_without_data_would_be_found(prometheus: httpx.Client) -> None:
    assert values(prometheus, Asked("", "", 'rl_trainer_loss{run="another"}')) == []


def test_the_recorded_run_shows_its_story_in_the_queries(prometheus: httpx.Client) -> None:
    def first(panel: str, part: str) -> list[float]:
        found = [one for one in asked() if one.panel == panel and part in one.expr]
        return [value for value in values(prometheus, found[0]) if math.isfinite(value)]

    rate = first("Pass rate", "rl_rollout_samples_total")
    assert 0 <= min(rate) < 0.5 < max(rate) <= 1
    assert first("Actions", 'result="act"')[-1] == 1
    assert max(first("Detectors in alarm", "rl_controller_detector_active")) == 1
    assert first("Step and branch", "rl_trainer_branch")[-1] == 1
    assert 0 < first("Forecast of the end", 'q="0.5"')[-1] < 1
    assert 0 < first("Done", "planned")[-1] <= 1
    assert len(first("Alerts", "unless")) < len(first("Alerts firing", "ALERTS"))
