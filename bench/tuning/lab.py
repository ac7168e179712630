"""One real tiny run for bench/tuning/compare.py: what it starts from, and what it has cost so far.

Costs are counted in completions, not in seconds: they are what a step consists of, and they are the same on a busy machine.

    wall     completions that the run's own device has worked on: of the run, and of arms that it waited for
    total    those and all completions of spare arms or other members of a population
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane.contract.rundir import RunDir, read_lines
from trainer.build import assemble, identify
from trainer.loop import Loop
from trainer.probe.helper import Deaf
from trainer.recipe import Recipe, find_recipe, load_recipe
from trainer.stopwatch import Stopwatch
from trainer.warmstart import warm_started

PROMPTS, SAMPLES, EVERY = 8, 8, 40
"""A step of the well-tuned run, and steps between two evaluations."""
STEP = PROMPTS * SAMPLES
"""Completions of such a step. The budget of a comparison is so many of them."""
STARTS: dict[str, dict[str, str]] = {
    "lr6low": {"optimizer.lr": "1.667e-5"},
    "lr3low": {"optimizer.lr": "3.333e-5"},
    "tuned": {},
    "lr3high": {"optimizer.lr": "3e-4"},
    "batch_small": {"batch.prompts_per_step": "2"},
    "clip_tight": {"loss.ratio_max": "1.02"},
}
SPACE = {"lr_scale": (0.25, 8.0), "ratio_max": (1.01, 20.0), "prompts_per_step": (2.0, 32.0)}
"""What a method may change, and how far."""
RAILS = "{lr_scale: {min: 0.25, max: 8.0}, prompts_per_step: {min: 2, max: 32}, ratio_max: {min: 1.01, max: 20}}"


def space_of(start: str) -> dict[str, tuple[float, float]]:
    """What the rivals search: the learning rate, and what is set badly at this start. A larger space would only spread them thinner."""
    also = {"batch_small": "prompts_per_step", "clip_tight": "ratio_max"}.get(start)
    return {name: SPACE[name] for name in ("lr_scale", also) if name}


def recipe_of(start: str, seed: int, steps: int | None = None) -> Recipe:
    """The tiny recipe, smaller and set badly in one way. With `steps` it says how long it is meant to be, in steps of `PROMPTS`."""
    planned = 100_000 if steps is None else steps * PROMPTS // int(STARTS[start].get("batch.prompts_per_step", PROMPTS))
    keys = {
        "seed": str(seed),
        "steps": str(planned),
        "batch.prompts_per_step": str(PROMPTS),
        "batch.samples_per_prompt": str(SAMPLES),
        "rollout.slots": str(PROMPTS * SAMPLES),
        "evaluation.every": "100000",
        "evaluation.prompts": "400",
        "evaluation.k": "1",
        "checkpoint.every": "100000",
        "checkpoint.keep": "1",
        "guard_rails.bounds": RAILS,
        "guard_rails.max_relative_change": "3.0",
        "guard_rails.cooldown_steps": "0",
    }
    return load_recipe(find_recipe("tiny"), {**keys, **STARTS[start]})


@dataclass
class Costs:
    """Completions so far, and the curve: (wall, total, step, held-out pass rate)."""

    wall: int = 0
    spare: int = 0
    curve: list[tuple[int, int, int, float]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.wall + self.spare


def made(root: Path, recipe: Recipe, control: Any = None, tunables: dict[str, float] | None = None) -> Loop:
    """A loop with its weights published, ready for steps."""
    start = warm_started(recipe.model, recipe.task, recipe.warm_start)  # type: ignore[arg-type]
    rundir = RunDir(root)
    root.mkdir(parents=True, exist_ok=True)
    identify(recipe, rundir)
    return assemble(recipe, rundir, start, control or Deaf(), tunables or recipe.tunables(), Stopwatch())


def counted(loop: Loop, add: Callable[[int], None]) -> None:
    """Call `add` with the completions of each step that the loop's stepper takes."""
    step = loop.machine.stepper.step

    def counting() -> Any:
        stepped = step()
        if stepped is not None:
            add(sum(len(scored.verdicts) for scored in stepped.batch))
        return stepped

    loop.machine.stepper.step = counting  # type: ignore[method-assign]


def held_out(loop: Loop, told: RunDir | None = None) -> float:
    """Pass rate of the weights in force; `told`: as an evaluation of this run itself, which its controller sees."""
    loop.machine.watch.lap()
    if told is not None:
        loop._evaluation()
        return float(list(read_lines(told.evals))[-1]["pass_ratio"])
    results = loop._evaluate()
    loop.machine.watch.lap()
    return results[0].pass_ratio


class Clock:
    """CPU seconds of this process since it was made."""

    def __init__(self) -> None:
        self._since = time.process_time()

    @property
    def seconds(self) -> float:
        return time.process_time() - self._since
