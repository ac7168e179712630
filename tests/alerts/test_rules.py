"""The alert rules, judged by Prometheus' and Alertmanager's own tools."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from controlplane.alerts import RECORDINGS, Alert, alerts, limits, metric_names, rule_files
from controlplane.alerts.__main__ import POLICY, generated, outdated
from controlplane.alerts.rulefiles import test_files as story_files
from controlplane.alerts.usage import used_by
from controlplane.contract.metrics import BY_NAME, FOREIGN, SAMPLES
from controlplane.policy import load, preset_names
from tests.programs import require_program

ROOT = Path(__file__).parents[2]
ALERTS = alerts(limits(load(POLICY)))
RECORDED = {rule.record for rule in RECORDINGS}


def run(program: str, *arguments: str, cwd: Path = ROOT) -> str:
    done = subprocess.run([require_program(program), *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_generated_files_are_current() -> None:
    assert outdated(ROOT) == [], "run: python -m controlplane.alerts"


def test_a_file_that_nobody_generates_or_that_was_edited_is_found(tmp_path: Path) -> None:
    for path, text in generated(tmp_path).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert outdated(tmp_path) == []
    (tmp_path / "alerts/rules/old.yaml").write_text("")
    edited = tmp_path / "docs/runbooks/rlwatchdog.md"
    edited.write_text(edited.read_text() + "x")
    assert outdated(tmp_path) == ["alerts/rules/old.yaml", "docs/runbooks/rlwatchdog.md"]


@pytest.mark.parametrize("policy", preset_names())
def test_promtool_accepts_the_rules_of_every_shipped_policy(policy: str, tmp_path: Path) -> None:
    for name, text in rule_files(limits(load(policy))).items():
        (tmp_path / name).write_text(text)
    run("promtool", "check", "rules", *map(str, tmp_path.glob("*.yaml")))


def test_every_alert_fires_stays_silent_and_resolves_as_its_stories_tell() -> None:
    run(
        "promtool",
        "test",
        "rules",
        *(path.name for path in (ROOT / "alerts/tests").glob("*")),
        cwd=ROOT / "alerts/tests",
    )


def test_a_story_that_tells_something_else_fails(tmp_path: Path) -> None:
    """The test above can fail: one threshold moved is found."""
    (tmp_path / "rules").mkdir()
    (tmp_path / "tests").mkdir()
    numbers = limits(load(POLICY))
    for name, text in rule_files(numbers).items():
        (tmp_path / "rules" / name).write_text(text.replace("ratio_rate10m > 0.1\n", "ratio_rate10m > 0.5\n"))
    test = tmp_path / "tests" / "rl-rollout.test.yaml"
    test.write_text(story_files(numbers)["rl-rollout.test.yaml"])
    with pytest.raises(AssertionError, match="RLTruncationHigh"):
        run("promtool", "test", "rules", test.name, cwd=test.parent)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_alert_has_stories_in_which_it_is_silent_fires_and_resolves(alert: Alert) -> None:
    if alert.name == "RLWatchdog":
        return  # its whole point is that it always fires
    resolves = False
    for story in alert.stories:
        told = [bool(fires) for _, fires in sorted(story.fires.items())]
        resolves |= any(told[a] and not told[b] for a in range(len(told)) for b in range(a + 1, len(told)))
    assert resolves, "no story in which it fires and then resolves"
    assert any(not next(iter(fires for _, fires in sorted(story.fires.items()))) for story in alert.stories)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_alert_says_what_a_person_needs(alert: Alert) -> None:
    assert alert.name.startswith("RL")
    assert "{{" not in alert.summary, "a summary is a title: values go into the description"
    assert alert.name == "RLWatchdog" or "{{ $labels.run }}" in alert.description
    assert alert.meaning
    assert alert.controller
    assert alert.person
    assert (ROOT / "docs/runbooks" / f"{alert.name.lower()}.md").exists()


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_a_description_names_only_labels_that_the_alert_has(alert: Alert) -> None:
    """promtool holds the labels of the stories to be exact, so what they have, the alert has."""
    fired = [set(labels) | {"run"} for story in alert.stories for fires in story.fires.values() for labels in fires]
    for label in re.findall(r"\$labels\.(\w+)", alert.description):
        assert all(label in labels for labels in fired), label


def test_every_metric_in_a_rule_exists() -> None:
    known = SAMPLES.keys() | FOREIGN.keys() | RECORDED
    for where, expression in [(rule.record, rule.expr) for rule in RECORDINGS] + [(a.name, a.expr) for a in ALERTS]:
        names = metric_names(expression)
        assert names or where == "RLWatchdog"
        assert names <= known, f"{where}: {names - known}"


def test_names_are_found_in_an_expression() -> None:
    expression = (
        'sum by (run, le) (rate(rl_a_bucket{x="rl_not"}[5m] offset 1h)) / on (run) group_left () clamp_min(run:b:mean10m, 3e2)'
        ' or label_replace(up, "rl_label", "$1", "job", "(.*)") unless rl_c == bool NaN'
    )
    assert metric_names(expression) == {"rl_a_bucket", "run:b:mean10m", "up", "rl_c"}


def test_numbers_come_from_the_policy() -> None:
    lecture, demo = limits(load("lecture")), limits(load("demo"))
    assert (lecture.pass_rate, lecture.truncation, lecture.gen_length, lecture.utilization) == (0.60, 0.10, 15000, 0.70)
    assert demo.stall_seconds == 60
    assert demo.blind_seconds == 15
    assert "> 60\n" not in rule_files(lecture)["rl-trainer.yaml"]
    assert ", 60)" in rule_files(demo)["rl-trainer.yaml"]


def test_usage_follows_recording_rules(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"panels": [{"targets": [{"expr": "run:rl_trainer_step_seconds:mean30m"}]}]}')
    users = used_by(limits(load(POLICY)), tmp_path)
    assert "x dashboard" in users["rl_trainer_steps_total"]
    assert "RLTrainerStalled" in users["rl_trainer_steps_total"]
    assert users.keys() <= BY_NAME.keys()


# Alertmanager


def receivers(**labels: str) -> list[str]:
    arguments = [f"{name}={value}" for name, value in labels.items()]
    config = "--config.file=alerts/alertmanager.yml"
    return run("amtool", "config", "routes", "test", config, *arguments).strip().split(",")


def test_amtool_accepts_the_configuration() -> None:
    assert "SUCCESS" in run("amtool", "check-config", "alerts/alertmanager.yml")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_alert_reaches_a_person_and_the_controller_only_gets_hints(alert: Alert) -> None:
    labels = {"alertname": alert.name, "severity": alert.severity, "component": alert.component, "run": "r1"}
    reached = receivers(**labels, **({"signal": alert.signal} if alert.signal else {}))
    if alert.name == "RLWatchdog":
        assert reached == ["heartbeat"]
        return
    person = "pager" if alert.severity == "critical" else "people"
    assert reached == (["controller", person] if alert.signal else [person])


def test_an_alert_of_somebody_else_reaches_people() -> None:
    assert receivers(alertname="DiskFull", severity="warning") == ["people"]


def test_inhibitions_name_alerts_that_exist() -> None:
    config = yaml.safe_load((ROOT / "alerts/alertmanager.yml").read_text())
    names = {alert.name for alert in ALERTS}
    for rule in config["inhibit_rules"]:
        for matcher in rule["source_matchers"] + rule["target_matchers"]:
            label, _, value = matcher.replace("=~", "=").partition("=")
            if label == "alertname":
                assert set(value.strip('"').split("|")) <= names
