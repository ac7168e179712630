"""Rule files and promtool's rule tests, as YAML text."""

from typing import Any

import yaml

from controlplane.alerts.catalogue import groups
from controlplane.alerts.limits import Limits
from controlplane.alerts.model import Alert, Story
from controlplane.alerts.recordings import RECORDINGS

RUNBOOKS = "docs/runbooks"
"""Where the runbooks are read, in front of `/<alert>.md`; a site of your own: `scalerl prometheus config --runbooks URL`."""


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block, so that expressions stay readable."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def dump(document: object, head: str) -> str:
    """A document as YAML under a comment."""
    comment = "".join(f"# {line}\n" for line in head.splitlines())
    return comment + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)


def rule_files(limits: Limits, runbooks: str = RUNBOOKS, interval: int = 15) -> dict[str, str]:
    """File name -> text of every rule file: recording rules, and one file per group of alerts.

    `interval` is the time between two evaluations in seconds; more often than pages are scraped finds nothing new.
    """
    head = f"Generated from policy {limits.policy}: python -m controlplane.alerts. Do not edit."
    recordings = {
        "name": "rl-recording",
        "interval": f"{interval}s",
        "rules": [{"record": rule.record, "expr": rule.expr} for rule in RECORDINGS],
    }
    files = {"rl-recording.yaml": dump({"groups": [recordings]}, head)}
    for name, members in groups(limits).items():
        rules = [_rule(alert, runbooks) for alert in members]
        files[f"{name}.yaml"] = dump({"groups": [{"name": name, "interval": f"{interval}s", "rules": rules}]}, head)
    return files


def test_files(limits: Limits) -> dict[str, str]:
    """File name -> text of the rule tests, one file per group; they expect the rule files in `../rules`."""
    head = f"Generated from policy {limits.policy}: python -m controlplane.alerts. Run with promtool test rules."
    return {
        f"{name}.test.yaml": dump(
            {
                "rule_files": ["../rules/rl-recording.yaml", f"../rules/{name}.yaml"],
                "evaluation_interval": "1m",
                "tests": [_test(alert, story) for alert in members for story in alert.stories],
            },
            head,
        )
        for name, members in groups(limits).items()
    }


def _rule(alert: Alert, runbooks: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"alert": alert.name, "expr": alert.expr}
    if alert.wait != "0s":
        rule["for"] = alert.wait
    if alert.keep:
        rule["keep_firing_for"] = alert.keep
    rule["labels"] = _labels(alert)
    rule["annotations"] = {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": f"{runbooks}/{alert.name.lower()}.md",
    }
    return rule


def _labels(alert: Alert) -> dict[str, str]:
    labels: dict[str, str] = {"severity": alert.severity, "component": alert.component}
    return {**labels, "signal": alert.signal} if alert.signal else labels


def _test(alert: Alert, story: Story) -> dict[str, Any]:
    return {
        "name": f"{alert.name}: {story.title}",
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in story.series.items()],
        "promql_expr_test": [
            {
                "expr": f'ALERTS{{alertname="{alert.name}",alertstate="firing"}}',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": _series(alert, extra), "value": 1} for extra in fires],
            }
            for minute, fires in story.fires.items()
        ],
    }


def _series(alert: Alert, extra: Any) -> str:
    labels = {"alertname": alert.name, "alertstate": "firing", **_labels(alert), "run": "r1", **extra}
    inner = ",".join(f'{key}="{value}"' for key, value in labels.items() if value)
    return f"ALERTS{{{inner}}}"
