"""Readers of recorded runs: CSV, JSON Lines, HF `trainer_state.json`, and our own run directories."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from controlplane.contract.rundir import RunDir, read_lines
from controlplane.contract.yamlfile import FileError
from controlplane.recorded.columns import COMPUTE, PROPORTIONS, SIGNALS, STEP, find, granularity, plain, to_unit
from controlplane.recorded.table import Column, Table

Rows = list[dict[str, float]]
READS = "a CSV file, a JSON Lines file, trainer_state.json or a run directory"
_HELPERS = frozenset({"mixed", "truncated_count", "n"})


def read_run(path: Path, columns: Mapping[str, str] | None = None, bounds: tuple[float, float] | None = None) -> Table:
    """The run recorded in a file or a run directory.

    Args:
        path: CSV (or TSV), JSON Lines, a JSON list of objects, HF `trainer_state.json`, or a run directory of ours.
        columns: signal -> column name, where the caller knows better than the guess; `compute` -> what was spent.
        bounds: range of the reward that is mapped to [0, 1], if it is not seen from the values.

    Raises:
        FileError: it cannot be read, has no rows, or a named column is not in it.
    """
    rows = _rows(path)
    if not rows:
        raise FileError(f"{path}: has no rows with numbers")
    name = path.name if path.is_dir() else path.stem if path.stem != "trainer_state" else path.parent.name or path.stem
    return make(name, rows, str(path), columns or {}, bounds)


def make(
    name: str,
    rows: Rows,
    place: str,
    chosen: Mapping[str, str] | None = None,
    bounds: tuple[float, float] | None = None,
) -> Table:
    """A table from rows of numbers with the source's own column names; `place` stands in error messages."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    raw = {key: np.array([row.get(key, math.nan) for row in rows]) for key in names}
    notes: list[str] = []
    step = _steps(raw, len(rows), notes)
    chosen = dict(chosen or {})
    spent = chosen.pop("compute", None)
    if spent is not None and spent not in raw:
        raise FileError(f"{place}: has no column {spent!r}; it has {', '.join(names)}")
    found = _found(names, chosen, place)
    columns = {signal: raw[key] for signal, key in found.items() if signal not in _HELPERS}
    samples = _samples(raw, found, notes)
    _derive(columns, raw, found, samples, notes)
    broken = [raw_key for signal in ("loss", "grad_norm") if (raw_key := found.get(signal))]
    gone = np.array([any(key in row and not math.isfinite(row[key]) for key in broken) for row in rows], dtype=float)
    columns["nonfinite"] = np.fmax(gone, columns.get("nonfinite", gone))
    for signal, key in found.items():
        if signal not in columns:
            continue
        note = f"{signal}: column {key}"
        if signal in ("pass_rate", "eval_pass_rate"):
            columns[signal], (low, high) = _mapped(columns[signal], bounds if signal == "pass_rate" else None)
            note += "" if (low, high) == (0, 1) else f", mapped from {low:g} to {high:g} onto 0 to 1"
        elif signal in PROPORTIONS and np.nanmax(columns[signal], initial=0.0) > 1.0:
            columns[signal], note = columns[signal] / 100.0, note + ", taken as percent"
        if plain(key) != signal:
            notes.append(note)
    backwards = np.diff(step, prepend=step[:1]) < 0
    if backwards.any():
        notes.append(f"the step falls back {int(backwards.sum())} times: the run was started again or resumed there")
    compute, unit = (raw[spent], spent) if spent is not None else _compute(raw, step)
    if unit != "steps":
        notes.append(f"compute: {unit}")
    return Table(name, step, np.cumsum(backwards), columns, compute, unit, samples, tuple(notes))


def _rows(path: Path) -> Rows:
    try:
        if path.is_dir():
            return _directory(path)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"{path}: cannot be read ({reason}); give {READS}") from None
    if path.suffix in (".csv", ".tsv"):
        return _csv(text, "\t" if path.suffix == ".tsv" else ",")
    try:
        if path.suffix == ".json":
            return _json(json.loads(text), path)
        return [_numbers(json.loads(line)) for line in text.splitlines() if line.strip()]
    except (ValueError, TypeError, AttributeError) as error:
        raise FileError(f"{path}: is not {READS} ({error})") from None


def _csv(text: str, delimiter: str) -> Rows:
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter)
    # Weights & Biases writes the smallest and largest value of each bucket beside it.
    return [
        numbers
        for row in reader
        if (numbers := _numbers({k: v for k, v in row.items() if k and not k.endswith(("__MIN", "__MAX"))}))
    ]


def _json(document: Any, path: Path) -> Rows:
    history = document.get("log_history") if isinstance(document, dict) else document
    if not isinstance(history, list):
        raise FileError(f"{path}: has no log_history; give {READS}")
    return _by_step([_numbers(row) for row in history if isinstance(row, dict)])


