"""The commands `scalerl fit`, `scalerl compare` and `scalerl backtest`. What they need is loaded when they run."""

from pathlib import Path
from typing import Annotated

import typer


def fit(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILES...", help="CSV, JSON Lines, trainer_state.json, run directory, saved query_range."
        ),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Compute at which the run ends; default twice what is spent.")
    ] = None,
    at: Annotated[list[float] | None, typer.Option(help="Forecast there instead of at the budget; repeatable.")] = None,
    upto: Annotated[float | None, typer.Option(help="Fit only up to this compute and show what came after.")] = None,
    method: Annotated[
        str, typer.Option(help="posterior, scalerl, scalerl-relative, curve_fit, power_law or last_value.")
    ] = "posterior",
    target: Annotated[
        float | None, typer.Option(help="Pass rate wanted at the budget; the verdict is about it.")
    ] = None,
    least_gain: Annotated[float, typer.Option(help="Without a target: the gain the compute left must bring.")] = 0.01,
    price: Annotated[float | None, typer.Option(help="Price per unit of compute.")] = None,
    per_hour: Annotated[
        float | None, typer.Option(help="Compute per hour of wall time; gives the stages a date.")
    ] = None,
    change: Annotated[
        list[float] | None, typer.Option(help="Compute at which something was changed; repeatable.")
    ] = None,
    prior: Annotated[
        list[Path] | None, typer.Option(help="A finished run of the same recipe; repeatable. Same unit of compute.")
    ] = None,
    pass_rate: Annotated[str, typer.Option(help="Column of the pass rate, if the guess is wrong.")] = "",
    compute: Annotated[str, typer.Option(help="Column of the compute, if the guess is wrong.")] = "",
    bounds: Annotated[str, typer.Option(metavar="LOW,HIGH", help="Range of the reward that becomes 0 to 1.")] = "",
    samples: Annotated[float | None, typer.Option(help="Independent outcomes behind each point, if known.")] = None,
    prometheus: Annotated[str, typer.Option(metavar="URL", help="Read a run from this Prometheus server.")] = "",
    run: Annotated[str, typer.Option(help="With --prometheus: the run.")] = "",
    dataset: Annotated[str, typer.Option(help="With --prometheus: the held-out set.")] = "held_out",
    hours: Annotated[float, typer.Option(min=0.1, help="With --prometheus: how far back.")] = 168.0,
    out: Annotated[Path | None, typer.Option(help="Folder for forecast.png and forecast.svg.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Where will these runs end, how sure is that, and what is more compute worth?

    Says what it guessed about the columns. A refused forecast is a bound and says why.
    """
    import json
    import time
    from datetime import UTC, datetime

    from rich.console import Console

    from controlplane.contract.yamlfile import FileError
    from controlplane.fitting import fit as fitting
    from controlplane.fitting import prometheus as server
    from controlplane.fitting import words
    from controlplane.fitting.series import Given, read_given
    from controlplane.forecast import METHODS

    chosen = next((m for m in METHODS if m == method), None)
    if chosen is None:
        raise FileError(f"--method: must be one of {', '.join(METHODS)}, not {method!r}")
    if bool(prometheus) != bool(run):
        raise FileError("--prometheus and --run belong together: give the server and the name of the run")
    if not files and not prometheus:
        raise FileError("nothing to fit: give FILES, or --prometheus URL --run NAME")
    bound = _bounds(bounds)

    def read(path: Path) -> Given:
        return server.saved(path) or read_given(
            path, pass_rate=pass_rate or None, compute=compute or None, bounds=bound, samples=samples
        )

    curves = [read(path) for path in files or []]
    if prometheus:
        curves.append(server.query(prometheus, run, dataset, hours, time.time()))
    question = fitting.Question(
        budget, tuple(at or ()), upto, chosen, target, least_gain, price, per_hour, tuple(change or ())
    )
    try:
        finished = [read(path) for path in prior or []]
        if len(units := dict.fromkeys(one.unit for one in [*finished, *curves])) > 1 and finished:
            raise FileError(
                f"--prior: compute is in {' and in '.join(units)}; finished runs need the unit of the new one"
            )
        belief = fitting.prior_of(finished)
        fits = [fitting.fit(curve, question, belief) for curve in curves]
    except ValueError as error:
        raise FileError(str(error)) from None
    now = datetime.now(UTC) if per_hour else None
    drawn = []
    if out:
        from controlplane.fitting.picture import draw

        drawn = draw(fits, out / "forecast", target)
    if as_json:
        typer.echo(json.dumps([fitting.as_data(one, now, belief) for one in fits], indent=1))
        return
    console = Console()
    for one in fits:
        for line in words.lines(one, now):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        for row in words.chart(one, min(console.width, 100)):
            console.print(row, soft_wrap=True)
        console.print()
    for path in drawn:
        typer.echo(str(path))


def _bounds(text: str) -> tuple[float, float] | None:
    from controlplane.contract.yamlfile import FileError

    if not text:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise FileError(f"--bounds {text}: give LOW,HIGH, for example -1,1") from None
    if not low < high:
        raise FileError(f"--bounds {text}: LOW must be below HIGH")
    return low, high


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Run directories, files, results of loo or repeat; NAME=RUN names an arm."
        ),
    ],
    reference: Annotated[str, typer.Option(help="The arm to compare with; default the first.")] = "",
    margin: Annotated[float, typer.Option(min=0, help="How far two A may lie apart and count as equal.")] = 0.02,
    axis: Annotated[
        str, typer.Option(help="Run directories: device-seconds, gpu-hours, completions or steps.")
    ] = "device-seconds",
    drop: Annotated[
        float, typer.Option(min=0, max=0.9, help="Drop evaluations before this share of the longest run from the fits.")
    ] = 0.0,
    paper_grid: Annotated[
        bool, typer.Option("--paper-grid", help="The paper's own grid and cut; compute in GPU-hours.")
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="Completions per evaluation, where a file does not say.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="Folder for table.md, compare.json and the pictures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Which recipe is better, by the paper's rule: the asymptote A first; where A agrees, B at the common A.

    Intervals stand beside every number, and P(equal) says how far the curves support the rule's verdict.
    """
    from controlplane.contract.yamlfile import FileError
    from controlplane.fitting.compared import compared

    try:
        compared(runs, reference, margin, axis, drop, paper_grid, samples, out, as_json)
    except FileError:
        raise
    except ValueError as error:
        raise FileError(str(error)) from None


def backtest(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Finished curves, with or without an index.json.")],
    fraction: Annotated[
        list[float] | None, typer.Option(help="Share of a run that is fitted; default .1, .25, .5.")
    ] = None,
    horizon: Annotated[
        list[float] | None, typer.Option(help="Target compute over the last fitted one; default 2, 4, 10.")
    ] = None,
    families: Annotated[bool, typer.Option("--families", help="One table per family as well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every forecast as JSON and nothing else.")] = False,
) -> None:
    """What forecasts at 10, 25 and 50 % of finished runs would have been worth, against what came.

    Ours, the ScaleRL protocol, curve_fit, a power law and the last value: mean absolute error, coverage, width, score.
    """
    from controlplane.fitting.backtest import print_backtest

    raise typer.Exit(print_backtest(folder, tuple(fraction or ()), tuple(horizon or ()), families, as_json))
