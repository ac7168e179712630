"""Alerts and controller agree: the same faults go through Prometheus' rule engine and through the controller.

Each fault is simulated once on a virtual clock and recorded. The controller judges every look; promtool evaluates the shipped
rules over the same values, scraped once a minute. Compared is which detector and which alert fire, and when. They cannot fire at
the same moment, and the bounds say by how much they may differ:

- an alert may come LATER by its rate window, its `for`, and two scrapes: Prometheus averages over time what the controller
  reads step by step;
- an alert may come EARLIER by the steps in a row that the detector waits for, however long these are: Prometheus knows no
  steps.
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from controlplane.agent.stepjudge import PASS_WINDOW
from controlplane.alerts import limits, rule_files
from controlplane.decide import Evaluator
from controlplane.detect import Outcome
from controlplane.policy import Policy, load
from controlplane.policy.models import Autonomy
from controlplane.sim import faults as make
from controlplane.sim.course import Course
from controlplane.sim.fast import START, FastRun
from controlplane.sim.faults import Fault
from controlplane.sim.learner import Law
from controlplane.snapshot import Snapshot
from tests.programs import require_program

STEP_SECONDS = 30.0
SCRAPE = 60.0
FAULT_STEP = 150


@dataclass(frozen=True)
class Pair:
    """A detector and the alert that mirrors it."""

    detector: str
    alert: str
    window: float
    """Seconds that the rule averages over and waits for."""
    steps: int
    """Steps in a row that the detector waits for."""


TRUNCATION = Pair("truncated", "RLTruncationHigh", 900, 3)
LENGTH = Pair("long", "RLGenerationLengthHigh", 900, 5)
NONFINITE = Pair("nonfinite", "RLNonFiniteStep", 0, 3)
STALL = Pair("stalled", "RLTrainerStalled", 60, 0)
NO_SIGNAL = Pair("no_signal", "RLNoSignalGroupsHigh", 1800, 5)
UNSAVED = Pair("unsaved", "RLCheckpointStale", 300, 1)
PASS_RATE = Pair("pass_low", "RLPassRatioLow", 120 + 100 * STEP_SECONDS, 3)
"""The trainer closes a window of 100 steps by itself, so the alert can be as late as that."""
PAIRS = (PASS_RATE, TRUNCATION, LENGTH, NONFINITE, STALL, NO_SIGNAL, UNSAVED)

FAULTS: dict[str, tuple[str, Fault | None, tuple[Pair, ...]]] = {
    "nothing": ("lecture", None, ()),
    "truncation explosion": ("guard", make.truncation_explosion(FAULT_STEP, 0.2), (TRUNCATION,)),
    "LR fault": ("lecture", make.lr_fault(FAULT_STEP, 20, steps=150), (PASS_RATE, TRUNCATION)),
    "length explosion": ("lecture", make.length_explosion(FAULT_STEP, 0.05), (LENGTH,)),
    "NaN burst": ("guard", make.nan(FAULT_STEP, steps=8), (NONFINITE,)),
    "generator stall": ("guard", make.stall(FAULT_STEP, 1.5 * 3600), (STALL,)),
    "entropy collapse": ("guard", make.entropy_collapse(FAULT_STEP, 0.1), (NO_SIGNAL,)),
    "full disk": ("guard", make.stale_checkpoint(25), (UNSAVED,)),
}
"""Name -> policy, fault, and what has to fire; everything else in `PAIRS` has to be silent on both sides."""


def record(fault: Fault | None) -> list[Snapshot]:
    """What a controller sees of the run; nobody acts."""
    course = replace(
        Course.draw(11, steps=300), step_seconds=STEP_SECONDS / 0.95, gen_length=2500.0, gen_length_growth=0.2, truncated=0.01,
        truncated_early=0.0, checkpoint_every=20, law=Law(0.7, 0.95, 100.0, 1.5, 64),
    )  # fmt: skip
    run, looks = FastRun(course, [fault] if fault else []), []
    while found := run.advance():
        looks += found
    return windowed(looks)


def windowed(looks: list[Snapshot]) -> list[Snapshot]:
    """The looks with the window of 100 steps that the trainer's exporter closes, which the fast simulation leaves out."""
    passes, verified, shown, found = 0.0, 0.0, dict[str, float](), []
    passed, failed = (f'rl_rollout_samples_total{{outcome="{outcome}"}}' for outcome in ("pass", "fail"))
    closed = 0
    for look in looks:
        metrics, step = look.metrics, int(look.metrics["rl_trainer_global_step"])
        if step // PASS_WINDOW > closed:
            closed = step // PASS_WINDOW
            total = metrics[passed] + metrics[failed]
            ratio = (metrics[passed] - passes) / (total - verified)
            shown = {f'rl_rollout_window_pass_ratio{{window="{PASS_WINDOW}"}}': ratio}
            passes, verified = metrics[passed], total
        found.append(look.model_copy(update={"metrics": {**metrics, **shown}}))
    return found


