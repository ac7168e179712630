"""The run as lines of text, one per event, for logs: no control codes, nothing that is redrawn. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

from controlplane.decide import ForecastView
from controlplane.digest import facts, words
from controlplane.record import Look, Record


@dataclass(frozen=True)
class Told:
    """How much of the record has been told."""

    evals: int = 0
    events: int = 0
    seq: int = 0
    forecasts: int = 0


def news(record: Record, told: Told) -> tuple[list[str], Told]:
    """Lines for what came since `told`, in order of time, and the new mark."""
    lines = [(facts.number(row, "time"), _evaluation(row)) for row in record.evals[told.evals :]]
    lines += [(facts.number(row, "time"), _event(row)) for row in record.events[told.events :] if _worth(row)]
    lines += [(look.at, _look(look)) for look in facts.said(record) if look.seq > told.seq]
    lines += [(_made(record, view), _forecast(view)) for view in record.forecasts[told.forecasts :]]
    last = record.looks[-1].seq if record.looks else told.seq
    # What carries no time comes first: it was there when the view was opened.
    ordered = sorted(lines, key=lambda line: line[0] if isfinite(line[0]) else 0.0)
    return [_one_line(text) for _, text in ordered], Told(
        len(record.evals), len(record.events), last, len(record.forecasts)
    )


def _evaluation(row: Mapping[str, Any]) -> str:
    text = f"step {row['step']:>5}  eval      {row.get('dataset', 'held-out')} pass rate {words.ratio(facts.number(row, 'pass_ratio'))}"
    truncated, length = facts.number(row, "truncated_ratio"), facts.number(row, "mean_length")
    text += f", length {length:.0f}" if isfinite(length) else ""
    return text + (f", truncated {truncated:.1%}" if isfinite(truncated) else "")


def _made(record: Record, view: ForecastView) -> float:
    """Time of the evaluation that a forecast was made from: it is told right after it, whenever it comes."""
    return next(
        (
            facts.number(r, "time")
            for r in record.evals
            if (r["step"], r.get("branch") or 0) == (view.step, view.branch)
        ),
        nan,
    )


def _forecast(view: ForecastView) -> str:
    return f"step {view.step:>5}  forecast  {words.forecast_words(view)}"


def _look(look: Look) -> str:
    return (
        f"step {look.step if look.step is not None else '-':>5}  {look.decision.kind.value:<8}  {look.decision.reason}"
    )


def _worth(row: Mapping[str, Any]) -> bool:
    """Checkpoints are many and dull; of a preparation every quarter is enough."""
    if row.get("event") == "prepare":
        return bool(row["done"] * 4 % row["of"] == 0)
    return row.get("event") != "checkpoint"


_SHOWN = {
    "fault": ("kind", "factor"),
    "rollback": ("from_step",),
    "stop": ("reason",),
    "resume": ("checkpoint",),
}
"""What of an event is worth a place in a log; the file has the rest."""


def _event(row: Mapping[str, Any]) -> str:
    event = str(row.get("event"))
    if event == "prepare":
        return f"{'':>12}trainer   {words.preparing(row)}"
    rest = "".join(f", {key.replace('_', ' ')} {row[key]}" for key in _SHOWN.get(event, ()) if row.get(key) is not None)
    return f"step {row.get('step', '-'):>5}  trainer   {event.replace('_', ' ')}, branch {row.get('branch', 0)}{rest}"


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
