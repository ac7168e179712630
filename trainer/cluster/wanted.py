"""How many generators people want: a number in the run directory, written by `scalerl generators`, read by the driver.

It counts only if it was written by the user that the run belongs to; others have no say in what a run costs.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from controlplane.contract.rundir import RunDir, write_atomic
from controlplane.contract.yamlfile import FileError, load
from trainer.cluster.settings import Generators
from trainer.recipe import Recipe


def file_of(rundir: RunDir) -> Path:
    """Where the number lies."""
    return rundir.control / "generators"


def wanted(rundir: RunDir, bounds: Generators) -> int:
    """The number that was asked for; `max` as long as nobody has asked, or where the file holds no number or is not ours."""
    file = file_of(rundir)
    try:
        return int(file.read_text()) if file.stat().st_uid == os.getuid() else bounds.max
    except (OSError, ValueError):
        return bounds.max


def generators(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    number: Annotated[
        int | None, typer.Argument(metavar="[N]", help="Generators from now on; without it, show.", show_default=False)
    ] = None,
) -> None:
    """Show or change how many generators a run on a cluster uses, within cluster.generators.min and max of its recipe.

    The run follows within a second: more are started as soon as Ray has devices for them; fewer finish what they have.
    """
    rundir = RunDir(run)
    if not rundir.recipe.exists():
        typer.echo(f"{run}: no run has started here", err=True)
        raise typer.Exit(2)
    try:
        bounds = load(rundir.recipe, Recipe).cluster.generators
    except FileError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    if number is not None and not bounds.min <= number <= bounds.max:
        typer.echo(
            f"{number} is outside cluster.generators of the run's recipe: {bounds.min} to {bounds.max}", err=True
        )
        raise typer.Exit(2)
    if number is not None:
        write_atomic(file_of(rundir), f"{number}\n")
    typer.echo(f"{wanted(rundir, bounds)} generators wanted ({bounds.min} to {bounds.max})")
