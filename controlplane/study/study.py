"""`scalerl loo` and `scalerl repeat` from end to end: runs, curves, fits, and the files that stay.

OUT/
  VARIANT-seedN/      a run directory each, like any other: `scalerl report` and `scalerl watch` read them
  table.md            the table and how to read it
  results.json        everything in it and every point, as numbers
  curves.png .svg     every curve with its fit        linear.png .svg    the same as straight lines
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console

from controlplane.contract.rundir import write_atomic
from controlplane.study import plots, table
from controlplane.study.compare import Arm, Comparison, compare
from controlplane.study.curves import Axis, read_curve, read_run
from controlplane.study.fits import Curve
from controlplane.study.options import Options
from controlplane.study.progress import Progress
from controlplane.study.repeat import Repeats, repeats
from controlplane.study.runs import Job, Status, interruptible, run_jobs, trainer_command
from controlplane.study.spec import Study, Variant, flat


def leave_one_out(study: Study, options: Options, console: Console) -> int:
    """Run, compare and write down a study; exit code."""
    statuses = _run(study, options, console)
    if statuses is None:
        return 130
    arms = _arms(study, options, statuses)
    found = compare(arms, study.reference, options.margin)
    r0 = [run.fitted.curve.r0 for arm in arms for run in arm.runs]
    if r0:
        text = table.comparison(found)
        notes = table.comparison_notes(found, options.axis, options.grid, r0)
        free, linear = panels(found, arms)
        drawn = plots.draw(free, linear, _place(found, study.reference), _axis_words(options.axis), options.out)
        _write(options, console, study.title, text, notes, _results(study, options, arms, asdict(found)), drawn)
    return _verdict(statuses, bool(r0), console)


def repeat(study: Study, options: Options, console: Console) -> int:
    """Run one recipe with several seeds and write down how far the fits move; exit code."""
    statuses = _run(study, options, console)
    if statuses is None:
        return 130
    arms = _arms(study, options, statuses)
    try:
        found = repeats(arms[0].runs)
    except ValueError as error:
        console.print(f"no table: {error}", markup=False, highlight=False)
        for failure in arms[0].failures:
            console.print(failure, markup=False, highlight=False)
        return 1
    notes = table.repeat_notes(found, options.axis, options.grid) + list(arms[0].failures)
    free, linear = _seed_panels(found)
    drawn = plots.draw(free, linear, 0, _axis_words(options.axis), options.out)
    results = _results(study, options, arms, _spreads(found))
    _write(options, console, study.title, table.repeat_table(found), notes, results, drawn)
    return _verdict(statuses, True, console)


def settings_of(study: Study, variant: Variant, options: Options, seed: int) -> dict[str, str]:
    """Every `--set` of one run. Stronger ones later: the study's, the variant's, the user's; name and seed are ours."""
    ours = study.settings if options.recipe == study.recipe else {}
    settings = dict(flat(ours)) | dict(flat(variant.set)) | dict(options.overrides)
    return settings | {"name": f"{study.name}-{variant.name}-seed{seed}", "seed": str(seed)}


def _run(study: Study, options: Options, console: Console) -> list[Status] | None:
    """All runs; None when a person stopped them."""
    jobs = [_job(study, variant, options, seed) for seed in options.seeds for variant in study.variants]
    stop = threading.Event()
    progress = Progress(console)
    with interruptible(stop), progress.shown():
        statuses = run_jobs(jobs, options.at_once, stop, progress)
    if stop.is_set():
        console.print(f"Stopped. The same command goes on where it was; the runs are in {options.out}", markup=False)
        return None
    return statuses


def _job(study: Study, variant: Variant, options: Options, seed: int) -> Job:
    root = _root(options, variant, seed)
    return Job(root.name, root, trainer_command(options.recipe, root, settings_of(study, variant, options, seed)))


def _root(options: Options, variant: Variant, seed: int) -> Path:
    return options.out / f"{variant.name}-seed{seed}"


def _arms(study: Study, options: Options, statuses: Sequence[Status]) -> list[Arm]:
    """Finished runs with their curves. The longest curve of the study sets every grid."""
    by_root = {status.job.root: status for status in statuses}
    curves: dict[Path, Curve] = {}
    failures: dict[Path, str] = {}
    for root, status in by_root.items():
        if status.state != "done":
            failures[root] = f"{root.name} {status.state}" + (f": {status.reason}" if status.reason else "")
            continue
        try:
            curves[root] = read_curve(root, options.axis)
        except ValueError as error:
            failures[root] = str(error)
    end = max((curve.end for curve in curves.values()), default=0.0)
    arms = []
    for variant in study.variants:
        roots = {_root(options, variant, seed): seed for seed in options.seeds}
        runs = [read_run(r, seed, curves[r], end, options.grid) for r, seed in roots.items() if r in curves]
        lost = tuple(failures[r] for r in roots if r in failures)
        arms.append(Arm(variant.name, variant.title, tuple(runs), lost, variant.paper.model_dump()))
    return arms


