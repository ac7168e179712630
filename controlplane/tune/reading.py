"""What the tuner reads out of the record of a probe, beside the evidence. Pure."""

from typing import Any

from controlplane.contract.documents import CONTROL

CUT_OFF = 0.2
"""An arm whose share of truncated completions exceeds the control's by so much, three steps in a row, is stopped."""


def alarm(record: list[dict[str, Any]], arm: str) -> str:
    """What went wrong in an arm, if anything: a non-finite step, or far more truncation than in the control."""
    mine = [line for line in record if line["kind"] == "step" and line["arm"] == arm]
    if any(line["skipped"] == "nonfinite" for line in mine):
        return "a step was not finite"
    usual = [line["truncated"] for line in record if line["kind"] == "step" and line["arm"] == CONTROL]
    if not usual:
        return ""  # nothing to compare with yet
    limit = sum(usual) / len(usual) + CUT_OFF
    tail = [line["truncated"] for line in mine]
    if any(min(tail[i : i + 3]) > limit for i in range(len(tail) - 2)):
        return f"more than {limit:.0%} of its completions were cut off, three steps in a row"
    return ""


def compared(record: list[dict[str, Any]]) -> str:
    """The arm that is compared with the control now: the one that took the newest step beside it; empty when it was stopped."""
    mine = (line for line in reversed(record) if line["kind"] in ("step", "stopped") and line["arm"] != CONTROL)
    newest = next(mine, None)
    return newest["arm"] if newest is not None and newest["kind"] == "step" else ""


def gain(record: list[dict[str, Any]]) -> float:
    """What the control gains in the steps of a probe: the slope of its pass rate times those. It may have needed fewer itself."""
    read = [
        (float(line["t"]), sum(p[2] for p in line["prompts"]) / sum(p[3] for p in line["prompts"]))
        for line in record
        if line["kind"] == "step" and line["arm"] == CONTROL
    ]
    n = len(read)
    if n < 2:
        return 0.0
    middle = sum(t for t, _ in read) / n
    return float(
        record[0]["steps"] * sum((t - middle) * rate for t, rate in read) / sum((t - middle) ** 2 for t, _ in read)
    )
