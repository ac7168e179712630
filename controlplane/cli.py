"""One command: `scalerl`.

The trainer's commands arrive as plug-ins (functions or typer apps at the entry points `scalerl.commands`), so that the controller never
imports a trainer. Exit codes: 0 done, 1 something failed while running, 2 what the user gave is wrong and nothing was done.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from controlplane.contract.rundir import RunDir
from controlplane.contract.yamlfile import FileError
from controlplane.fitting.command import backtest, compare, fit
from controlplane.hindsight.command import replay
from controlplane.hints import Hints
from controlplane.journal import JournalError, journal_of
from controlplane.logbook import log, replay_journal
from controlplane.loop import LEASE_SECONDS, ControlError, Controller
from controlplane.metricstore import Recorder
from controlplane.metricstore.command import app as metrics_app
from controlplane.notify import notifier_of
from controlplane.policy import Autonomy, find, parse
from controlplane.policytools.command import app as policy_app
from controlplane.post import command as post_command
from controlplane.prometheus.command import app as prometheus_app
from controlplane.sources import MetricSource, PrometheusSource, ScrapeSource
from controlplane.study.command import loo, repeat
from controlplane.supervise.command import supervise
from controlplane.tune.command import probe, schedule, study, tuner_of

app = typer.Typer(
    name="scalerl",
    help="Control plane for reinforcement-learning runs: know where a run will end, notice that it goes bad, act within written limits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, as the trainer made it.")]


@app.command()
def control(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, as the trainers made them.")],
    policy: Annotated[str, typer.Option(help="Policy file, or the name of a shipped policy.")] = "observe",
    at_most: Annotated[
        str, typer.Option(help="Go no further than this, whatever the policy says: observe, advise or act.")
    ] = "act",
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks at the run.")] = 15.0,
    prometheus: Annotated[
        str, typer.Option(metavar="URL", help="Read metrics from this Prometheus server instead of the trainer itself.")
    ] = "",
    port: Annotated[
        int, typer.Option(help="Port of the controller's own /metrics, on loopback; 0 takes a free one.")
    ] = 0,
    record: Annotated[
        float,
        typer.Option(min=0, help="Seconds between two records of every metric in RUN/controller/metrics.db; 0: none."),
    ] = 15.0,
    hints: Annotated[
        int, typer.Option(min=0, help="Port on loopback at which Alertmanager may ask for an early look; 0: none.")
    ] = 0,
    journal: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar="SCALERL_JOURNAL",
            help="Keep the journal in this PostgreSQL database, postgresql://user@host/db, instead of a file of the run. "
            "Several controllers may then stand by for the same run.",
        ),
    ] = "",
    learn_from: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="An earlier run: what its probes have shown decides what is tried first. May be repeated.",
        ),
    ] = None,
) -> None:
    """Attach a controller to a running trainer, or to several.

    It looks at the run, judges, forecasts its end, and acts as far as the policy allows. Kill it at any time: the
    trainer goes on unchanged, and the next start carries on from the journal. It ends when the run has ended. Start
    it twice, on two machines: one leads each run, the other stands by.

    Actions become annotations where SCALERL_GRAFANA_URL and SCALERL_GRAFANA_TOKEN (or ..._TOKEN_FILE) are set, and JSON for the webhook in
    SCALERL_WEBHOOK_URL. Neither can hold up a decision.
    """
    name, text = find(policy)
    checked = parse(text, name)
    if at_most not in Autonomy.__members__:
        raise FileError(f"--at-most: must be one of {', '.join(Autonomy.__members__)}, not {at_most!r}")
    if checked.queries and not prometheus:
        raise FileError(
            f"{name}: signals: {next(iter(checked.queries))} is a Prometheus query and needs --prometheus URL"
        )
    for run in runs:
        if not run.is_dir():
            raise FileError(f"{run}: there is no such run directory")
    past = [RunDir(run) for run in learn_from or ()]
    if past and checked.tuning is None:
        raise FileError(f"--learn-from: {name} has no section `tuning`")
    if len({run.resolve() for run in runs}) < len(runs):
        raise FileError("RUN: the same directory is named twice")
    if len(runs) > 1 and (port or hints):
        raise FileError(f"{'--port' if port else '--hints'}: is for one run; there are {len(runs)}")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())

    def attend(run: Path) -> None:
        rundir = RunDir(run)
        _wait_for_trainer(rundir, stop)
        if stop.is_set():
            return
        source: MetricSource = ScrapeSource(rundir.target)
        if prometheus:
            source = PrometheusSource(prometheus, rundir.read_info().name)
        kept = journal_of(rundir, journal)
        lease = max(LEASE_SECONDS, 4 * interval)
        controller = Controller(rundir, checked.capped(Autonomy[at_most]), text, source, kept, lease_seconds=lease)
        if notifier := notifier_of(rundir.read_info().name, os.environ, controller.told):
            controller.watched_by(notifier)
        if tuner := tuner_of(rundir, checked.capped(Autonomy[at_most]), past):
            controller.advised_by(tuner)
        logging.getLogger("controller").info("looks at %s every %g s; journal in %s", run, interval, kept.name)
        recorder = Recorder(rundir, record) if record else None
        hinted = Hints(hints) if hints else None
        try:
            if recorder:
                controller.watched_by(recorder)
                recorder.start()
            controller.run(interval, stop, port, hinted.pause if hinted else threading.Event.wait)
        finally:
            if hinted:
                hinted.close()
            if recorder:
                recorder.close()
            kept.close()

    _each(attend, runs)


def _each(attend: Callable[[Path], None], runs: list[Path]) -> None:
    """One run here, several in a thread each: a run that fails or hangs does not hold up the others."""
    if len(runs) == 1:
        return attend(runs[0])
    failed: list[Path] = []

    def guarded(run: Path) -> None:
        try:
            attend(run)
        except Exception as error:
            logging.getLogger("controller").error("%s: no longer looked at: %s", run, error)
            failed.append(run)

    threads = [threading.Thread(target=guarded, args=(run,), name=f"control {run.name}") for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise ControlError(f"{len(failed)} of {len(runs)} runs are no longer looked at: {', '.join(map(str, failed))}")


def _wait_for_trainer(rundir: RunDir, stop: threading.Event) -> None:
    told = False
    while not (rundir.info.exists() and rundir.observed.exists()) and not stop.wait(0.2):
        if not told:
            logging.getLogger("controller").info("waits for a trainer in %s", rundir.root)
            told = True


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One run directory, or several to compare.")],
    out: Annotated[Path | None, typer.Option(help="File to write; default RUN/report.html.")] = None,
) -> None:
    """Write a self-contained HTML report: curves, the forecast against what came, interventions and their worth."""
    from controlplane.report import write

    for run in runs:
        if not (run / "run.json").exists():
            raise FileError(f"{run}: is not a run directory (it has no run.json)")
    target = out or RunDir(runs[0]).report
    write(runs, target)
    typer.echo(str(target))


@app.command()
def watch(run: RunArgument) -> None:
    """Show a run in the terminal while it goes on: pass rate, forecast, vital signs, decisions. Ctrl-C leaves it running."""
    from controlplane.view import watch as watch_run

    if not run.is_dir():
        raise FileError(f"{run}: there is no such run directory")
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    watch_run(run, stop)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the run directories.")] = Path("runs"),
    seed: Annotated[int, typer.Option(help="Seed of model, data and sampling.")] = 1,
    fault: Annotated[bool, typer.Option(help="Multiply the learning rate part-way, as a person's typo would.")] = True,
    at_most: Annotated[str, typer.Option(help="Autonomy of the controller: observe, advise or act.")] = "act",
    compare: Annotated[
        bool, typer.Option("--compare", help="Three runs: guarded, only observed, and without the fault; one report.")
    ] = False,
) -> None:
    """A real RL run of a tiny model under a real controller, on this machine, in a few minutes.

    Part-way the learning rate is multiplied by ten. The controller, which knows nothing of it, has to notice and to
    bring the run back. Ctrl-C stops cleanly; the same command goes on from the checkpoint.
    """
    from controlplane.demo import run_compare, run_demo

    if at_most not in Autonomy.__members__:
        raise FileError(f"--at-most: must be one of {', '.join(Autonomy.__members__)}, not {at_most!r}")
    raise typer.Exit(run_compare(out, seed) if compare else run_demo(out, seed, fault=fault, at_most=at_most))


app.command()(log)
post_command.add_to(app)
app.command()(supervise)
app.command("replay-journal")(replay_journal)
app.command()(replay)
app.command()(loo)
app.command()(repeat)
app.command()(study)
app.command()(probe)
app.command()(schedule)
app.command()(fit)
app.command()(compare)
app.command()(backtest)

app.add_typer(metrics_app, name="metrics")
app.add_typer(prometheus_app, name="prometheus")

app.add_typer(policy_app, name="policy")


def main() -> None:
    """Entry point of the `scalerl` command."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for plugin in entry_points(group="scalerl.commands"):
        command = plugin.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=plugin.name)
        else:
            app.command(plugin.name)(command)
    try:
        app()
    except FileError as error:
        typer.echo(str(error), err=True)
        sys.exit(2)
    except (ControlError, JournalError, OSError) as error:
        typer.echo(str(error), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
