"""Recording rules: what alerts and dashboards would otherwise compute again and again, and GPU metrics of DCGM under our names."""

from controlplane.alerts.model import Recording

_DCGM_LABELS = "run, node, gpu, role"


def _dcgm(expression: str) -> str:
    """Another exporter's series with our labels, unless the trainer's own exporter reads that GPU already."""
    named = f'label_replace({expression}, "node", "$1", "Hostname", "(.*)")'
    ours = 'rl_gpu_utilization_ratio{job="scalerl-trainer"}'
    return f"avg by ({_DCGM_LABELS}) ({named}) unless on (run, node, gpu) {ours}"


RECORDINGS: tuple[Recording, ...] = (
    Recording(
        "run:rl_rollout_samples_pass_per_samples:ratio_rate10m",
        'sum by (run) (rate(rl_rollout_samples_total{outcome="pass"}[10m]))'
        ' / (sum by (run) (rate(rl_rollout_samples_total{outcome=~"pass|fail"}[10m])) > 0)',
        "pass ratio of the training batches over ten minutes",
    ),
    Recording(
        "run:rl_rollout_length_tokens:mean10m",
        "sum by (run) (rate(rl_rollout_length_tokens_sum[10m]))"
        " / (sum by (run) (rate(rl_rollout_length_tokens_count[10m])) > 0)",
        "mean length of a completion",
    ),
    Recording(
        "run:rl_rollout_length_tokens:p95_rate10m",
        "histogram_quantile(0.95, sum by (run, le) (rate(rl_rollout_length_tokens_bucket[10m])))",
        "length that one completion in twenty exceeds; exact at the bounds of the buckets only",
    ),
    Recording(
        "run:rl_rollout_truncated_per_length_tokens_count:ratio_rate10m",
        'sum by (run) (rate(rl_rollout_truncated_total{reason="length"}[10m]))'
        " / (sum by (run) (rate(rl_rollout_length_tokens_count[10m])) > 0)",
        "share of completions cut by the length limit",
    ),
    Recording(
        "run:rl_rollout_groups_flat_per_groups:ratio_rate15m",
        'sum by (run) (rate(rl_rollout_groups_total{signal=~"all_pass|all_fail"}[15m]))'
        " / (sum by (run) (rate(rl_rollout_groups_total[15m])) > 0)",
        "share of prompt groups without a gradient",
    ),
    Recording(
        "run:rl_rollout_samples_error_per_samples:ratio_rate15m",
        'sum by (run) (rate(rl_rollout_samples_total{outcome="error"}[15m]))'
        " / (sum by (run) (rate(rl_rollout_samples_total[15m])) > 0)",
        "share of completions that the verifier could not judge",
    ),
    Recording(
        "run:rl_rollout_tokens_generated:rate5m",
        'sum by (run) (rate(rl_rollout_tokens_total{kind="generated"}[5m]))',
        "generated tokens per second",
    ),
    Recording(
        "run_phase:rl_trainer_phase_seconds:rate5m",
        "sum by (run, phase) (rate(rl_trainer_phase_seconds_total[5m]))",
        "share of the wall time by phase; counters grow at the end of a step, so a step longer than 5 minutes shows as a jump",
    ),
    Recording(
        "run:rl_trainer_step_seconds:mean30m",
        "1800 / (sum by (run) (increase(rl_trainer_steps_total[30m])) > 0)",
        "usual wall time of a step, everything between two steps included",
    ),
    # The GPUs of one run, whoever reads them.
    Recording(
        "rl_gpu_utilization_ratio",
        _dcgm("DCGM_FI_DEV_GPU_UTIL / 100"),
        "DCGM counts in percent",
    ),
    Recording("rl_gpu_tensor_active_ratio", _dcgm("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"), "only where DCGM profiles"),
    Recording("rl_gpu_memory_used_bytes", _dcgm("DCGM_FI_DEV_FB_USED * 1048576"), "DCGM counts in MiB"),
    Recording(
        "rl_gpu_memory_total_bytes",
        _dcgm("(DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE + DCGM_FI_DEV_FB_RESERVED) * 1048576"),
        "used, free and what the driver keeps",
    ),
    Recording("rl_gpu_power_watts", _dcgm("DCGM_FI_DEV_POWER_USAGE"), ""),
    Recording("rl_gpu_temperature_celsius", _dcgm("DCGM_FI_DEV_GPU_TEMP"), ""),
    Recording(
        "run_role:rl_device_utilization_ratio:avg5m",
        "avg by (run, role) (avg_over_time(rl_gpu_utilization_ratio[5m]))"
        " or on (run) avg by (run, role) (avg_over_time(rl_trainer_utilization_ratio[5m]))",
        "use of the devices by role; CPU time where a run has no GPU",
    ),
    Recording(
        "run:rl_device_utilization_ratio:avg5m",
        "avg by (run) (avg_over_time(rl_gpu_utilization_ratio[5m]))"
        ' or on (run) avg by (run) (avg_over_time(rl_trainer_utilization_ratio{role="process"}[5m]))',
        "use of the devices of a run",
    ),
)
"""In order of evaluation: the device rules read what the DCGM rules wrote."""
