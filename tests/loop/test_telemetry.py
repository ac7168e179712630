"""What the controller exports of itself: every decision that concerns a person is counted, and counted once."""

from dataclasses import replace
from pathlib import Path

from controlplane.contract.rundir import RunDir
from controlplane.decide import Evaluator
from controlplane.sim.faults import lr_fault
from controlplane.sources.scrape import ScrapeSource
from tests.loop.simulated import Bench

NAME = "rl_controller_decisions_total"


def counts(rundir: RunDir) -> dict[str, float]:
    return ScrapeSource(rundir.controller_target).read({NAME}).values


def series(rule: str, action: str, result: str) -> str:
    return f'{NAME}{{action="{action}",result="{result}",rule="{rule}"}}'


def test_every_decision_is_there_at_zero_and_an_action_is_counted_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1, (lr_fault(120, 10, steps=200),))
    bench.controller.export()
    before = counts(bench.rundir)
    assert set(before.values()) == {0.0}
    assert {
        series("collapse", "rollback", "act"),
        series("stale", "page", "page"),
        series("refused", "page", "page"),
    } <= set(before)
    bench.run()
    after = counts(bench.rundir)
    assert after[series("collapse", "rollback", "act")] == 1
    assert after.keys() == before.keys()
    page = ScrapeSource(bench.rundir.controller_target).read_all().values
    assert page['rl_controller_verdicts_total{helped="true"}'] == 1
    assert page['rl_controller_verdicts_total{helped="false"}'] == 0
    assert page['rl_controller_action_seconds_count{action="rollback"}'] == 1
    assert page['rl_controller_rule_actions_remaining{rule="collapse"}'] == 1
    assert page['rl_controller_rule_actions_remaining{rule="numbers-gone"}'] == 2
    assert page['rl_controller_rule_active{rule="collapse"}'] == 0
    assert page["rl_controller_blind_seconds"] == 0
    bench.close()


def test_a_page_about_missing_data_is_counted(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1)
    bench.controller.export()
    bench.run(until=40)
    bench.source.broken = True
    for _ in range(60):
        bench.step()
    assert counts(bench.rundir)[series("stale", "page", "page")] == 1
    page = ScrapeSource(bench.rundir.controller_target).read_all().values
    assert page['rl_controller_rule_active{rule="stale"}'] == 1
    assert page["rl_controller_blind_seconds"] > 15
    bench.close()


def test_every_held_out_set_is_exported_with_the_coverage_its_forecasts_have_shown(tmp_path: Path) -> None:
    from controlplane.decide.outlook import Outlooks
    from controlplane.decide.standing import Standing
    from controlplane.policy import load
    from controlplane.telemetry import Telemetry
    from tests.decide.test_outlook import look, rate_at

    policy = load("demo")
    outlooks = Outlooks(policy.forecast.model_copy(update={"axis": "step"}))
    evaluator, telemetry = Evaluator(policy), Telemetry(RunDir(tmp_path), policy, "hash", "run")
    for step in range(3, 60, 3):
        snapshot = look(step, {"held_out": rate_at(step), "harder": rate_at(step, 0.4)})
        outlooks.take_in(snapshot, 0)
    judgement, decision = evaluator.look(snapshot)
    judgement = replace(judgement, forecasts=outlooks.views)
    telemetry.record(snapshot, judgement, decision, Standing(), 0.001)
    names = {"rl_forecast_coverage_ratio", "rl_forecast_scored_evaluations", "rl_forecast_pass_ratio", "rl_fit_points"}
    values = ScrapeSource(RunDir(tmp_path).controller_target).read(names).values
    telemetry.close()
    for name, view in outlooks.views.items():
        assert values[f'rl_fit_points{{curve="{name}"}}'] == 19
        assert values[f'rl_forecast_scored_evaluations{{curve="{name}"}}'] == view.scored > 5
        for nominal, share in view.coverage.items():
            assert values[f'rl_forecast_coverage_ratio{{curve="{name}",nominal="{nominal}"}}'] == share
    assert values['rl_forecast_pass_ratio{curve="harder",q="0.5"}'] < 0.5
