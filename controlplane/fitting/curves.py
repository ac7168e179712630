"""A folder of finished curves for a back-test, with or without an `index.json`.

index.json   a list of objects: name (NAME.csv beside it), family, metric (the column), lo, hi (range mapped to [0, 1])
without      every CSV, JSON Lines, JSON file and run directory in it; the family is the name up to the first "__", or the
             folder inside the folder
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from controlplane.contract.yamlfile import FileError
from controlplane.fitting.series import Given, read_given
from controlplane.forecast.backtest import Series
from controlplane.recorded import read_run

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")


def read_curves(folder: Path) -> tuple[list[Series], list[str]]:
    """Curves against their step (or compute, where that is logged), and a sentence for each that could not be used.

    Raises:
        FileError: there is no such folder, its index is not one, or nothing in it can be used.
    """
    if not folder.is_dir():
        raise FileError(f"{folder}: is not a folder of curves")
    index = folder / "index.json"
    found: list[Series] = []
    problems: list[str] = []
    for read in _indexed(folder, index) if index.exists() else _all(folder):
        try:
            found.append(read())
        except FileError as error:
            problems.append(str(error))
    if not found:
        raise FileError(f"{folder}: holds no curve that can be used" + (f"; {problems[0]}" if problems else ""))
    return found, problems


def _indexed(folder: Path, index: Path) -> "Iterator[_Reader]":
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{index}: cannot be read ({error})") from None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "name" in e for e in entries):
        raise FileError(f"{index}: must be a list of objects with name, family, metric, lo and hi")
    return (_Reader(folder, entry) for entry in entries)


class _Reader:
    """Reads one curve when called, so that a broken one can be told apart from the rest."""

    def __init__(self, folder: Path, entry: dict[str, Any]) -> None:
        self._folder, self._entry = folder, entry

    def __call__(self) -> Series:
        entry = self._entry
        name, path = str(entry["name"]), self._folder / f"{entry['name']}.csv"
        if "metric" not in entry:
            return _series(read_given(path), str(entry.get("family", name)))
        bounds = float(entry.get("lo", 0.0)), float(entry.get("hi", 1.0))
        table = read_run(path, {"pass_rate": str(entry["metric"])}, bounds)
        step, rate = table.step, table.columns["pass_rate"]
        kept = np.isfinite(rate) & (step >= 0)
        # Some logs repeat steps or write them out of order.
        order = np.argsort(step[kept], kind="stable")
        return Series(name, str(entry.get("family", name)), step[kept][order], np.clip(rate[kept][order], 0.0, 1.0))


class _File(_Reader):
    def __init__(self, path: Path, family: str) -> None:
        self._path, self._family = path, family

    def __call__(self) -> Series:
        return _series(read_given(self._path), self._family)


def _all(folder: Path) -> Iterator[_Reader]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / "run.json").exists():
            yield _File(path, path.name.partition("__")[0])
        elif path.is_dir():
            for inner in sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES or (p / "run.json").exists()):
                yield _File(inner, path.name)
        elif path.suffix in _SUFFIXES:
            yield _File(path, path.name.partition("__")[0])


def _series(curve: Given, family: str) -> Series:
    return Series(curve.name, family, curve.compute, curve.rate, curve.samples)
