"""From a run directory to a curve: evaluations of the weights in force against the chosen axis."""

from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from controlplane.contract.rundir import RunDir
from controlplane.digest import facts
from controlplane.record import Record
from controlplane.study.compare import Run
from controlplane.study.fits import Curve, FittedCurve, Grid

Axis = Literal["device-seconds", "gpu-hours", "completions", "steps"]
AXES: tuple[Axis, ...] = ("device-seconds", "gpu-hours", "completions", "steps")


def finished(root: Path) -> bool:
    """Whether the run there came to its planned end."""
    return RunDir(root).info.exists() and facts.finished(Record.of(root))


def read_curve(root: Path, axis: Axis) -> Curve:
    """The first held-out set of a run.

    Raises:
        ValueError: no evaluation at the start (R_0), or none after it.
    """
    record = Record.of(root)
    rows = facts.in_force(record, facts.heldout(record))
    start = [row for row in rows if row["step"] == 0]
    later = [row for row in rows if row["step"] > 0]
    if not start or not later:
        raise ValueError(f"{root}: a fit needs an evaluation at step 0, which is R_0, and some after it")
    drawn = _completions(record)
    return Curve(
        compute=tuple(_place(row, axis, drawn) for row in later),
        pass_rate=tuple(float(row["pass_ratio"]) for row in later),
        r0=float(start[0]["pass_ratio"]),
        samples=int(later[0]["prompts"]) * int(later[0]["k"]),
    )


def read_run(root: Path, seed: int, curve: Curve, end: float, grid: Grid) -> Run:
    """A finished run with its curve, and what it took."""
    record = Record.of(root)
    steps = facts.in_force(record, record.steps)
    seconds = sum(sum(row["phase_seconds"].values()) for row in record.steps)
    return Run(
        seed=seed,
        fitted=FittedCurve(curve, end, grid),
        final=curve.pass_rate[-1],
        steps=int(steps[-1]["step"]),
        completions=sum(int(row["n"]) for row in steps),
        device_seconds=float(steps[-1]["compute"]),
        minutes=seconds / 60.0,
    )


def _place(row: dict[str, Any], axis: Axis, drawn: dict[int, int]) -> float:
    if axis == "steps":
        return float(row["step"])
    if axis == "completions":
        return float(drawn[row["step"]])
    return float(row["compute"]) / (3600.0 if axis == "gpu-hours" else 1.0)


def _completions(record: Record) -> dict[int, int]:
    """Completions trained on up to each step, along the lineage."""
    steps = facts.in_force(record, record.steps)
    return dict(zip((row["step"] for row in steps), accumulate(int(row["n"]) for row in steps), strict=True))
