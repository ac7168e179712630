"""`scalerl metrics`: what the built-in store holds of a run, and the way from it into a Prometheus."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from controlplane.contract.metrics import SAMPLES
from controlplane.contract.rundir import RunDir
from controlplane.contract.yamlfile import FileError
from controlplane.metricstore.openmetrics import openmetrics
from controlplane.metricstore.sketch import growth, sketch
from controlplane.metricstore.store import MetricStore, StoreError

app = typer.Typer(help="Metrics that the controller has recorded itself.", no_args_is_help=True, rich_markup_mode=None)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, as the trainer made it.")]


@app.command("show")
def show(
    run: RunArgument,
    metric: Annotated[str, typer.Argument(help="A metric name (scalerl metrics show RUN without it lists them).")] = "",
    hours: Annotated[float, typer.Option(min=0.01, help="How far back from the newest reading.")] = 24.0,
) -> None:
    """Say what is recorded of a run; or draw one metric over time, a line per series. Counters are drawn as growth per second."""
    store = _open(run)
    span = store.span()
    if span is None:
        raise FileError(f"{store.path} has no scrape yet")
    if not metric:
        typer.echo(
            f"{store.path}: {len(store.series())} series, {store.size / 1e6:.1f} MB, {(span[1] - span[0]) / 3600:.2f} hours"
        )
        typer.echo("\n".join(sorted({series.partition("{")[0] for series in store.series()})))
        return
    found = store.series(metric)
    if not found:
        raise FileError(f"{store.path}: no metric {metric!r}; `scalerl metrics show {run}` lists those that there are")
    for series in found:
        times, values = store.read(series, span[1] - 3600 * hours)
        if metric in SAMPLES and SAMPLES[metric].kind in ("counter", "histogram"):
            times, values = growth(times, values)
        typer.echo(f"{sketch(times, values)}  {series}")


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
