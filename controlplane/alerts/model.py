"""What an alert is: the rule, the words for a person, and the stories that test it. One alert, one home.

    Limits (a policy's numbers) -> catalogue -> rule files, rule tests, runbooks

A story is a short history of a run, told to Prometheus' own rule engine: series over time, and at which minutes the alert
fires. Each alert has to fire, stay silent and resolve somewhere in its stories.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["critical", "warning", "info", "none"]
Component = Literal["learning", "forecast", "rollout", "trainer", "hardware", "monitoring", "controller"]


@dataclass(frozen=True)
class Story:
    """Series in promtool's notation, one sample a minute; minute -> label sets that fire then (label `run` is r1 unless given)."""

    title: str
    series: Mapping[str, str]
    fires: Mapping[int, tuple[Mapping[str, str], ...]]


@dataclass(frozen=True)
class Alert:
    """One alert rule and everything that belongs to it."""

    name: str
    severity: Severity
    component: Component
    expr: str
    summary: str
    """What is wrong, without values: the title of a page."""
    description: str
    """What is wrong with this run, with labels and value."""
    meaning: str
    controller: str
    """What the controller does about it, so that a person does not do it twice."""
    person: tuple[str, ...]
    """What a person does, in order."""
    wait: str = "0s"
    """How long the expression has to hold; `for` in the rule."""
    keep: str = ""
    """How long the alert stays once the expression is false again; `keep_firing_for`."""
    signal: str = ""
    """The controller's signal that this mirrors; empty when the controller watches nothing like it."""
    stories: tuple[Story, ...] = field(default=())


@dataclass(frozen=True)
class Recording:
    """A recording rule. `level:metric:operations`, except where another exporter's metric becomes one of our list."""

    record: str
    expr: str
    why: str


FIRES: tuple[Mapping[str, str], ...] = ({},)
"""In a story: the alert fires once, with nothing but the usual labels."""
SILENT: tuple[Mapping[str, str], ...] = ()


def held(*pieces: tuple[float | str, int]) -> str:
    """A gauge: (value, minutes) after one another. The value `_` is a scrape without this series."""
    return " ".join(f"_x{minutes}" if value == "_" else f"{_text(value)}x{minutes - 1}" for value, minutes in pieces)


def grown(*pieces: tuple[float, int], start: float = 0.0) -> str:
    """A counter: (growth per minute, minutes) after one another."""
    words, value = [_text(start)], start
    for growth, minutes in pieces:
        words.append(f"{_text(value + growth)}+{_text(growth)}x{minutes - 1}")
        value += growth * minutes
    return " ".join(words)


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.10g}"
