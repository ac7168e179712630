"""A run stays within its budget of series: 350, and 6 for each GPU."""

from pathlib import Path

from controlplane.agent.exporter import Exporter, trainer_metrics
from controlplane.agent.exposition import Store
from controlplane.contract.metrics import CONTROLLER, GPU
from controlplane.contract.reports import EvalReport
from controlplane.contract.rundir import RunDir
from controlplane.decide import Evaluator
from controlplane.policy import load
from controlplane.sim.course import Course
from controlplane.sim.fast import FastRun
from controlplane.sources.exposition import parse
from controlplane.telemetry import Telemetry
from tests.agent.house import INFO, report

TUNABLES = (
    "lr_scale",
    "max_staleness",
    "prompts_per_step",
    "ratio_max",
    "temperature",
    "max_new_tokens",
    "thinking_budget",
)


def test_trainer_and_controller_of_a_run_under_the_largest_shipped_policy(tmp_path: Path) -> None:
    page = Store((*trainer_metrics(14336), *GPU))
    exporter = Exporter(page, INFO, "one", lambda: 0.0)
    exporter.tunables(dict.fromkeys(TUNABLES, 1.0))
    exporter.step(report(1))
    exporter.evaluation(EvalReport("held_out", 10, 0, 3.0, 256, 4, 0.5, 0.8, 38.0, 0.01, 2.0))
    trainer = parse(page.text(), None)
    assert len(trainer) <= 180

    controller = controller_page("guard", tmp_path)
    assert len(trainer) + len(controller) <= 350
    assert len(GPU) == 6
    assert all(set(metric.labels) == {"node", "gpu", "role"} for metric in GPU)


def test_every_metric_of_the_controller_is_really_set(tmp_path: Path) -> None:
    pages = [controller_page(policy, tmp_path) for policy in ("guard", "lecture")]
    names = {series.partition("{")[0] for page in pages for series in page}
    assert {metric.name for metric in CONTROLLER if not set(metric.samples) & names} == set()


def controller_page(name: str, folder: Path) -> dict[str, float]:
    """What the controller exports after 200 steps of a simulated run."""
    policy = load(name)
    evaluator, telemetry = Evaluator(policy), Telemetry(RunDir(folder), policy, "hash", "run")
    run = FastRun(Course.draw(3, steps=400))
    while run.step < 200 and (looks := run.advance()):
        for look in looks:
            telemetry.record(look, *evaluator.look(look), evaluator.standing, 0.01)
    telemetry.close()
    return parse(telemetry._store.text(), None)
