"""One curve of pass rate against compute from a file, a run directory or a Prometheus server, with what was guessed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from controlplane.contract.rundir import RunDir
from controlplane.contract.yamlfile import FileError
from controlplane.forecast.law import Array
from controlplane.recorded import Table, read_run
from controlplane.study.curves import read_curve

HELD_OUT, TRAINING = "eval_pass_rate", "pass_rate"


@dataclass(frozen=True, eq=False)
class Given:
    """`compute` (not decreasing) in `unit` and `rate` in [0, 1], shape (n,) each; `notes` say what was guessed or left out."""

    name: str
    compute: Array
    rate: Array
    unit: str
    samples: float | None = None
    notes: tuple[str, ...] = ()

    def upto(self, compute: float) -> "Given":
        """Only the points at or before `compute`."""
        kept = self.compute <= compute
        return replace(self, compute=self.compute[kept], rate=self.rate[kept])


def read_given(
    path: Path,
    *,
    pass_rate: str | None = None,
    compute: str | None = None,
    bounds: tuple[float, float] | None = None,
    samples: float | None = None,
) -> Given:
    """The curve in `path`: CSV, TSV, JSON Lines, JSON, `trainer_state.json`, or a run directory.

    A held-out pass rate is preferred to that of the training batches. `pass_rate`, `compute`: columns to take instead of
    the guess; `bounds`: the range that is mapped to [0, 1]; `samples`: effective number of outcomes behind each point.

    Raises:
        FileError: it cannot be read, has no pass rate, or one outside [0, 1].
    """
    if path.is_dir() and RunDir(path).evals.exists() and not (pass_rate or compute):
        return _own(path)
    table = read_run(path, _columns(pass_rate, compute), bounds).lineage()
    signal = TRAINING if pass_rate or not table.known(HELD_OUT) else HELD_OUT
    if not table.known(signal):
        raise FileError(f"{path}: no column looks like a pass rate; name it with --pass-rate")
    found = _checked(table, signal, str(path))
    guessed = tuple(note for note in table.notes if note.startswith((signal, "compute", "step")))
    if signal == TRAINING and not pass_rate:
        guessed += ("no column says that it is held out; a curve of training batches may end elsewhere",)
    return replace(found, samples=samples, notes=guessed + found.notes)


def given(name: str, compute: Array, rate: Array, unit: str, notes: tuple[str, ...] = ()) -> Given:
    """A checked curve: points without a number are left out, and said so.

    Raises:
        FileError: nothing is left, compute decreases or is negative, or a rate lies outside [0, 1].
    """
    finite = np.isfinite(compute) & np.isfinite(rate)
    if not finite.all():
        notes = (*notes, f"{int((~finite).sum())} of {len(finite)} points have no number and are left out")
    compute, rate = compute[finite], rate[finite]
    if len(compute) == 0:
        raise FileError(f"{name}: no point has both compute and pass rate")
    for bad, what in (
        (compute < 0.0, "compute is below 0"),
        (np.diff(compute, prepend=compute[0]) < 0.0, "compute decreases"),
        ((rate < 0.0) | (rate > 1.0), "the pass rate is outside 0 to 1; give its range with --bounds"),
    ):
        if bad.any():
            at = int(np.argmax(bad))
            raise FileError(f"{name}: point {at + 1} (compute {compute[at]:g}, pass rate {rate[at]:g}): {what}")
    return Given(name, compute, rate, unit, notes=notes)


def _columns(pass_rate: str | None, compute: str | None) -> Mapping[str, str]:
    named = {TRAINING: pass_rate, "compute": compute}
    return {signal: column for signal, column in named.items() if column}


def _checked(table: Table, signal: str, place: str) -> Given:
    column = table.columns[signal]
    logged = np.isfinite(column)  # rows of other signals are no missing points
    found = given(place, table.compute[logged], column[logged], table.compute_unit)
    return replace(found, name=table.name)


def _own(path: Path) -> Given:
    curve = read_curve(path, "device-seconds")
    compute, rate = np.array([0.0, *curve.compute]), np.array([curve.r0, *curve.pass_rate])
    return replace(given(path.name, compute, rate, "device-seconds"), samples=float(curve.samples))
