import math
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families as parse_text

from controlplane.agent.exporter import Exporter, trainer_metrics
from controlplane.agent.exposition import Store
from controlplane.contract.documents import AckState, Phase
from controlplane.contract.metrics import TRAINER
from controlplane.contract.reports import CheckpointReport, EvalReport
from tests.agent.house import FRESH, GOOD, INFO, VALUES, report

EVALUATION = EvalReport("held_out", 10, 0, 3.0, 256, 4, 0.5, 0.8, 38.0, 0.01, 2.0)


def exporter(token_limit: int | None = None) -> tuple[Exporter, Store]:
    store = Store(trainer_metrics(token_limit))
    return Exporter(store, INFO, "inc-1", lambda: 1234.5), store


def values(store: Store) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in parse_text(store.text()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_every_metric_of_the_trainer_is_really_set() -> None:
    ours, store = exporter()
    fresh = values(store)
    for step in range(1, 101):
        ours.step(report(step))
    ours.step(report(101, grad_norm=1e9, loss=1e9, grad_clipped=True, skipped="nonfinite", nonfinite=("loss",)))
    ours.evaluation(EVALUATION)
    ours.checkpoint(CheckpointReport(10, 0.1, 1000))
    ours.checkpoint(CheckpointReport(20, 0.1, 0, failed_stage="verify"))
    ours.retained((GOOD, FRESH))
    ours.tunables(VALUES)
    ours.changed(VALUES, "controller")
    ours.answered(AckState.applied, 7, rolled_back=True)
    now = values(store)
    suffix = {"histogram": "_bucket", "info": ""}
    set_at_start = {
        "rl_run_info",
        "rl_run_created_timestamp_seconds",
        "rl_trainer_incarnation_info",
        "rl_trainer_start_timestamp_seconds",
        "rl_trainer_planned_steps",
        "rl_trainer_state",
    }
    for metric in TRAINER:
        name = metric.name + suffix.get(metric.kind, "")
        assert name in now, f"{name} has no sample"
        assert metric.name in set_at_start or now[name] != fresh.get(name), f"{name} never changes"


def test_counters_add_up_and_gauges_hold_the_last_reading() -> None:
    ours, store = exporter()
    ours.step(report(1))
    ours.step(report(2, grad_norm=math.nan))
    now = values(store)
    assert now["rl_rollout_samples_total"] == {("pass",): 128.0, ("fail",): 128.0, ("error",): 2.0}
    assert now["rl_trainer_phase_seconds_total"][("generating",)] == 0.2
    assert now["rl_trainer_global_step"] == {(): 2.0}
    assert now["rl_rollout_pass_ratio"] == {(): 0.5}
    assert now["rl_rollout_staleness_steps_max"] == {(): 1.0}
    assert now["rl_trainer_last_step_timestamp_seconds"] == {(): 1234.5}
    assert math.isnan(now["rl_trainer_grad_norm"][()])


def test_a_step_without_completions_has_no_pass_ratio() -> None:
    ours, store = exporter()
    ours.step(replace(report(1), rollouts=type(report(1).rollouts)()))
    assert math.isnan(values(store)["rl_rollout_pass_ratio"][()])


def test_the_token_limit_of_the_run_is_a_bucket_bound() -> None:
    _, store = exporter(token_limit=77)
    assert ("77.0",) in values(store)["rl_rollout_length_tokens_bucket"]
    assert ("77.0",) not in values(store)["rl_rollout_prompt_tokens_bucket"]


def test_length_bounds_above_the_limit_are_left_out_but_the_one_that_rules_name() -> None:
    _, store = exporter(token_limit=12000)
    bounds = sorted(float(labels[0]) for labels in values(store)["rl_rollout_length_tokens_bucket"])
    assert bounds[-4:] == [8192, 12000, 15000, math.inf]


def test_a_failed_checkpoint_is_not_a_success() -> None:
    ours, store = exporter()
    ours.checkpoint(CheckpointReport(20, 0.1, 5, failed_stage="write"))
    now = values(store)
    assert "rl_checkpoint_last_success_timestamp_seconds" not in now
    assert now["rl_checkpoint_failures_total"] == {("write",): 1.0, ("verify",): 0.0}


def test_phase_is_exclusive() -> None:
    ours, store = exporter()
    ours.phase(Phase.training)
    assert [state for state, on in values(store)["rl_trainer_state"].items() if on] == [("training",)]
