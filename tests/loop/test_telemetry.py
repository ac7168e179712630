"""What the controller exports of itself: every decision that concerns a person is counted, and counted once."""

from pathlib import Path

from controlplane.contract.rundir import RunDir
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
    bench.close()


def test_a_page_about_missing_data_is_counted(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1)
    bench.controller.export()
    bench.run(until=40)
    bench.source.broken = True
    for _ in range(60):
        bench.step()
    assert counts(bench.rundir)[series("stale", "page", "page")] == 1
    bench.close()
