"""The record of a probe, `probes/<id>.jsonl`: what its arms did, step by step and prompt by prompt. The controller judges by it.

    begin     step of the run, steps of each arm, arms with what they set, tunables in force
    step      one step of one arm
    stopped   an arm that takes no further step
    waiting   no arm takes another step; a ruling is waited for
    end       what became of the probe, and what it cost

One writer at a time, whole lines only. A record without `end` was left by a crash; `close_left_open` writes it.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controlplane.contract.documents import CONTROL
from controlplane.contract.rundir import append_line, read_lines
from trainer.record import finite
from trainer.stepper import Stepped


class Record:
    """Appends to one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(
        self, step: int, steps: int, arms: Mapping[str, Mapping[str, float]], tunables: Mapping[str, float]
    ) -> None:
        """The first line; `arms` are those beside the control."""
        self.path.parent.mkdir(exist_ok=True)
        sets = {CONTROL: {}, **{name: dict(arm) for name, arm in arms.items()}}
        self._write(kind="begin", step=step, steps=steps, arms=sets, tunables=dict(tunables))

    def step(self, arm: str, t: int, stepped: Stepped) -> None:
        """Step `t` of an arm, from 1."""
        report = stepped.report
        rollouts = report.rollouts
        self._write(
            kind="step",
            arm=arm,
            t=t,
            step=report.step,
            prompts=[[*scored.item, scored.passed, len(scored.verdicts)] for scored in stepped.batch],
            device_seconds=sum(report.device_seconds.values()),
            truncated=rollouts.truncated / len(rollouts.lengths),
            grad_norm=report.grad_norm,
            mismatch_kl=report.mismatch_kl,
            clipped_ratio=report.clipped_ratio,
            skipped=report.skipped,
        )

    def stopped(self, arm: str) -> None:
        """It was given up."""
        self._write(kind="stopped", arm=arm)

    def waiting(self) -> None:
        """All arms have ended."""
        self._write(kind="waiting")

    def end(self, outcome: str, reason: str, kept: tuple[str, ...] = ()) -> float:
        """The last line. `outcome` is the arm that the run goes on with, `kept` those whose steps are part of the run; returns
        the device-seconds of all others."""
        spent = self.spent()
        lost = sum(seconds for arm, seconds in spent.items() if arm not in kept)
        self._write(kind="end", outcome=outcome, reason=reason, device_seconds=spent, device_seconds_not_kept=lost)
        return lost

    def spent(self) -> dict[str, float]:
        """Device-seconds of each arm so far."""
        spent: dict[str, float] = {}
        for line in read_lines(self.path):
            if line["kind"] == "begin":
                spent = dict.fromkeys(line["arms"], 0.0)
            elif line["kind"] == "step":
                spent[line["arm"]] += line["device_seconds"]
        return spent

    @property
    def kinds(self) -> list[str]:
        """Of its lines; empty where there is no record."""
        return [line["kind"] for line in read_lines(self.path)]

    def mend(self) -> None:
        """Cut off a line that a crash has left half-written, so that the next one is whole."""
        data = self.path.read_bytes()
        os.truncate(self.path, data.rfind(b"\n") + 1)

    def _write(self, **fields: Any) -> None:
        append_line(self.path, {key: finite(value) for key, value in fields.items()} | {"time": time.time()})


def close_left_open(probes: Path, reason: str) -> list[str]:
    """End every probe that a crash has left open; the names of those. The run went on, or goes on, without it."""
    closed = []
    for path in sorted(probes.glob("*.jsonl")):
        record = Record(path)
        record.mend()
        if "end" not in record.kinds:
            record.end(CONTROL, reason)
            closed.append(path.stem)
    return closed
