"""What both sides share: settings, starting point, verifier, evaluation, and how a run is written down.

The only file here that imports `trainer`. It runs in both environments, which hold the same torch and transformers.

`result.json` of a run: `steps` has a line per optimizer step, `evaluations` one per held-out evaluation. Seconds are wall
time without evaluation and checkpoints; `seconds` of an evaluation are those of all steps before it.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
TRL_PYTHON = BUILD / "trl-env" / "bin" / "python"
sys.path.insert(0, str(ROOT))

RECIPE = "tiny"
MODELS: dict[str, tuple[str, ...]] = {
    "0.5M": (),
    "5.4M": (
        "model.hidden=320",
        "model.layers=5",
        "model.heads=10",
        "model.kv_heads=5",
        "model.head_dim=32",
        "model.mlp=800",
        "warm_start.steps=300",  # enough for completions of the usual length, which is all that a speed needs
    ),
}
COMMON = ("length.thinking_budget=128",)
"""TRL has no forced interruption. With a budget of twice the longest completion ours never interrupts either."""
NEVER = 1_000_000


def settings(model: str) -> list[str]:
    """Overrides of the recipe that both sides use."""
    return [*MODELS[model], *COMMON]


def open_recipe(model: str) -> Any:
    """The resolved recipe."""
    from trainer.recipe import find_recipe, load_recipe

    return load_recipe(find_recipe(RECIPE), dict(pair.split("=", 1) for pair in settings(model)))


def start(recipe: Any) -> Path:
    """Model directory that both sides start from; made once, then cached."""
    from trainer.warmstart import warm_started

    return warm_started(recipe.model, recipe.task, recipe.warm_start)


def command(side: str, directory: Path) -> list[str]:
    """How one run of a side is started; ours finds the same directory by itself."""
    script = str(Path(__file__).parent / f"run_{side}.py")
    if side == "ours":
        return [sys.executable, script]
    return [str(TRL_PYTHON), "-W", "ignore", script, "--start", str(directory)]


def open_task(recipe: Any, directory: Path) -> tuple[Any, Any]:
    """Task and tokenizer."""
    from trainer.model import load_tokenizer
    from trainer.tasks.arithmetic import Arithmetic

    tokenizer = load_tokenizer(directory)
    return Arithmetic(recipe.task, tokenizer), tokenizer


def evaluator(recipe: Any, directory: Path) -> Callable[[Any], float]:
    """Held-out pass rate of a model, by the evaluation that `scalerl train` does, on a copy of the weights."""
    from trainer.evaluate import evaluate
    from trainer.model import load_model
    from trainer.rollout.length import Interruption
    from trainer.rollout.torch_generator import TorchGenerator
    from trainer.types import Sampling, Version

    task, tokenizer = open_task(recipe, directory)
    copy = load_model(directory)
    closing = tokenizer.convert_tokens_to_ids("</think>")
    rule = Interruption(tuple(tokenizer.encode(recipe.length.closing_phrase)), closing, recipe.length.window)
    held_out = task.prompts("held_out")[: recipe.evaluation.prompts]
    sampling = Sampling(recipe.rollout.temperature, recipe.length.max_new_tokens, recipe.length.thinking_budget)
    generator = TorchGenerator(copy, recipe.evaluation.slots, rule, tokenizer.eos_token_id)

    def pass_rate(model: Any) -> float:
        generator.load(model.state_dict(), Version(0, 0))
        return float(evaluate(generator, task, tokenizer, held_out, recipe.evaluation.k, sampling).pass_ratio)

    return pass_rate


def write_result(out: Path, steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> None:
    """Whole or absent: a run with a `result.json` has ended and is not run again."""
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / ".result.json"
    temporary.write_text(json.dumps({"steps": list(steps), "evaluations": list(evaluations)}, indent=0) + "\n")
    os.replace(temporary, out / "result.json")


def read_result(out: Path) -> dict[str, Any] | None:
    """The result of a run that has ended."""
    path = out / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
