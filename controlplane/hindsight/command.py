"""The command `scalerl replay`. Light on purpose: what it needs is loaded when it runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from controlplane.contract.yamlfile import FileError


def replay(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="CSV, JSON Lines, trainer_state.json, a run directory, or the address of a Prometheus server.",
        ),
    ],
    policy: Annotated[str, typer.Option(help="Policy file, or the name of a shipped policy.")] = "guard",
    plot: Annotated[Path | None, typer.Option(help="Write the picture here; .png or .svg.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="SIGNAL=COLUMN", help="Take this column for a signal. Repeatable."),
    ] = None,
    bounds: Annotated[
        str, typer.Option("--range", metavar="LOW,HIGH", help="Range of the reward, mapped to 0..1.")
    ] = "",
    samples: Annotated[float, typer.Option(min=0, help="Completions behind a row; 0 takes what the log tells.")] = 0.0,
    checkpoint_every: Annotated[
        float, typer.Option(min=0, help="Steps between the checkpoints assumed; 0 guesses.")
    ] = 0.0,
    name: Annotated[str, typer.Option("--run", help="With a Prometheus server: the value of the label `run`.")] = "",
    hours: Annotated[float, typer.Option(min=0.01, help="With a Prometheus server: how far back.")] = 24.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was said as JSON.")] = False,
) -> None:
    """What the controller would have done in a run that is over: when, and why.

    Columns are guessed from their names, and every guess is printed. Nothing recorded can be changed, so each action is
    only asked for: what follows the first one is what it would have spared the run.
    """
    from controlplane.hindsight import fitted, of_table, rehearse, words
    from controlplane.policy import load
    from controlplane.recorded import read_run
    from controlplane.recorded.prometheus import read_prometheus

    named = dict(_pair(each) for each in column or ())
    if run.startswith(("http://", "https://")):
        table = read_prometheus(run, name, hours)
    else:
        table = read_run(Path(run), named, _bounds(bounds))
    chosen, left_out = fitted(load(policy), table)
    frames, notes = of_table(table, samples or None, checkpoint_every)
    hindsight = rehearse(frames, chosen)
    if as_json:
        typer.echo(
            json.dumps([{**vars(each), "change": each.change and each.change.sentence()} for each in hindsight.said])
        )
    else:
        typer.echo("\n".join(words.lines(table, hindsight, [*notes, *left_out])))
    if plot is not None:
        from controlplane.hindsight import picture

        picture.write(table, hindsight, plot)
        typer.echo(f"\n  picture: {plot}", err=as_json)


def _pair(text: str) -> tuple[str, str]:
    signal, sign, name = text.partition("=")
    if not sign or not name:
        raise FileError(f"--column {text}: must be SIGNAL=COLUMN, such as pass_rate=reward/mean")
    return signal, name


def _bounds(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not low < high:
        raise FileError(f"--range {text}: must be two numbers LOW,HIGH with LOW below HIGH")
    return low, high
