"""`scalerl data`: prepare prompts for a run."""

from pathlib import Path
from typing import Annotated

import typer

from controlplane.contract.yamlfile import FileError
from trainer.data.unit_tests import DataError

app = typer.Typer(help="Prepare prompts for a run.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def data() -> None:
    """Prepare prompts for a run."""


@app.command()
def prepare(
    spec: Annotated[Path, typer.Argument(help="YAML file that says what to read, check, remove and split.")],
) -> None:
    """Turn files of prompts into training, validation and test sets, and say what was left out and why.

    Checks format and length, removes duplicates, near duplicates, evaluation items and trivial prompts, splits by
    difficulty. Same input, same bytes. The directory named in the spec appears whole or not at all; report.md in it is
    for you to read.
    """
    from trainer.data.prepare.run import prepare as run  # late: scipy is slow to import

    try:
        output = run(spec, lambda line: typer.echo(line, err=True))
    except (FileError, DataError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    typer.echo(str(output / "report.md"))
