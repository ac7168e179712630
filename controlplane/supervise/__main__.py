"""`python -m controlplane.supervise`: the command alone, where only pydantic and typer are installed."""

import logging
import sys

import typer

from controlplane.contract.yamlfile import FileError
from controlplane.supervise.command import supervise

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(supervise)
try:
    app()
except FileError as error:
    typer.echo(str(error), err=True)
    sys.exit(2)
