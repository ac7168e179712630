"""One page per alert for the person on call: what fires it, what it means, what the controller does, what you do, how to silence."""

from controlplane.alerts.catalogue import alerts, groups
from controlplane.alerts.limits import Limits
from controlplane.alerts.model import Alert

_GENERATED = "<!-- Generated: python -m controlplane.alerts. The words are in controlplane/alerts. -->"
_TITLES = {
    "rl-learning": "Learning",
    "rl-rollout": "Rollouts",
    "rl-trainer": "Trainer and devices",
    "rl-watching": "Monitoring and controller",
}


def runbooks(limits: Limits) -> dict[str, str]:
    """File name -> Markdown of every page, and of the index."""
    pages = {f"{alert.name.lower()}.md": _page(alert, limits) for alert in alerts(limits)}
    return {"README.md": _index(limits), **pages}


def _page(alert: Alert, limits: Limits) -> str:
    steps = "\n".join(f"{number}. {step}" for number, step in enumerate(alert.person, start=1))
    return f"""{_GENERATED}
# {alert.name}

**{alert.summary}.** Severity {alert.severity}, component {alert.component}. [All alerts](README.md)

## What fires it

```
{alert.expr}
```

{_timing(alert)} {_number(alert, limits)}

## What it means

{alert.meaning}

## What the controller does about it

{alert.controller}

## What you do

{steps}

## How to silence it

For a while, for one run:

```
amtool silence add alertname={alert.name} run=RUN --duration 4h --comment "why"
```

{_for_good(alert)}
"""


def _timing(alert: Alert) -> str:
    first = "Fires at once." if alert.wait == "0s" else f"Fires when this has held for {_minutes(alert.wait)}."
    return first + (f" Goes {_minutes(alert.keep)} after it is over." if alert.keep else "")


def _minutes(duration: str) -> str:
    number = duration.removesuffix("m")
    return f"{number} minute{'' if number == '1' else 's'}"


def _number(alert: Alert, limits: Limits) -> str:
    if not alert.signal:
        return "The controller has no signal of this kind: it mirrors no rule of a policy."
    return (
        f"Mirrors the signal `{alert.signal}` of the controller. A number in it comes from the detector of that signal in policy "
        f"`{limits.policy}`; where the policy has none, from controlplane/alerts/limits.py."
    )


def _for_good(alert: Alert) -> str:
    if alert.name == "RLWatchdog":
        return "For good: never. Without it nobody learns that alerting is dead."
    if alert.signal:
        return (
            "For good: change the detector in your policy and write the rules anew with `scalerl prometheus config --policy FILE`, so "
            "that alert and controller keep one number."
        )
    return "For good: leave it out of your own copy of the rules; say why in a comment beside it."


def _index(limits: Limits) -> str:
    lines = [
        _GENERATED,
        "# Runbooks",
        "",
        "One page per alert. Every page says what fires the alert, what it means, what the controller does about it, what you do,",
        f"and how to silence it. Numbers come from policy `{limits.policy}`.",
        "",
        "At night: read the one line under the title, then *What you do*. RLTrainerDown, RLTrainerStalled, RLNonFiniteStep,",
        "RLControllerDown and RLControllerNeedsPerson wake people; the others can wait for the morning.",
    ]
    for group, members in groups(limits).items():
        lines += ["", f"## {_TITLES[group]}", "", "| alert | severity | what is wrong |", "| --- | --- | --- |"]
        lines += [
            f"| [{alert.name}]({alert.name.lower()}.md) | {alert.severity} | {alert.summary} |" for alert in members
        ]
    return "\n".join(lines) + "\n"
