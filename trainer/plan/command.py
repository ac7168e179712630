"""The command `scalerl plan`. Light: neither torch nor transformers is imported for a recipe with a model directory."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, TypeVar

import typer

from controlplane.contract.yamlfile import FileError
from trainer.plan.assumptions import Values, corners, parse
from trainer.plan.balance import best_split, smallest_generator
from trainer.plan.estimate import Plan, Split, dtype_of, plan
from trainer.plan.hardware import GPUS, LINKS, Gpu
from trainer.plan.shape import Shape
from trainer.plan.source import load, split_in, split_of
from trainer.plan.warnings import warnings
from trainer.recipe import Recipe

T = TypeVar("T")


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.", show_default=False)],
    model: Annotated[
        str, typer.Option(help="Model directory, or a shipped shape (qwen3-8b, ...); default: what the recipe names.")
    ] = "",
    gpu: Annotated[str, typer.Option(help=f"One of {', '.join(GPUS)}.")] = "h100",
    gpus: Annotated[int, typer.Option(min=0, help="GPUs in all; 0: those of the split, else 8.")] = 0,
    learners: Annotated[
        int, typer.Option(min=0, help="Learner ranks; 0: the recipe's, or the best split of --gpus.")
    ] = 0,
    generators: Annotated[
        int, typer.Option(min=0, help="Generators; 0: the recipe's, or what the learners leave.")
    ] = 0,
    gpus_per_generator: Annotated[
        int, typer.Option(min=0, help="GPUs of each generator; 0: as few as hold the weights.")
    ] = 0,
    link: Annotated[str, typer.Option(help=f"Network between nodes: {', '.join(LINKS)}.")] = "ib400",
    assume: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Override an assumption: mfu=0.35 or mfu=0.3..0.4. Repeatable."),
    ] = None,
    recompute: Annotated[
        bool | None, typer.Option(help="Activations computed again, or kept; default: what the recipe says.")
    ] = None,
    price: Annotated[float, typer.Option(min=0, help="Price of a GPU-hour, in any currency; 0: none.")] = 0.0,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe, dotted. Repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole plan as JSON.")] = False,
) -> None:
    """What a recipe needs and costs before anything is rented: memory, tokens, seconds, GPU-hours, balance.

    By calculation alone. Exact where it counts, a range where it has to assume; every assumption is shown with its source and
    can be overridden. Exit code 0 also where it does not fit: the report says so.
    """
    try:
        chosen, shape = load(recipe, model, override or [])
        card = _of(GPUS, gpu, "--gpu")
        _of(LINKS, link, "--link")
        values = corners(parse(assume or []))
        written = None if gpus or learners or generators else split_in(chosen)
        per = gpus_per_generator or (
            written.gpus_per_generator if written else smallest_generator(shape, card, dtype_of(chosen))
        )
        split = replace(written, gpus_per_generator=per) if written else split_of(gpus, learners, generators, per)
        again = chosen.optimizer.recompute if recompute is None else recompute
        found, best = _planned(chosen, shape, card, split, gpus or 8, per, values, link, again)
    except FileError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    notes = warnings(found, best)
    from trainer.plan.report import document, show

    if as_json:
        typer.echo(json.dumps(document(found, best, notes, price), indent=1, default=str))
        return
    from rich.console import Console

    show(found, best, notes, price, Console())


def _of(known: Mapping[str, T], name: str, option: str) -> T:
    if name not in known:
        raise FileError(f"{option} {name}: must be one of {', '.join(known)}")
    return known[name]


def _planned(
    recipe: Recipe,
    shape: Shape,
    gpu: Gpu,
    split: Split | None,
    gpus: int,
    per: int,
    values: tuple[Values, Values],
    link: str,
    recompute: bool,
) -> tuple[Plan, Plan | None]:
    """The plan of the split, or of the best one, and the best one of the same GPUs."""
    best = best_split(recipe, shape, gpu, split.gpus if split else gpus, per, values, link, recompute)
    if split:
        return plan(recipe, shape, gpu, split, values, link, recompute), best
    if best is None:
        raise FileError(f"--gpus {gpus}: too few for a learner rank and a generator of {per} GPU")
    return best, best
