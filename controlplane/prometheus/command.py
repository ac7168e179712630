"""`scalerl prometheus`: write its configuration, start it on loopback, check that everything is seen."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from controlplane.alerts import RUNBOOKS, limits, rule_files
from controlplane.contract.rundir import write_atomic
from controlplane.contract.yamlfile import FileError
from controlplane.policy import find, parse
from controlplane.prometheus import server
from controlplane.prometheus.checks import check as check_all
from controlplane.prometheus.config import Extra, configuration
from controlplane.prometheus.targets import mirror

app = typer.Typer(help="A Prometheus server for your runs.", no_args_is_help=True, rich_markup_mode=None)

Runs = Annotated[Path, typer.Argument(metavar="RUNS", help="Folder with run directories, or one run directory.")]
Data = Annotated[Path | None, typer.Option(help="Folder of the server; default RUNS/.prometheus.")]
PolicyName = Annotated[str, typer.Option(help="Policy whose numbers the alert rules get: a file or a shipped one.")]
Pages = Annotated[
    list[str] | None, typer.Option(metavar="RUN=HOST:PORT", help="A page that belongs to a run; repeatable.")
]
Alertmanager = Annotated[str, typer.Option(metavar="HOST:PORT", help="Send alerts to this Alertmanager.")]
Runbooks = Annotated[str, typer.Option(help="Address in front of the runbook links.")]
Interval = Annotated[int, typer.Option(min=1, help="Seconds between two scrapes, and two evaluations of the rules.")]

_SHIPPED = "lecture"


def _write(
    runs: Path,
    data: Path | None,
    policy: str,
    alertmanager: str,
    vllm: list[str],
    dcgm: list[str],
    runbooks: str,
    interval: int,
) -> Path:
    if not runs.is_dir():
        raise FileError(f"{runs}: there is no such folder")
    folder = data or runs / ".prometheus"
    name, text = find(policy)
    numbers = limits(parse(text, name))
    try:
        beside = [Extra.parse(page) for page in vllm], [Extra.parse(page) for page in dcgm]
    except ValueError as error:
        raise FileError(str(error)) from None
    for file, rules in rule_files(numbers, runbooks or RUNBOOKS, interval).items():
        write_atomic(folder / "rules" / file, rules)
    write_atomic(folder / "prometheus.yml", configuration(folder, interval, alertmanager, *beside))
    mirror(runs, folder / "targets")
    return folder


@app.command("config")
def config(
    runs: Runs,
    data: Data = None,
    policy: PolicyName = _SHIPPED,
    alertmanager: Alertmanager = "",
    vllm: Pages = None,
    dcgm: Pages = None,
    runbooks: Runbooks = "",
    interval: Interval = 15,
) -> None:
    """Write prometheus.yml, rules and targets, for a server that you start yourself."""
    folder = _write(runs, data, policy, alertmanager, vllm or [], dcgm or [], runbooks, interval)
    typer.echo(str(folder / "prometheus.yml"))
    typer.echo(f"Targets as of now are in {folder / 'targets'}; `scalerl prometheus start` keeps them up to date.")


@app.command("start")
def start(
    runs: Runs,
    data: Data = None,
    policy: PolicyName = _SHIPPED,
    alertmanager: Alertmanager = "",
    vllm: Pages = None,
    dcgm: Pages = None,
    runbooks: Runbooks = "",
    interval: Interval = 15,
    port: Annotated[int, typer.Option(min=1, help="Port on loopback.")] = 9090,
    keep: Annotated[str, typer.Option(help="How long to keep data, as Prometheus writes it.")] = "90d",
) -> None:
    """Run a `prometheus` from PATH on loopback with our targets and rules; new runs are found by themselves."""
    program = server.find()
    if program is None:
        typer.echo(server.MISSING, err=True)
        raise typer.Exit(1)
    folder = _write(runs, data, policy, alertmanager, vllm or [], dcgm or [], runbooks, interval)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    code = server.serve(program, runs, folder, port, keep, stop, typer.echo)
    if code:
        typer.echo(
            f"Prometheus ended with exit code {code}; the last lines of {folder / 'prometheus.log'} say why", err=True
        )
        raise typer.Exit(1)


@app.command("check")
def check(
    runs: Runs,
    data: Data = None,
    prometheus: Annotated[str, typer.Option(metavar="URL", help="Also look whether this server sees the runs.")] = "",
) -> None:
    """Look at every target, page, rule and server; exits with 1 if something is wrong."""
    if not runs.is_dir():
        raise FileError(f"{runs}: there is no such folder")
    wrong = False
    for line in check_all(runs, data or runs / ".prometheus", prometheus):
        wrong |= line.ok is False
        typer.echo(f"{'-' if line.ok is None else 'ok' if line.ok else 'WRONG':6}{line.text}")
    raise typer.Exit(1 if wrong else 0)
