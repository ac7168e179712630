"""Which of several recipes is better: the paper's rule on curves that are there already, with intervals.

Given are run directories, files, or the `results.json` that `scalerl loo` and `scalerl repeat` leave; runs of one arm are
averaged. `NAME=PATH` puts a run into the arm NAME; without a name a run is its own arm. What decides is `study.compare`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.contract.rundir import RunDir
from controlplane.contract.yamlfile import FileError
from controlplane.fitting.series import Given, read_given
from controlplane.study.compare import Arm, Run
from controlplane.study.curves import Axis, read_curve, read_run
from controlplane.study.fits import Curve, FittedCurve, Grid


@dataclass(frozen=True, eq=False)
class _Found:
    """A curve before the grid is known, which the longest of all curves decides."""

    arm: str
    curve: Curve
    unit: str
    root: Path | None = None
    extra: dict[str, Any] | None = None


def read_arms(words: Sequence[str], axis: Axis, grid: Grid, samples: int) -> tuple[list[Arm], str, list[str]]:
    """The arms in the order given, their unit of compute, and notes on what was guessed.

    `samples`: per evaluation, for files that do not say.

    Raises:
        FileError: something cannot be read, has no evaluation at compute 0, or the units of compute differ.
    """
    found: list[_Found] = []
    guessed: dict[str, list[str]] = {}
    for word in words:
        name, equals, rest = word.partition("=")
        arm, path = (name, Path(rest)) if equals and not Path(word).exists() else ("", Path(word))
        found += _read(arm, path, axis, samples, guessed)
    units = dict.fromkeys(f.unit for f in found)
    if len(units) > 1:
        raise FileError(
            f"compare: compute is in {' and in '.join(units)}; give runs with the same unit (--axis for ours)"
        )
    end = max(f.curve.end for f in found)
    arms: dict[str, list[Run]] = {}
    for one in found:
        runs = arms.setdefault(one.arm, [])
        runs.append(_run(one, len(runs) + 1, end, grid))
    notes = [f"{names[0] if len(names) == 1 else f'{len(names)} files'}: {note}" for note, names in guessed.items()]
    return [Arm(name, name, tuple(runs)) for name, runs in arms.items()], next(iter(units)), notes


def _read(arm: str, path: Path, axis: Axis, samples: int, guessed: dict[str, list[str]]) -> list[_Found]:
    if path.is_dir() and (path / "results.json").exists():
        path = path / "results.json"
    if path.name == "results.json":
        return _results(arm, path)
    if path.is_dir() and RunDir(path).evals.exists():
        try:
            return [_Found(arm or path.name, read_curve(path, axis), axis, root=path)]
        except ValueError as error:
            raise FileError(str(error)) from None
    given = read_given(path)
    for note in given.notes:
        guessed.setdefault(note, []).append(given.name)
    return [_Found(arm or given.name, _curve(given, samples), given.unit)]


def _results(arm: str, path: Path) -> list[_Found]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return [
            _Found(
                arm or row["variant"],
                Curve(tuple(row["compute"]), tuple(row["pass_rate"]), row["r0"], row["samples"]),
                document["axis"],
                extra=row,
            )
            for row in document["runs"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path}: is not what `scalerl loo` or `scalerl repeat` writes ({error})") from None


def _curve(given: Given, samples: int) -> Curve:
    start = given.compute <= 0.0
    if not start.any() or start.all():
        raise FileError(f"{given.name}: a comparison needs an evaluation at compute 0, which is R_0, and some after it")
    later = ~start
    return Curve(
        tuple(map(float, given.compute[later])), tuple(map(float, given.rate[later])), float(given.rate[start].mean()),
        int(given.samples or samples),
    )  # fmt: skip


def _run(one: _Found, seed: int, end: float, grid: Grid) -> Run:
    if one.root is not None:
        return read_run(one.root, seed, one.curve, end, grid)
    extra = one.extra or {}
    return Run(
        seed=seed,
        fitted=FittedCurve(one.curve, end, grid),
        final=one.curve.pass_rate[-1],
        steps=int(extra.get("steps", one.curve.end if one.unit == "steps" else 0)),
        completions=extra.get("completions", math.nan),
        device_seconds=float(extra.get("device_seconds", math.nan)),
        minutes=float(extra.get("minutes", math.nan)),
    )
