"""`scalerl study RUN`: the probes of a run in a browser. `scalerl probe RUN`: ask the run's controller for one."""

import getpass
import secrets
import threading
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controlplane.contract.approvals import Order
from controlplane.contract.rundir import RunDir
from controlplane.contract.yamlfile import FileError
from controlplane.journal import EntryKind, JournalError, journal_of
from controlplane.policy import Policy
from controlplane.policy.models import TUNING
from controlplane.policy.tuning import PROBED
from controlplane.post import say

if TYPE_CHECKING:
    from controlplane.tune.trials import Trial
    from controlplane.tune.tuner import Tuner

MISSING = "needs the extra `tune`: pip install 'scalerl[tune]'"


def study_url(rundir: RunDir, url: str = "") -> str:
    """Where the study of a run is kept when nobody says otherwise: beside the journal."""
    return url or f"sqlite:///{rundir.controller / 'study.db'}"


def study_name(run: str) -> str:
    """Studies of many runs may share a database."""
    return f"scalerl/{run}"


def trials_of(rundir: RunDir) -> "list[Trial]":
    """The arms of all probes of a run, as its journal has them: one line when an arm begins, one when it has ended.

    Raises:
        JournalError: it has no journal that can be read.
    """
    from controlplane.tune.trials import Trial

    entries = journal_of(rundir, read_only=True).entries(kind=EntryKind.trial)
    return [Trial.model_validate(entry.body) for entry in entries]


def tuner_of(rundir: RunDir, policy: Policy, past: Sequence[RunDir] = ()) -> "Tuner | None":
    """The tuner of a run whose policy has a section `tuning`; None without one. It knows what probes of `past` runs have shown.

    Raises:
        FileError: Optuna is not installed, or a past run has no journal.
    """
    tuning = policy.tuning
    if tuning is None or tuning.design == "off":
        return None
    try:
        from controlplane.tune.proposer import Proposer
        from controlplane.tune.tuner import Tuner
    except ImportError:
        raise FileError(f"a policy with a section `tuning` {MISSING}") from None
    name = rundir.read_info().name
    try:
        known = {other.read_info().run_uid: trials_of(other) for other in past}
    except (JournalError, OSError) as error:
        raise FileError(f"--learn-from: {error}") from None

    def opened() -> Proposer:
        proposer = Proposer(study_url(rundir, tuning.study), study_name(name))
        proposer.describe(run=name, policy=policy.name, target=str(policy.forecast.target or "none"))
        for origin, trials in known.items():
            proposer.learn_from(trials, origin, tuning.space)
        return proposer

    return Tuner(rundir, policy, opened)


def probe(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, as the trainer made it.")],
    tunable: Annotated[str, typer.Option(help="What to try; left out, the policy chooses.")] = "",
    why: Annotated[str, typer.Option("--why", help="Your reason, for the journal.")] = "",
) -> None:
    """Ask for a probe: other values of a tunable are tried in arms beside the run, and what is proved better is adopted.

    The controller of the run carries it out, within its policy's section `tuning`; `scalerl log RUN` shows what became of it.
    """
    rundir = RunDir(run)
    if not rundir.info.exists():
        raise FileError(f"{run}: is not a run directory (it has no run.json)")
    if tunable and tunable not in PROBED:
        raise FileError(f"--tunable {tunable}: cannot be probed; allowed are {', '.join(PROBED)}")
    order = Order(
        order_id=secrets.token_hex(8), action="probe", tunable=tunable, by=getpass.getuser(), at=time.time(), reason=why
    )
    say(rundir, order)
    typer.echo("asked for a probe; `scalerl log` shows what became of it")


def schedule(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of a run that was tuned.")],
) -> None:
    """Print what was adopted in a run as a part of a recipe, for a later run to follow from its start."""
    from controlplane.tune.schedule import schedule as written

    journal, trials = journal_of(RunDir(run), read_only=True), trials_of(RunDir(run))
    adopted, reverted = "", []
    for entry in journal.entries(kind=EntryKind.look):
        decision = entry.body["decision"]
        if decision["kind"] == "act" and decision["rule"] == TUNING:
            ruling = (decision["change"] or {}).get("probe") or {}
            if decision["purpose"] == "adopt":
                adopted = ruling.get("probe_id", "")
            elif decision["purpose"] == "revert":
                reverted.append(adopted)
    typer.echo(written(trials, reverted), nl=False)


def study(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, as the trainer made it.")],
    storage: Annotated[
        str, typer.Option(help="Where the study is: sqlite:///FILE, postgresql://..., or journal:FILE.", metavar="URL")
    ] = "",
    port: Annotated[int, typer.Option(help="Port on loopback; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
) -> None:
    """Show the probes of a run in optuna-dashboard, on a copy that nothing leads back from. Ctrl-C ends it."""
    try:
        from controlplane.tune.viewer import served
    except ImportError:
        raise FileError(f"scalerl study {MISSING}") from None
    rundir = RunDir(run)
    if not rundir.info.exists():
        raise FileError(f"{run}: is not a run directory (it has no run.json)")
    url = study_url(rundir, storage)
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        raise FileError(f"{run}: there was no probe in this run yet, so there is no study")
    policy, forecasts = _from_journal(rundir)
    name = study_name(rundir.read_info().name)
    try:
        with served(url, name, policy=policy, forecasts=forecasts, port=port) as address:
            typer.echo(f"a copy of {name} on {address} - Ctrl-C ends it")
            if browser:
                webbrowser.open(address)
            threading.Event().wait()
    except KeyboardInterrupt:
        return
    except KeyError:
        raise FileError(f"{url}: there is no study {name}") from None


def _from_journal(rundir: RunDir) -> tuple[str, list[dict[str, Any]]]:
    """The policy in force, and the forecasts in order."""
    try:
        journal = journal_of(rundir, read_only=True)
    except JournalError:
        return "", []
    start = journal.newest(EntryKind.start)
    policy = str(start.body.get("policy_text", "")) if start else ""
    looks = journal.entries(kind=EntryKind.look)
    return policy, [entry.body["forecast"] for entry in looks if "forecast" in entry.body]
