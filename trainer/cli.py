"""`scalerl train`: start a run, or go on with one."""

import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from controlplane.contract.rundir import RunDir, append_line, read_lines
from controlplane.contract.yamlfile import FileError, load
from trainer.recipe import FREE, Recipe, find_recipe, load_recipe, overrides_of
from trainer.settings import ModelDirectory
from trainer.tasks.specs import ArithmeticSpec


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
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing about single steps.")] = False,
) -> None:
    """Train a model with ScaleRL.

    Ctrl-C or SIGTERM finishes the step, writes a checkpoint and exits with 0; the same command goes on from there.
    Everything a run does is in its directory: steps.jsonl, evals.jsonl, events.jsonl, checkpoints/.
    """
    rundir = RunDir(run)
    try:
        chosen = load_recipe(find_recipe(recipe), overrides_of(override or []))
        _same_run(chosen, rundir)
    except FileError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    if _finished(rundir):
        typer.echo(f"{run}: this run has ended at step {chosen.steps}; nothing to do.")
        return
    _go(chosen, rundir, quiet)


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


def _go(recipe: Recipe, rundir: RunDir, quiet: bool) -> None:
    # Late on purpose: torch takes seconds to import, and a bad recipe should be refused at once.
    import torch

    from trainer.build import build

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    _show(f"recipe {recipe.name}, seed {recipe.seed}, {recipe.steps} steps; run directory {rundir.root}")
    torch.set_num_threads(recipe.threads)
    try:
        _lock(rundir)
        start = _start(recipe, rundir)
        ready = build(recipe, rundir, start, say=(lambda _: None) if quiet else _show)
    except (OSError, ValueError) as error:
        typer.echo(f"{rundir.root}: cannot start: {error}", err=True)
        raise typer.Exit(2) from None
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: ready.loop.stop(signal.Signals(received).name))
    _show(f"metrics on http://{recipe.metrics.host}:{ready.agent.port}/metrics")
    try:
        reason = ready.loop.run()
    finally:
        if words := ready.close():
            _show(f"log.kind {recipe.log.kind}: {words}")
    done = "the run has ended" if reason == "end" else "stopped; the same command goes on"
    _show(f"{done} at step {ready.loop.state.step} of {recipe.steps}")


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