def _directory(path: Path) -> Rows:
    rundir = RunDir(path)
    if (path / "trainer_state.json").exists():
        return _rows(path / "trainer_state.json")
    if not rundir.steps.exists():
        raise FileError(f"{path}: holds neither steps.jsonl nor trainer_state.json; give {READS}")
    steps = [_own(line) for line in read_lines(rundir.steps)]
    evals: dict[tuple[float, float], dict[str, float]] = {}
    for line in read_lines(rundir.evals):
        if line.get("pass_ratio") is not None:
            key = (float(line["branch"]), float(line["step"]))
            evals.setdefault(key, {"eval_pass_ratio": float(line["pass_ratio"]), "compute": float(line["compute"])})
    for row in steps:
        # An evaluation counts with the device time of its weights, which is that of the step it follows.
        found = evals.pop((row.get("branch", 0.0), row["step"]), None)
        row.update(found or {})
    first = [{"step": step, "branch": branch, **row} for (branch, step), row in evals.items() if step == 0]
    return [*first, *steps]


def _own(line: Mapping[str, Any]) -> dict[str, float]:
    row = _numbers(line)
    if line.get("skipped") == "nonfinite":
        row["nonfinite"] = 1.0
    return row


def _by_step(rows: Rows) -> Rows:
    """Neighbouring rows of one step become one: HF Trainer logs training and evaluation apart."""
    merged: Rows = []
    for row in rows:
        if merged and row.get("step") is not None and row.get("step") == merged[-1].get("step"):
            merged[-1] = {**row, **merged[-1]}
        elif row:
            merged.append(dict(row))
    return merged


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What of a row is a number; nested objects as "a/b". An infinite value stays, because it is evidence."""
    found: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{inner}": number for inner, number in _numbers(value).items()}
            continue
        try:
            found[key] = float(value)
        except (TypeError, ValueError):
            continue
    return found


def _steps(raw: Mapping[str, Column], rows: int, notes: list[str]) -> Column:
    key = next((name for wanted in STEP for name in raw if name.lower() == wanted), None)
    if key is None or not np.isfinite(raw[key]).all():
        notes.append("step: no column, rows are counted")
        return np.arange(1.0, rows + 1)
    if key != "step":
        notes.append(f"step: column {key}")
    return raw[key]


def _found(names: list[str], chosen: Mapping[str, str], place: str) -> dict[str, str]:
    for signal, name in chosen.items():
        if signal not in SIGNALS:
            raise FileError(f"{place}: there is no signal {signal!r}; there are {', '.join(SIGNALS)}")
        if name not in names:
            raise FileError(f"{place}: has no column {name!r}; it has {', '.join(names)}")
    guessed = {signal: find(signal, names) for signal in SIGNALS}
    return {signal: name for signal, name in (guessed | dict(chosen)).items() if name is not None}


def _mapped(values: Column, bounds: tuple[float, float] | None) -> tuple[Column, tuple[float, float]]:
    if bounds is None:
        return to_unit(values)
    low, high = bounds
    return np.clip((values - low) / (high - low), 0.0, 1.0), bounds


def _samples(raw: Mapping[str, Column], found: Mapping[str, str], notes: list[str]) -> float | None:
    """Completions per row: logged, or the grain of the pass rate."""
    if "n" in found and (logged := raw[found["n"]][np.isfinite(raw[found["n"]])]).size:
        return float(np.median(logged))
    for signal in ("pass_rate", "truncation"):
        values = raw[found[signal]] if signal in found else np.zeros(0)
        # A return of hundreds has the grain of its print, not of its samples.
        grain = granularity(to_unit(values)[0]) if np.nanmax(np.abs(values), initial=0.0) <= 2 else None
        if grain is not None:
            notes.append(f"samples per row: {grain}, the grain of {found[signal]}")
            return float(grain)
    return None


def _derive(
    columns: dict[str, Column],
    raw: Mapping[str, Column],
    found: dict[str, str],
    samples: float | None,
    notes: list[str],
) -> None:
    """Signals that are logged only in another form."""
    if "zero_variance" not in columns and "mixed" in found:
        columns["zero_variance"] = 1.0 - raw[found["mixed"]]
        notes.append(f"zero_variance: 1 - {found['mixed']}")
    if "truncated_count" in found and samples and ("truncation" not in columns or _sparser(columns, raw, found)):
        columns["truncation"] = np.clip(raw[found["truncated_count"]] / samples, 0.0, 1.0)
        found.pop("truncation", None)
        notes.append(f"truncation: {found['truncated_count']} / {samples:g} samples")


def _sparser(columns: Mapping[str, Column], raw: Mapping[str, Column], found: Mapping[str, str]) -> bool:
    return bool(np.isfinite(columns["truncation"]).sum() < np.isfinite(raw[found["truncated_count"]]).sum())


def _compute(raw: Mapping[str, Column], step: Column) -> tuple[Column, str]:
    by_name = {plain(name): column for name, column in reversed(list(raw.items()))}
    for key, each_row, unit in COMPUTE:
        column = by_name.get(key)
        if column is None or not np.isfinite(column).all():
            continue
        spent = _accumulated(column, step) if each_row else column
        falls = (np.diff(spent) < 0) & (np.diff(step) > 0)
        if not falls.any() and spent[-1] > spent[0]:
            return spent, unit
    return step, "steps"


def _accumulated(share: Column, step: Column) -> Column:
    """Running sum along the lineage: after a fall to an earlier step it goes on from what that step had cost."""
    spent = np.zeros(len(share))
    behind: list[tuple[float, float]] = []
    for row, (amount, at) in enumerate(zip(share, step, strict=True)):
        while behind and behind[-1][0] >= at:
            behind.pop()
        spent[row] = (behind[-1][1] if behind else 0.0) + amount
        behind.append((float(at), float(spent[row])))
    return spent
