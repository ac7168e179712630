"""`scalerl train`: start a run, or go on with one."""

import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from controlplane.contract.rundir import RunDir, append_line, read_lines
from controlplane.contract.yamlfile import FileError, load
from trainer.cluster import CannotStart, ClusterFailure
from trainer.recipe import FREE, Recipe, find_recipe, load_recipe, overrides_of
from trainer.settings import ModelDirectory
from trainer.tasks.specs import ArithmeticSpec

if TYPE_CHECKING:
    from trainer.build import Run

Way = Callable[[Recipe, RunDir, Path, Callable[[str], None]], "tuple[Run, str]"]
"""How a run is gone through: its last part, and why it ended."""


def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe file, or the name of a shipped one (tiny).", show_default=False)
    ],
    run: Annotated[
        Path, typer.Option("--run", help="Run directory; a run that is already there goes on.", show_default=False)
    ],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, dotted: --set optimizer.lr=3e-5. Repeatable."),
    ] = None,
    cluster: Annotated[
        Literal["none", "ray"],
        typer.Option(
            help="ray: learners and generators in processes of their own, as the recipe's section cluster says."
        ),
    ] = "none",
    address: Annotated[
        str,
        typer.Option(metavar="ADDR", help="Ray cluster to join; without it, one is started on this machine alone."),
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing about single steps.")] = False,
) -> None:
    """Train a model with ScaleRL.

    Ctrl-C or SIGTERM finishes the step, writes a checkpoint and exits with 0; the same command goes on from there.
    Everything a run does is in its directory: steps.jsonl, evals.jsonl, events.jsonl, checkpoints/.
    """
    rundir = RunDir(run)
    if address and cluster != "ray":
        typer.echo("--address: only with --cluster ray", err=True)
        raise typer.Exit(2)
    try:
        chosen = load_recipe(find_recipe(recipe), overrides_of(override or []))
        _same_run(chosen, rundir)
    except FileError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    if _finished(rundir):
        typer.echo(f"{run}: this run has ended at step {chosen.steps}; nothing to do.")
        return
    _go(chosen, rundir, _on_ray(address) if cluster == "ray" else _here, quiet)


def _same_run(recipe: Recipe, rundir: RunDir) -> None:
    """Refuse to mix two recipes in one directory.

    Raises:
        FileError: the directory holds another run, or is not a directory.
    """
    if rundir.root.exists() and not rundir.root.is_dir():
        raise FileError(f"{rundir.root}: not a directory")
    if not rundir.info.exists():
        return
    before = load(rundir.recipe, Recipe)
    if before.digest() != recipe.digest():
        keys = ", ".join(_differences(before, recipe))
        raise FileError(
            f"{rundir.root}: holds a run with another recipe (different: {keys}); choose another --run directory"
        )


def _differences(one: Recipe, other: Recipe) -> list[str]:
    return [name for name in Recipe.model_fields if name not in FREE and getattr(one, name) != getattr(other, name)]


def _finished(rundir: RunDir) -> bool:
    events = list(read_lines(rundir.events))
    return bool(events) and events[-1]["event"] == "end"


def _go(recipe: Recipe, rundir: RunDir, way: Way, quiet: bool) -> None:
    # Late on purpose: torch takes seconds to import, and a bad recipe should be refused at once.
    import torch

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    _show(f"recipe {recipe.name}, seed {recipe.seed}, {recipe.steps} steps; run directory {rundir.root}")
    torch.set_num_threads(recipe.threads)
    try:
        _lock(rundir)
        start = _start(recipe, rundir)
    except (OSError, ValueError) as error:
        _refuse(rundir, error)
    ended, reason = way(recipe, rundir, start, (lambda _: None) if quiet else _show)
    done = "the run has ended" if reason == "end" else "stopped; the same command goes on"
    _show(f"{done} at step {ended.loop.state.step} of {recipe.steps}")


def _refuse(rundir: RunDir, error: Exception) -> NoReturn:
    typer.echo(f"{rundir.root}: cannot start: {error}", err=True)
    raise typer.Exit(2) from None


def _here(recipe: Recipe, rundir: RunDir, start: Path, say: Callable[[str], None]) -> "tuple[Run, str]":
    """Everything in this process."""
    from trainer.build import build
    from trainer.rollout.vllm_common import EngineError

    try:
        ready = build(recipe, rundir, start, say)
    except (OSError, ValueError, EngineError) as error:
        _refuse(rundir, error)
    _follow(ready)
    try:
        return ready, ready.loop.run()
    finally:
        if words := ready.close():
            say(f"log.kind {recipe.log.kind}: {words}")


def _on_ray(address: str) -> Way:
    """Learners and generators in processes of their own."""

    def way(recipe: Recipe, rundir: RunDir, start: Path, say: Callable[[str], None]) -> "tuple[Run, str]":
        from trainer.cluster.drive import drive

        try:
            return drive(recipe, rundir, start, address, say, _follow)
        except CannotStart as error:
            _refuse(rundir, error)
        except ClusterFailure as error:
            typer.echo(f"{rundir.root}: the run cannot go on: {error}", err=True)
            raise typer.Exit(1) from None

    return way


def _follow(running: "Run") -> None:
    """Signals end this part of the run after its step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: running.loop.stop(signal.Signals(received).name))
    host = running.loop.recipe.metrics.host
    _show(f"metrics on http://{host}:{running.agent.port}/metrics")


def _start(recipe: Recipe, rundir: RunDir) -> Path:
    """The model directory that the run begins with; the tiny one is made on first use."""
    if isinstance(recipe.model, ModelDirectory):
        return recipe.model.path
    from trainer.warmstart import warm_started

    if not isinstance(recipe.task, ArithmeticSpec):  # the recipe refuses it; this is for the type checker
        raise ValueError("only the arithmetic task has demonstrations for a warm start")
    return warm_started(recipe.model, recipe.task, recipe.warm_start, _progress(rundir))


def _lock(rundir: RunDir) -> None:
    """Keep other trainers out of the directory until this process ends.

    Raises:
        BlockingIOError: another process works here.
    """
    rundir.root.mkdir(parents=True, exist_ok=True)
    handle = os.open(rundir.root, os.O_RDONLY)  # kept open on purpose: the lock ends with the process
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError("another trainer works in this directory") from None


def _progress(rundir: RunDir) -> Callable[[int, int], None]:
    """Tells people how far the warm start is: it is the one long wait before the first step."""

    def tell(done: int, steps: int) -> None:
        if done % 50 == 0 or done == steps:
            _show(f"warm start {done}/{steps} (made once, then cached)")
            line = {"event": "prepare", "what": "warm start", "done": done, "of": steps, "time": time.time()}
            append_line(rundir.events, line)

    return tell


def _show(line: str) -> None:
    print(line, flush=True, file=sys.stdout)
