"""False alarms and delays of detectors as measured: the one place from which docstrings, `explain` and docs take them.

`figures.json` is written by `python bench/detectors.py --write`; the key of a detector is its settings without its signal.
"""

import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from math import inf, isinf
from typing import Any

from controlplane.policy.detectors import Cusum, RobustZ, Threshold
from controlplane.policy.detectors import Detector as Config
from controlplane.policy.signals import SignalSpec


@dataclass(frozen=True)
class Figures:
    """What a simulation found. `false_alarms`: condition -> per 1,000 readings; `found`: change -> median readings until the
    alarm, infinite where fewer than half were found in time. `readings` and `trials`: how much was simulated."""

    false_alarms: dict[str, float]
    found: dict[str, float]
    readings: int
    trials: int

    def sentence(self, unit: str = "steps") -> str:
        """For people: "0.037 (heavy-tailed) ... false alarms per 1,000 steps; found in 6 (2 spreads) ... steps"."""
        least = 3000 / self.readings  # none in n readings: at most 3 / n with 95 % confidence
        alarms = [f"{_rate(rate, least)} ({name})" for name, rate in self.false_alarms.items()]
        found = [f"{_steps(steps)} ({name})" for name, steps in self.found.items()]
        return f"{', '.join(alarms)} false alarms per 1,000 {unit}; found in {', '.join(found)} {unit}"

    @property
    def worst_rate(self) -> float:
        """The largest false-alarm rate per 1,000 readings; the upper bound of what was seen where none was."""
        return max((max(rate, 3000 / self.readings) for rate in self.false_alarms.values()), default=0.0)


def key(config: Config, spec: SignalSpec | None) -> str:
    """Settings that matter for the figures, as canonical JSON."""
    body = config.model_dump(mode="json", exclude={"signal", "side", "reference", "from_step"})
    if isinstance(config, Threshold):
        body = {
            "kind": body["kind"],
            "consecutive": body["consecutive"],
        }  # its figures are in spreads from the threshold
    if isinstance(config, Cusum | RobustZ):
        body["signal_kind"] = "positive" if spec is not None and spec.kind == "positive" else "other"
    return json.dumps(body, sort_keys=True)


def known(config: Config, spec: SignalSpec | None) -> Figures | None:
    """The figures of a detector with exactly these settings; None where they were not measured."""
    return _table().get(key(config, spec))


def dump(table: dict[str, Figures]) -> str:
    """The text of `figures.json`."""
    rows = {name: {k: _plain(v) for k, v in asdict(figures).items()} for name, figures in sorted(table.items())}
    return json.dumps(rows, indent=1) + "\n"


@cache
def _table() -> dict[str, Figures]:
    text = (resources.files("controlplane.detect") / "figures.json").read_text()
    rows: dict[str, dict[str, Any]] = json.loads(text)
    return {
        name: Figures(
            row["false_alarms"],
            {k: inf if v is None else v for k, v in row["found"].items()},
            row["readings"],
            row["trials"],
        )
        for name, row in rows.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: None if isinf(v) else float(f"{v:.4g}") for k, v in value.items()}
    return value


def _rate(rate: float, least: float) -> str:
    return f"{rate:.2g}" if rate > 0 else f"fewer than {least:.1g}"


def _steps(steps: float) -> str:
    return "more than 150" if isinf(steps) else f"{steps:g}"
