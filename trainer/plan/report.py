"""A plan as a table for people and as a document for programs. Every figure says whether it is exact or assumed."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.plan.assumptions import ASSUMPTIONS
from trainer.plan.balance import fits
from trainer.plan.estimate import Corner, Plan
from trainer.plan.hardware import LINKS
from trainer.plan.speed import transfer_seconds
from trainer.plan.warnings import gib

Row = tuple[str, str, str]
"""What, how much, a remark."""


def show(plan: Plan, best: Plan | None, notes: Sequence[str], price: float, console: Console) -> None:
    """The whole report."""
    split, gpu = plan.split, plan.gpu
    console.print(
        f"\n{plan.recipe.name}: {plan.shape.name} on {split.gpus} x {gpu.name}, "
        f"{split.generators} generators of {split.gpus_per_generator} GPU, {split.learners} learner ranks\n"
        "Computed, nothing was run. '=' follows from recipe and shape alone; a range goes from the fast to the slow value "
        "of every assumption below.\n"
    )
    for title, rows in sections(plan, best, price):
        table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, min_width=34)
        table.add_column(no_wrap=True, justify="right", min_width=22)
        table.add_column(style="dim", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    console.print(_assumptions(plan))
    console.print()
    for note in notes:
        console.print(
            f"! {note}", style="bold" if note.startswith("DOES NOT FIT") else "", markup=False, highlight=False
        )
    if not notes:
        console.print("It fits, and nothing stands out.")


def _assumptions(plan: Plan) -> Table:
    table = Table(
        title="Assumptions, slow .. fast (--assume NAME=VALUE or NAME=SLOW..FAST)",
        title_justify="left",
        box=None,
        show_header=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold", ratio=1)
    table.add_column(style="dim", overflow="fold", ratio=1)
    for a in ASSUMPTIONS:
        slow, fast = getattr(plan.slow.values, a.name), getattr(plan.fast.values, a.name)
        source = a.source if (slow, fast) == (a.slow, a.fast) else "given"
        table.add_row(a.name, f"{slow:,.5g} .. {fast:,.5g}", a.what, source)
    return table


def sections(plan: Plan, best: Plan | None, price: float) -> list[tuple[str, list[Row]]]:
    """All tables."""
    return [
        ("Model", _model(plan)),
        ("Learner memory per GPU", _learner(plan)),
        ("Generator memory per GPU", _generator(plan)),
        ("One step", _step(plan)),
        ("The run", _run(plan, price)),
        ("Balance", _balance(plan, best)),
    ]


def span(plan: Plan, value: Callable[[Corner], float], form: str = ",.0f", unit: str = "", scale: float = 1.0) -> str:
    """A figure of both corners, smaller first; one number where they agree."""
    low, high = sorted((value(plan.fast) / scale, value(plan.slow) / scale))
    text = format(low, form) if format(low, form) == format(high, form) else f"{low:{form}} to {high:{form}}"
    return f"{text} {unit}".rstrip()


def _model(plan: Plan) -> list[Row]:
    shape = plan.shape
    active = f"= {shape.active / 1e9:,.2f} billion"
    remark = f"{shape.experts} experts, {shape.chosen} chosen" if shape.expert_layers else "dense"
    return [
        ("parameters", f"= {shape.total / 1e9:,.2f} billion", remark),
        ("parameters a token passes", active, ""),
        ("KV cache per token", f"= {shape.kv_values * plan.dtype / 1024:,.0f} KiB", f"{plan.recipe.precision.dtype}"),
        ("one checkpoint", f"= {gib(plan.checkpoint_bytes)}", "weights and both moments, float32"),
        ("one publication", f"= {gib(plan.publish_bytes)}", "weights as the generators hold them"),
    ]


def _learner(plan: Plan) -> list[Row]:
    m = plan.slow.learner_memory
    how = "inputs of layers kept, the rest computed again" if plan.recompute else "everything kept (no recomputation)"
    tokens = max(plan.recipe.optimizer.tokens_per_micro_batch, plan.slow.work.longest)
    return [
        ("weights, float32", f"= {gib(m.weights)}", f"sharded over {plan.split.learners}"),
        ("gradients, float32", f"= {gib(m.gradients)}", ""),
        ("AdamW moments", f"= {gib(m.moments)}", ""),
        ("copy of half a batch's gradient", f"= {gib(m.noise_scale)}", "for the gradient noise scale"),
        ("gathered layers, embedding, head", f"~ {gib(m.gathered)}", "two layers ahead, gradients of one"),
        ("activations", f"~ {gib(m.activations)}", f"{tokens:,} tokens; {how}"),
        ("logits", f"~ {gib(m.logits)}", f"float32, {plan.shape.vocabulary:,} words"),
        ("reserve", span(plan, lambda c: c.learner_memory.reserve, ",.1f", "GiB", 2**30), ""),
        ("sum", span(plan, lambda c: c.learner_memory.total, ",.1f", "GiB", 2**30), f"of {gib(plan.gpu.memory)}"),
    ]


def _generator(plan: Plan) -> list[Row]:
    m = plan.slow.generator_memory
    return [
        ("weights", f"= {gib(m.weights)}", f"{plan.split.gpus_per_generator} GPU per generator"),
        ("left for KV cache", span(plan, lambda c: max(0.0, c.generator_memory.cache), ",.1f", "GiB", 2**30), ""),
        ("average completions that fit", span(plan, lambda c: max(0.0, c.generator_memory.fitting)), "per generator"),
        ("longest ones that fit", span(plan, lambda c: max(0.0, c.generator_memory.fitting_longest)), "per generator"),
        ("decoded at once", span(plan, lambda c: c.decoding.concurrent), "least of cache, slots, staleness"),
    ]


def _step(plan: Plan) -> list[Row]:
    bound = " / ".join(sorted({plan.fast.decoding.bound, plan.slow.decoding.bound}))
    heads = (c.learning.head / c.learning.seconds for c in (plan.fast, plan.slow))
    return [
        ("completions", f"= {plan.slow.work.completions:,}", ""),
        ("tokens generated", span(plan, lambda c: c.work.generated, ",.2f", "million", 1e6), ""),
        ("tokens trained", span(plan, lambda c: c.work.trained, ",.2f", "million", 1e6), "groups with signal"),
        ("generation", span(plan, lambda c: c.work.generation_flops, ",.0f", "PFLOP", 1e15), ""),
        ("training", span(plan, lambda c: c.work.training_flops, ",.0f", "PFLOP", 1e15), ""),
        ("tokens per second of a generator", span(plan, lambda c: c.decoding.tokens_per_second), f"bound by {bound}"),
        (
            "needed from all generators",
            span(plan, lambda c: c.needed_tokens_per_second),
            "so that the learner never waits",
        ),
        ("generating", span(plan, lambda c: c.generation_seconds, ",.1f", "s"), ""),
        (
            "learning",
            span(plan, lambda c: c.learning.seconds, ",.1f", "s"),
            f"head {' to '.join(f'{h:.0%}' for h in heads)}",
        ),
        (
            "publishing weights",
            span(plan, lambda c: c.publish_seconds, ",.2f", "s"),
            f"over {plan.link}; {_links(plan)}",
        ),
        ("a step", span(plan, lambda c: c.step_seconds, ",.1f", "s"), plan.recipe.staleness.mode),
        ("GPU-hours of a step", span(plan, lambda c: c.step_seconds * plan.split.gpus / 3600, ",.2f"), ""),
    ]


def _links(plan: Plan) -> str:
    seconds = {name: transfer_seconds(plan.publish_bytes, r, plan.slow.values) for name, r in LINKS.items() if r}
    return ", ".join(f"{name} {value:,.1f} s" for name, value in seconds.items())


def _run(plan: Plan, price: float) -> list[Row]:
    gpus, steps = plan.split.gpus, plan.recipe.steps

    def hours(c: Corner) -> float:
        return c.gpu_hours(gpus, steps)

    def judged(c: Corner) -> float:
        return c.evaluations.times * c.evaluations.seconds * gpus / 3600

    spec = plan.recipe.evaluation
    rows = [
        ("steps", f"= {steps:,}", ""),
        ("GPU-hours", span(plan, hours), "training and evaluation"),
        ("days", span(plan, lambda c: hours(c) / gpus / 24, ",.1f"), f"on {gpus} GPUs"),
        (
            "evaluations",
            f"= {plan.slow.evaluations.times:,}",
            f"{spec.prompts:,} prompts x {spec.k}, every {spec.every}",
        ),
        ("GPU-hours of evaluation", span(plan, judged), span(plan, lambda c: 100 * judged(c) / hours(c), ",.1f", "%")),
        (
            "writing a checkpoint",
            span(plan, lambda c: c.checkpoint_seconds, ",.0f", "s"),
            "write, and read for its checksum",
        ),
        (
            "checkpoints on disk",
            f"= {gib(plan.recipe.checkpoint.keep * plan.checkpoint_bytes)}",
            "kept; more while best and good differ",
        ),
    ]
    if price:
        rows.append(("price", span(plan, lambda c: hours(c) * price), f"at {price:g} per GPU-hour"))
    return rows


def _balance(plan: Plan, best: Plan | None) -> list[Row]:
    sides = {"generators" if c.generators_wait else "learner" for c in (plan.fast, plan.slow)}
    who = "the " + sides.pop() if len(sides) == 1 else "either, by the assumptions"
    rows = [
        (
            "who waits",
            who,
            span(plan, lambda c: c.generation_seconds / c.learning.seconds, ",.2f", "x generation / learning"),
        ),
        (
            "staleness",
            span(plan, lambda c: c.lag, ",.1f", "steps"),
            f"on average; at most {plan.recipe.staleness.max_staleness}",
        ),
        ("the longest completion takes", span(plan, lambda c: c.longest_steps, ",.1f", "steps"), ""),
    ]
    if best is not None:
        s = best.split
        rows.append(
            (
                "shortest step",
                f"{s.generators} + {s.learners}",
                ("generators + learner ranks, " if fits(best) else "none fits; generators + learner ranks, ")
                + span(best, lambda c: c.step_seconds, ",.1f", "s"),
            )
        )
    return rows


def document(plan: Plan, best: Plan | None, notes: Sequence[str], price: float) -> dict[str, Any]:
    """Everything as JSON values, both corners whole."""
    gpus, steps = plan.split.gpus, plan.recipe.steps
    return {
        "recipe": plan.recipe.name,
        "computed": True,
        "shape": {**asdict(plan.shape), "parameters": plan.shape.total, "active_parameters": plan.shape.active},
        "gpu": asdict(plan.gpu),
        "split": {**asdict(plan.split), "gpus": gpus},
        "best_split": asdict(best.split) if best else None,
        "recompute": plan.recompute,
        "link": plan.link,
        "kv_bytes_per_token": plan.shape.kv_values * plan.dtype,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "publish_bytes": plan.publish_bytes,
        "steps": steps,
        **{name: _corner(corner, gpus, steps, price) for name, corner in (("fast", plan.fast), ("slow", plan.slow))},
        "warnings": list(notes),
    }


def _corner(c: Corner, gpus: int, steps: int, price: float) -> dict[str, Any]:
    hours = c.gpu_hours(gpus, steps)
    return {
        "assumptions": c.values._asdict(),
        **{name: value for name, value in asdict(c).items() if name != "values"},
        "learner_bytes_per_gpu": c.learner_memory.total,
        "generator_tokens_per_second": c.decoding.tokens_per_second,
        "learning_seconds": c.learning.seconds,
        "gpu_hours": hours,
        "price": hours * price if price else None,
    }
