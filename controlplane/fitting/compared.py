"""`scalerl compare` from end to end: arms read, compared, written down."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from controlplane.contract.rundir import write_atomic
from controlplane.contract.yamlfile import FileError
from controlplane.fitting.compare import read_arms
from controlplane.fitting.forest import forest
from controlplane.study import plots, table
from controlplane.study.compare import Arm, Comparison, compare
from controlplane.study.curves import AXES, Axis
from controlplane.study.fits import PAPER, RELATIVE
from controlplane.study.study import panels, plain


def compared(
    words: Sequence[str],
    reference: str,
    margin: float,
    axis: str,
    drop: float,
    paper_grid: bool,
    samples: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Read, compare, print and, with `out`, write. FileError where what was given is wrong."""
    chosen = _axis(axis, paper_grid)
    grid = PAPER if paper_grid else replace(RELATIVE, cut=drop)
    arms, unit, guessed = read_arms(words, chosen, grid, samples)
    names = [arm.name for arm in arms]
    first = reference or names[0]
    if first not in names:
        raise FileError(f"--reference {first}: is none of {', '.join(names)}")
    if len(arms) < 2:
        raise FileError(f"compare: only one arm ({names[0]}); give at least two runs, or name them apart with NAME=RUN")
    found = compare(arms, first, margin)
    r0 = [run.fitted.curve.r0 for arm in arms for run in arm.runs]
    text, notes = table.comparison(found), [*table.comparison_notes(found, unit, grid, r0), *guessed]
    written = _write(out, found, arms, first, unit, text, notes) if out else []
    if as_json:
        print(json.dumps(plain(asdict(found)), indent=1))
        return
    console = Console()
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print()
    for note in notes:
        console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)
    for path in written:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def _axis(axis: str, paper_grid: bool) -> Axis:
    chosen = next((a for a in AXES if a == ("gpu-hours" if paper_grid else axis)), None)
    if chosen is None:
        raise FileError(f"--axis: must be one of {', '.join(AXES)}, not {axis!r}")
    return chosen


def _write(
    out: Path, found: Comparison, arms: Sequence[Arm], reference: str, unit: str, text: str, notes: Sequence[str]
) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    sheet, numbers = out / "table.md", out / "compare.json"
    listed = "\n".join(f"- {note}" for note in notes)
    write_atomic(sheet, f"# Comparison with {reference}\n\n{text}\n\n{listed}\n")
    write_atomic(numbers, json.dumps(plain(asdict(found)), indent=1) + "\n")
    free, common = panels(found, arms)
    place = next((i for i, row in enumerate(r for r in found.rows if r.runs) if row.name == reference), 0)
    drawn = plots.draw(free, common, place, f"compute, {unit}", out)
    return [sheet, numbers, *forest(found, out / "compare"), *drawn]
