"""The commands `scalerl loo` and `scalerl repeat`. Light on purpose: what they need is loaded when they run."""

from pathlib import Path
from typing import Annotated

import typer

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe in every run, dotted. Repeatable."),
]
StepsOption = Annotated[int, typer.Option(min=0, help="Optimizer steps of every run; 0 leaves study or recipe as is.")]
JobsOption = Annotated[int, typer.Option(min=1, help="Runs at a time; each takes the threads its recipe says.")]
AxisOption = Annotated[str, typer.Option(help="Compute: device-seconds, gpu-hours, completions or steps.")]
DropOption = Annotated[
    float, typer.Option(min=0, max=0.9, help="Drop evaluations before this share of the longest run from the fits.")
]
PaperGridOption = Annotated[
    bool, typer.Option("--paper-grid", help="The paper's own grid and its cut at 1,500; the axis is GPU-hours then.")
]


def loo(
    study: Annotated[str, typer.Option(help="Shipped study (loo, prevalent) or a file of variants.")] = "loo",
    recipe: Annotated[str, typer.Option(help="Recipe under all variants; empty takes the study's own.")] = "",
    steps: StepsOption = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every variant, with seeds 1, 2, ...")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for runs and results; default runs/STUDY.")] = None,
    variants: Annotated[str, typer.Option(help="Only these, comma-separated; the reference is always run.")] = "",
    override: SetOption = None,
    jobs: JobsOption = 1,
    axis: AxisOption = "device-seconds",
    drop: DropOption = 0.0,
    paper_grid: PaperGridOption = False,
    margin: Annotated[float, typer.Option(min=0, help="How far two A may lie apart and count as equal.")] = 0.02,
) -> None:
    """Leave-one-out: ScaleRL and each variant with one axis set back, every curve fitted, the table of the paper.

    `--study prevalent` compares GRPO, DAPO, Magistral, MiniMax and ScaleRL in the same way. Ctrl-C stops cleanly; the
    same command goes on, and finished runs are kept. Exit code 1 if a run failed: the table then has the others.
    """
    from rich.console import Console

    from controlplane.study.options import options_of
    from controlplane.study.spec import load_study
    from controlplane.study.study import leave_one_out

    chosen = load_study(study).only(variants)
    place = out or Path("runs") / chosen.name
    options = options_of(place, recipe or chosen.recipe, override, steps, seeds, jobs, axis, drop, paper_grid, margin)
    raise typer.Exit(leave_one_out(chosen, options, Console()))


def repeat(
    recipe: Annotated[str, typer.Option(help="The recipe to repeat.")] = "tiny",
    seeds: Annotated[int, typer.Option(min=2, help="Runs, with seeds 1, 2, ...")] = 3,
    steps: StepsOption = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for runs and results; default runs/repeat.")] = None,
    override: SetOption = None,
    jobs: JobsOption = 1,
    axis: AxisOption = "device-seconds",
    drop: DropOption = 0.0,
    paper_grid: PaperGridOption = False,
) -> None:
    """The same recipe with several seeds: how far A, B and C_mid move by themselves, and so which margin on A holds.

    Ctrl-C stops cleanly; the same command goes on, and finished runs are kept.
    """
    from rich.console import Console

    from controlplane.study.options import options_of
    from controlplane.study.study import repeat as run
    from controlplane.study.study import repeated

    place = out or Path("runs") / "repeat"
    options = options_of(place, recipe, override, steps, seeds, jobs, axis, drop, paper_grid, 0.02)
    raise typer.Exit(run(repeated(recipe), options, Console()))
