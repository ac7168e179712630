"""Alertmanager's configuration: who hears of what, and what is silent while something worse fires.

The controller gets a copy of every alert that mirrors one of its signals, as a hint and nothing more: Alertmanager delivers
late, repeated and grouped, so the controller looks at the metrics again and decides from those. A matched route with
`continue` never falls back to the receiver of the root, hence the last route, which catches all.
"""

from typing import Any

from controlplane.alerts.rulefiles import dump

HEARTBEAT = "http://127.0.0.1:9095/heartbeat"
PAGER = "http://127.0.0.1:9095/page"
PEOPLE = "http://127.0.0.1:9095/people"
HINTS = "http://127.0.0.1:9096/hint"

_HEAD = """Generated: python -m controlplane.alerts. Copy it, put in your own receivers, and check with `amtool check-config`.
The addresses are placeholders on loopback: heartbeat is a dead man's switch outside of this system, page wakes a person,
people is a channel that somebody reads. The one of the controller only asks it to look
(`scalerl control --hints 9096`; one receiver per controller); without hints leave that route out."""


def alertmanager(hints: str = HINTS) -> str:
    """The configuration as YAML; `hints` is the address of the controller that may be asked to look."""
    return dump(_config(hints), _HEAD)


def _config(hints: str) -> dict[str, Any]:
    return {
        "route": {
            "receiver": "people",
            "group_by": ["run", "component"],
            "group_wait": "30s",
            "group_interval": "5m",
            "repeat_interval": "4h",
            "routes": [
                {
                    "receiver": "heartbeat",
                    "matchers": ['alertname="RLWatchdog"'],
                    "group_wait": "0s",
                    "group_interval": "1m",
                    "repeat_interval": "5m",
                },
                {
                    "receiver": "controller",
                    "matchers": ['signal=~".+"'],
                    "group_by": ["run", "alertname"],
                    "group_wait": "0s",
                    "repeat_interval": "1h",
                    "continue": True,
                },
                {
                    "receiver": "pager",
                    "matchers": ['severity="critical"'],
                    "group_wait": "10s",
                    "repeat_interval": "1h",
                },
                {"receiver": "people"},
            ],
        },
        "receivers": [
            {"name": "people", "webhook_configs": [{"url": PEOPLE}]},
            {"name": "heartbeat", "webhook_configs": [{"url": HEARTBEAT, "send_resolved": False}]},
            {"name": "controller", "webhook_configs": [{"url": hints, "send_resolved": False, "max_alerts": 1}]},
            {"name": "pager", "webhook_configs": [{"url": PAGER}]},
        ],
        "inhibit_rules": [
            _inhibit("RLTrainerDown", 'severity=~"warning|info"'),
            _inhibit("RLTrainerStalled", 'alertname=~"RLGPUUtilizationLow|RLTrainerStarved"'),
            _inhibit("RLNonFiniteStep", 'alertname=~"RLLossSpike|RLGradNormSpikes"'),
            _inhibit("RLControllerDown", 'alertname="RLControllerBlind"'),
        ],
    }


def _inhibit(source: str, target: str) -> dict[str, Any]:
    return {"source_matchers": [f'alertname="{source}"'], "target_matchers": [target], "equal": ["run"]}
