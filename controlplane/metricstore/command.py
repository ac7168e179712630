"""`scalerl metrics`: what the built-in store holds of a run, and the way from it into a Prometheus."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from controlplane.contract.rundir import RunDir
from controlplane.contract.yamlfile import FileError
from controlplane.metricstore.openmetrics import openmetrics
from controlplane.metricstore.store import MetricStore, StoreError

app = typer.Typer(help="Metrics that the controller has recorded itself.", no_args_is_help=True, rich_markup_mode=None)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, as the trainer made it.")]


@app.command("show")
def show(run: RunArgument) -> None:
    """Say what is recorded of a run: time span, series, size on disk."""
    store = _open(run)
    span = store.span()
    typer.echo(f"{store.path}: {len(store.series())} series, {store.size / 1e6:.1f} MB")
    typer.echo(
        f"{(span[1] - span[0]) / 3600:.2f} hours, unix {span[0]:.0f} to {span[1]:.0f}" if span else "no scrape yet"
    )


@app.command("export")
def export(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(help="File to write; standard output without it.")] = None,
) -> None:
    """Write the recorded metrics as OpenMetrics text, for `promtool tsdb create-blocks-from openmetrics FILE DATA_FOLDER`."""
    store = _open(run)
    info = RunDir(run).info
    lines = openmetrics(store, RunDir(run).read_info().name if info.exists() else run.name)
    if out is None:
        sys.stdout.writelines(lines)
        return
    with out.open("w") as file:
        file.writelines(lines)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def _open(run: Path) -> MetricStore:
    try:
        return MetricStore(RunDir(run).metrics, read_only=True)
    except StoreError as error:
        raise FileError(str(error)) from None
