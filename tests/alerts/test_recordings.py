"""Recording rules give the numbers that a person would work out by hand; computed by promtool."""

import subprocess
from pathlib import Path

import pytest
import yaml

from controlplane.alerts import RECORDINGS, limits, rule_files
from controlplane.alerts.model import grown, held
from controlplane.policy import load
from tests.programs import require_program

PASS, FAIL = (f'rl_rollout_samples_total{{run="a",outcome="{outcome}"}}' for outcome in ("pass", "fail"))
DCGM = '{run="a",Hostname="n1",gpu="3",role="learner",UUID="GPU-1",modelName="X"}'
SERIES = {
    PASS: grown((30, 40)),
    FAIL: grown((90, 40)),
    'rl_rollout_samples_total{run="a",outcome="error"}': grown((30, 40)),
    'rl_rollout_length_tokens_sum{run="a"}': grown((120 * 400, 40)),
    'rl_rollout_length_tokens_count{run="a"}': grown((120, 40)),
    'rl_rollout_length_tokens_bucket{run="a",le="512"}': grown((114, 40)),
    'rl_rollout_length_tokens_bucket{run="a",le="1024"}': grown((120, 40)),
    'rl_rollout_length_tokens_bucket{run="a",le="+Inf"}': grown((120, 40)),
    'rl_rollout_truncated_total{run="a",reason="length"}': grown((6, 40)),
    'rl_rollout_groups_total{run="a",signal="mixed"}': grown((6, 40)),
    'rl_rollout_groups_total{run="a",signal="all_pass"}': grown((1, 40)),
    'rl_rollout_groups_total{run="a",signal="all_fail"}': grown((1, 40)),
    'rl_rollout_tokens_total{run="a",kind="generated"}': grown((48000, 40)),
    'rl_trainer_phase_seconds_total{run="a",phase="training"}': grown((15, 40)),
    'rl_trainer_steps_total{run="a"}': grown((2, 40)),
    'rl_trainer_utilization_ratio{run="cpu",role="process"}': held((0.5, 40)),
    'rl_trainer_utilization_ratio{run="cpu",role="learner"}': held((0.9, 40)),
    f"DCGM_FI_DEV_GPU_UTIL{DCGM}": held((80, 40)),
    f"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{DCGM}": held((0.25, 40)),
    f"DCGM_FI_DEV_FB_USED{DCGM}": held((1024, 40)),
    f"DCGM_FI_DEV_FB_FREE{DCGM}": held((3072, 40)),
    f"DCGM_FI_DEV_FB_RESERVED{DCGM}": held((0, 40)),
    f"DCGM_FI_DEV_POWER_USAGE{DCGM}": held((300, 40)),
    f"DCGM_FI_DEV_GPU_TEMP{DCGM}": held((60, 40)),
}
GPU = {"run": "a", "node": "n1", "gpu": "3", "role": "learner"}
EXPECTED: dict[str, list[tuple[dict[str, str], float]]] = {
    "run:rl_rollout_samples_pass_per_samples:ratio_rate10m": [({"run": "a"}, 0.25)],
    "run:rl_rollout_samples_error_per_samples:ratio_rate15m": [({"run": "a"}, 0.2)],
    "run:rl_rollout_length_tokens:mean10m": [({"run": "a"}, 400)],
    "run:rl_rollout_length_tokens:p95_rate10m": [({"run": "a"}, 512)],
    "run:rl_rollout_truncated_per_length_tokens_count:ratio_rate10m": [({"run": "a"}, 0.05)],
    "run:rl_rollout_groups_flat_per_groups:ratio_rate15m": [({"run": "a"}, 0.25)],
    "run:rl_rollout_tokens_generated:rate5m": [({"run": "a"}, 800)],
    "run_phase:rl_trainer_phase_seconds:rate5m": [({"run": "a", "phase": "training"}, 0.25)],
    "run:rl_trainer_step_seconds:mean30m": [({"run": "a"}, 30)],
    "rl_gpu_utilization_ratio": [(GPU, 0.8)],
    "rl_gpu_tensor_active_ratio": [(GPU, 0.25)],
    "rl_gpu_memory_used_bytes": [(GPU, 2**30)],
    "rl_gpu_memory_total_bytes": [(GPU, 4 * 2**30)],
    "rl_gpu_power_watts": [(GPU, 300)],
    "rl_gpu_temperature_celsius": [(GPU, 60)],
    "run_role:rl_device_utilization_ratio:avg5m": [
        ({"run": "a", "role": "learner"}, 0.8),
        ({"run": "cpu", "role": "process"}, 0.5),
        ({"run": "cpu", "role": "learner"}, 0.9),
    ],
    "run:rl_device_utilization_ratio:avg5m": [({"run": "a"}, 0.8), ({"run": "cpu"}, 0.5)],
}


def labelled(name: str, labels: dict[str, str]) -> str:
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}"


def evaluate(
    folder: Path, expected: dict[str, list[tuple[dict[str, str], float]]]
) -> "subprocess.CompletedProcess[str]":
    (folder / "rules.yaml").write_text(rule_files(limits(load("lecture")))["rl-recording.yaml"])
    tests = [
        {
            # promtool compares floats bit by bit.
            "expr": f"round({name}, 0.001)",
            "eval_time": "35m",
            "exp_samples": [{"labels": labelled("", labels), "value": value} for labels, value in samples],
        }
        for name, samples in expected.items()
    ]
    series = [{"series": name, "values": values} for name, values in SERIES.items()]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": tests}
    (folder / "test.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]})
    )
    command = [require_program("promtool"), "test", "rules", "test.yaml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_every_recording_rule_gives_the_number_worked_out_by_hand(tmp_path: Path) -> None:
    assert EXPECTED.keys() == {rule.record for rule in RECORDINGS}
    done = evaluate(tmp_path, EXPECTED)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["rl_gpu_memory_total_bytes", "run:rl_trainer_step_seconds:mean30m"])
def test_another_number_is_found(name: str, tmp_path: Path) -> None:
    labels, value = EXPECTED[name][0]
    assert evaluate(tmp_path, {name: [(labels, value + 1)]}).returncode != 0
