"""Every query is PromQL, and names only metrics, labels and values that exist."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from controlplane.contract.metrics import FOREIGN, SAMPLES
from dashboards.query import gauge, metrics_in, per, quantile, series
from tests.dashboards.files import asked, filled
from tests.programs import require_program


def check_rules(exprs: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    promtool = require_program("promtool")
    rules = [{"record": f"checked:{number}", "expr": expr} for number, expr in enumerate(exprs)]
    path = folder / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    return subprocess.run([promtool, "check", "rules", str(path)], capture_output=True, text=True, timeout=60)


def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    done = check_rules([filled(one.expr) for one in asked()], tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_query_that_is_no_promql_would_be_found(tmp_path: Path) -> None:
    assert check_rules(["sum by (run (up)"], tmp_path).returncode != 0


def test_every_metric_exists() -> None:
    """The generator checks while it writes; this reads what was written."""
    for one in asked():
        for name in re.findall(r"\b(?:rl_\w+|ALERTS|vllm:\w+|up)\b(?=\{)", one.expr):
            assert name in SAMPLES or name in FOREIGN, f"{one.board}, {one.panel}: {name}"


def test_every_label_exists() -> None:
    for one in asked():
        for name, selector in re.findall(r"(rl_\w+)\{([^}]*(?:\$\{\w+\}[^}]*)?)\}", one.expr):
            labels = set(re.findall(r'(\w+)(?:=~|!=|!~|=)"', selector)) - {"job", "run", "le"}
            if name.endswith("_info"):
                continue
            assert labels <= set(SAMPLES[name].labels), f"{one.board}, {one.panel}: {labels} of {name}"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: series("rl_trainer_los"), "not in the metric list"),
        (lambda: series("rl_trainer_loss", quantity="total"), "no label 'quantity'; it has component"),
        (lambda: series("rl_rollout_samples_total", outcome="passed"), "one of pass, fail, error"),
        (lambda: series("rl_rollout_samples_total", outcome="~pass|failed"), "one of pass, fail, error"),
        (lambda: series("rl_trainer_step_seconds"), "is a histogram"),
        (lambda: series("rl_trainer_loss_bucket"), "not in the metric list"),
        (lambda: series("rl_rollout_reward_sum"), "not in the metric list"),
    ],
)  # fmt: skip
def test_a_query_cannot_name_what_does_not_exist(wrong: object, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        wrong()  # type: ignore[operator]


def test_queries_read_as_they_should() -> None:
    assert series("rl_trainer_loss", "x", component="total") == 'rl_trainer_loss{x,component="total"}'
    assert gauge("rl_trainer_loss", "x", by="run, component") == "max by (run, component) (rl_trainer_loss{x})"
    assert per("a", "b") == "a / (b > 0)"
    expr = quantile(0.95, "rl_trainer_step_seconds", "x")
    assert expr == (
        "histogram_quantile(0.95, sum by (run, le) (rate(rl_trainer_step_seconds_bucket{x}[$__rate_interval])))"
    )
    assert metrics_in(expr) == ["rl_trainer_step_seconds"]
