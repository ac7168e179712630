"""`scalerl log` and `scalerl replay-journal`: read the journal of a run, and prove its decisions."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from controlplane.contract.rundir import RunDir
from controlplane.contract.yamlfile import FileError
from controlplane.decide import Kind
from controlplane.journal import Entry, EntryKind, Journal, journal_of
from controlplane.replay import again

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, as the trainer made it.")]
QUIET = (Kind.nothing, Kind.hold)
FOLLOW_SECONDS = 0.5


def log(
    run: RunArgument,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="Only these kinds: of decisions (act, advise, hold, ...) or of lines (start, published, stop). Repeatable."
        ),
    ] = None,
    since: Annotated[int, typer.Option(metavar="STEP", help="Only looks at or after this step of the trainer.")] = 0,
    everything: Annotated[
        bool, typer.Option("--all", help="Also looks in which nothing was done, with the reason why.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One journal line per line of output, whole.")] = False,
) -> None:
    """Show what a controller saw, decided and published, from its journal. Runs of equal looks are shown once."""
    wanted = _wanted(kind or [], everything)
    journal = _open(run)
    told = ""
    try:
        for entry in _entries(journal, follow):
            what = _kind(entry)
            if what not in wanted or _step(entry) < since:
                continue
            if as_json:
                typer.echo(entry.model_dump_json())
                continue
            line = f"{_step_text(entry):>8}  {what:<9} {_sentence(entry)}"
            if line[8:] != told[8:]:
                typer.echo(f"{entry.seq:>7} {time.strftime('%m-%d %H:%M:%S', time.localtime(entry.at))} {line}")
            told = line
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        journal.close()


def replay_journal(run: RunArgument) -> None:
    """Make every decision in the journal of a run again, and compare bit for bit. Exits with 1 at the first difference."""
    journal = _open(run)
    looks, started = 0, time.monotonic()
    with Console(stderr=True).status("checking the chain") as status:
        for difference in again(journal):
            looks += 1
            if looks % 500 == 0:
                status.update(f"{looks} decisions made again")
            if difference is None:
                continue
            typer.echo(
                f"line {difference.seq}, look {looks}: the decision comes out otherwise (written by version {difference.version})"
            )
            for name, recorded, made in difference.fields():
                typer.echo(f"  {name}\n    recorded  {json.dumps(recorded)}\n    now       {json.dumps(made)}")
            raise typer.Exit(1)
    journal.close()
    typer.echo(
        f"{looks} decisions made again in {time.monotonic() - started:.1f} s: all the same, bit for bit; the chain is whole"
    )


def _open(run: Path) -> Journal:
    if not run.is_dir():
        raise FileError(f"{run}: there is no such run directory")
    return journal_of(RunDir(run), read_only=True)


def _wanted(kinds: list[str], everything: bool) -> set[str]:
    known = {*map(str, Kind), *map(str, EntryKind)} - {EntryKind.look}
    if unknown := sorted(set(kinds) - known):
        raise FileError(f"--kind: must be one of {', '.join(sorted(known))}, not {unknown[0]!r}")
    return set(kinds) or (known if everything else known - set(QUIET))


def _entries(journal: Journal, follow: bool) -> Iterator[Entry]:
    after = 0
    while True:
        for entry in journal.entries(after=after):
            after = entry.seq
            yield entry
        if not follow:
            return
        time.sleep(FOLLOW_SECONDS)


def _kind(entry: Entry) -> str:
    return str(entry.body["decision"]["kind"]) if entry.kind is EntryKind.look else entry.kind.value


def _step(entry: Entry) -> float:
    """Step of a look; other lines belong to no step and pass every filter."""
    if entry.kind is not EntryKind.look:
        return float("inf")
    step = entry.body["decision"]["step"]
    return -1 if step is None else step


def _step_text(entry: Entry) -> str:
    if entry.kind is not EntryKind.look or (step := entry.body["decision"]["step"]) is None:
        return "-"
    branch = entry.body["decision"]["branch"]
    return f"{step}/{branch}" if branch else str(step)


def _sentence(entry: Entry) -> str:
    body: dict[str, Any] = entry.body
    match entry.kind:
        case EntryKind.look:
            return str(body["decision"]["reason"])
        case EntryKind.start:
            return f"epoch {body['epoch']}, policy {body['policy']} ({body['policy_hash']}), version {body['version']}"
        case EntryKind.trial:
            effect = "" if body["effect"] is None else f", effect {body['effect']:+.3f}"
            return f"trial {body['number']} of probe {body['probe_id']}, {body['arm']}: {body['outcome']}{effect}: {body['reason']}"
        case EntryKind.published:
            document = body["document"]
            return f"decision {body['decision_id']}, generation {document['generation']}, epoch {document['epoch']}"
        case EntryKind.stop:
            return str(body["reason"])