def detected(looks: Sequence[Snapshot], policy: Policy) -> dict[str, float]:
    """Detector -> seconds after the start of its first breach."""
    evaluator, first = Evaluator(policy), dict[str, float]()
    for look in looks:
        judgement, _ = evaluator.look(look)
        for name, finding in judgement.findings.items():
            if finding.outcome is Outcome.breach:
                first.setdefault(name, look.at - START)
    return first


def fired(looks: Sequence[Snapshot], policy: Policy, folder: Path) -> dict[str, float]:
    """Alert -> seconds after the start at which Prometheus' rule engine first has it firing."""
    end = int((looks[-1].at - START) / SCRAPE)
    for name, text in rule_files(limits(policy)).items():
        (folder / name).write_text(text)
    query = 'min_over_time(timestamp(ALERTS{alertstate="firing"})[' + f"{end}m:1m])"
    test = {
        "rule_files": sorted(path.name for path in folder.glob("rl-*.yaml")),
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": scraped(looks, end),
                # Nothing is expected, so promtool's complaint tells everything that is there.
                "promql_expr_test": [{"expr": query, "eval_time": f"{end}m", "exp_samples": []}],
            }
        ],
    }
    (folder / "test.yaml").write_text(yaml.safe_dump(test))
    program = require_program("promtool")
    done = subprocess.run(
        [program, "test", "rules", "test.yaml"], cwd=folder, capture_output=True, text=True, check=False
    )
    found = re.findall(r'alertname="(\w+)"[^}]*\} (\S+?)(?=[,\s]|$)', done.stdout + done.stderr)
    assert "RLWatchdog" in {name for name, _ in found}, done.stdout + done.stderr
    times: dict[str, float] = {}
    for name, at in found:
        times[name] = min(float(at), times.get(name, float("inf")))
    return times


def scraped(looks: Sequence[Snapshot], end: int) -> list[dict[str, str]]:
    """promtool's series: what a scrape at each minute would have found."""
    names = sorted({series for look in looks for series in look.metrics})
    rows: list[Snapshot] = []
    place = 0
    for minute in range(end + 1):
        while place + 1 < len(looks) and looks[place + 1].at - START <= minute * SCRAPE:
            place += 1
        rows.append(looks[place])
    series = []
    for name in names:
        shift = START if "_timestamp_" in name else 0.0
        values = [f"{row.metrics[name] - shift:.10g}" if name in row.metrics else "_" for row in rows]
        labelled = name.replace("{", '{run="r1",') if "{" in name else f'{name}{{run="r1"}}'
        series.append({"series": labelled, "values": " ".join(values).replace("nan", "NaN")})
    return series


def seconds_of(looks: Sequence[Snapshot], breach: float, steps: int) -> float:
    """Seconds after the start of the look that was `steps` steps before the one at `breach`."""
    times = {look.metrics["rl_trainer_steps_total"]: look.at - START for look in reversed(looks)}
    ended = [at for at in sorted(times.values()) if at <= breach]
    return ended[-1 - steps]


@pytest.mark.parametrize("name", FAULTS)
def test_alerts_and_controller_agree(name: str, tmp_path: Path) -> None:
    policy_name, fault, expected = FAULTS[name]
    looks, policy = record(fault), load(policy_name).capped(Autonomy.observe)
    breaches, alerts = detected(looks, policy), fired(looks, policy, tmp_path)
    for pair in PAIRS:
        if pair.detector not in policy.detectors:
            continue
        seen = pair.detector in breaches, pair.alert in alerts
        assert seen == ((pair in expected),) * 2, f"{pair.detector}, {pair.alert}: {seen}"
        if pair in expected:
            later = alerts[pair.alert] - breaches[pair.detector]
            waited = breaches[pair.detector] - seconds_of(looks, breaches[pair.detector], pair.steps + 1)
            assert -waited - SCRAPE <= later <= pair.window + 2 * SCRAPE + STEP_SECONDS, (
                f"{pair.alert} comes {later:.0f} s after {pair.detector}"
            )
            print(f"{name}: {pair.alert} {later:+.0f} s after {pair.detector}")