def _place(found: Comparison, name: str) -> int:
    return next((i for i, row in enumerate(r for r in found.rows if r.runs) if row.name == name), 0)


def panels(found: Comparison, arms: Sequence[Arm]) -> tuple[list[plots.Panel], list[plots.Panel]]:
    """Curves with their free fits, and with the fits at the common A, in the order of the table."""
    by_name = {arm.name: arm for arm in arms}
    free, common = [], []
    for row in found.rows:
        runs = by_name[row.name].runs
        if runs:
            fitted = [run.fitted for run in runs]
            free.append(plots.Panel(row.title, [(f.curve, f.free if row.A is not None else None) for f in fitted]))
            at = found.common_A if row.B_common is not None else None
            fits = [f.at(at) if at is not None else f.free if row.A is not None else None for f in fitted]
            common.append(plots.Panel(row.title, list(zip((f.curve for f in fitted), fits, strict=True))))
    return free, common


def _seed_panels(found: Repeats) -> tuple[list[plots.Panel], list[plots.Panel]]:
    free = [plots.Panel(f"seed {r.run.seed}", [(r.run.fitted.curve, r.free)]) for r in found.rows]
    return free, [plots.Panel(f"seed {r.run.seed}", [(r.run.fitted.curve, r.common)]) for r in found.rows]


def _axis_words(axis: Axis) -> str:
    return f"compute, {axis}" if axis in ("device-seconds", "gpu-hours") else axis


def _results(study: Study, options: Options, arms: Sequence[Arm], found: dict[str, Any]) -> dict[str, Any]:
    """Everything a reader of the table may want to compute again."""
    return {
        "study": study.name,
        "recipe": options.recipe,
        "axis": options.axis,
        "grid": asdict(options.grid),
        "found": found,
        "runs": [
            {
                "variant": arm.name,
                "directory": f"{arm.name}-seed{run.seed}",
                "settings": settings_of(study, variant, options, run.seed),
                "r0": run.fitted.curve.r0,
                "compute": run.fitted.curve.compute,
                "pass_rate": run.fitted.curve.pass_rate,
                "samples": run.fitted.curve.samples,
                "steps": run.steps,
                "completions": run.completions,
                "device_seconds": run.device_seconds,
                "minutes": run.minutes,
            }
            for arm, variant in zip(arms, study.variants, strict=True)
            for run in arm.runs
        ],
    }


def _spreads(found: Repeats) -> dict[str, Any]:
    names = ("A", "B", "C_mid", "B_common", "C_mid_common", "final")
    rows = [
        {"seed": r.run.seed, "free": r.free._asdict(), "common": r.common._asdict(), "A": asdict(r.A_interval),
         "B": asdict(r.B_interval), "edges": r.edges, "final": r.run.final}
        for r in found.rows
    ]  # fmt: skip
    return {"spread": {name: asdict(getattr(found, name)) for name in names}, "seeds": rows}


def _write(
    options: Options,
    console: Console,
    title: str,
    text: str,
    notes: Sequence[str],
    results: dict[str, Any],
    drawn: Sequence[Path],
) -> None:
    paper = "\n".join(f"- {note}" for note in notes)
    write_atomic(options.out / "table.md", f"# {title}\n\nRecipe: {options.recipe}.\n\n{text}\n\n{paper}\n")
    write_atomic(options.out / "results.json", json.dumps(plain(results), indent=1) + "\n")
    console.print()
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print()
    for note in notes:
        console.print(f"- {note}", markup=False, highlight=False)
    console.print()
    for path in (options.out / "table.md", options.out / "results.json", *drawn):
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def plain(value: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def _verdict(statuses: Sequence[Status], table_written: bool, console: Console) -> int:
    wrong = [status for status in statuses if status.state != "done"]
    for status in wrong:
        reason = status.reason or "it ended before its last step; the same command goes on"
        console.print(f"{status.job.name}: {status.state}, {reason}", markup=False, highlight=False, soft_wrap=True)
    return 1 if wrong or not table_written else 0


def repeated(recipe: str) -> Study:
    """The study of `scalerl repeat`: one recipe as it is."""
    only = Variant(name="run", title=recipe, source="as it is", set={})
    return Study(name="repeat", title=f"Repeats of {recipe}", reference="run", recipe=recipe, variants=(only,))
