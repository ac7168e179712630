"""Undisturbed runs of the tiny model, for forecasts that nobody has tuned on: one small CSV per run.

    python bench/forecast/collect_tiny_runs.py [--runs 34] [--work DIR] [--out bench/forecast/tiny_runs]

Every run has its own seed; learning rate, batch and difficulty take turns. One run at a time, on one thread; a run takes
well under a minute of CPU. A run whose CSV is there is skipped, one that was stopped goes on, so the command can be repeated.
"""

import argparse
import csv
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

LONG, SHORT, FIRST = (115, 5), (80, 4), 4  # (steps, steps between evaluations): the first four runs are longer
PROMPTS, K = 256, 2
LRS = (1e-4, 1.5e-4, 2e-4, 3e-4)
BATCHES = ((8, 8), (6, 8), (6, 12))
OPERANDS = ((2, 5), (2, 4), (2, 3))
SETTINGS = {
    "threads": 1,
    "model.hidden": 96,
    "model.layers": 2,
    "model.heads": 3,
    "model.kv_heads": 1,
    "model.mlp": 256,
    "warm_start.threads": 1,
    "task.held_out_prompts": PROMPTS,
    "length.max_new_tokens": 52,
    "length.thinking_budget": 52,
    "evaluation.prompts": PROMPTS,
    "evaluation.k": K,
    "evaluation.slots": 512,
    "checkpoint.every": 1000,
    "checkpoint.keep": 2,
}


def settings_of(index: int) -> dict[str, object]:
    """The settings of one run: all three axes change from run to run, and each value meets each other one."""
    prompts, samples = BATCHES[index % 3]
    steps, every = LONG if index < FIRST else SHORT
    return SETTINGS | {
        "steps": steps,
        "evaluation.every": every,
        "seed": 1000 + index,
        "name": f"tiny-{index:02d}",
        "optimizer.lr": LRS[index % 4],
        "batch.prompts_per_step": prompts,
        "batch.samples_per_prompt": samples,
        "rollout.slots": prompts * samples,
        "task.operands": list(OPERANDS[(index // 4) % 3]),
    }


def train(index: int, root: Path) -> None:
    """Run to the end in a process of its own, or raise. A fork, so that the heavy imports are paid for once."""
    child = multiprocessing.get_context("fork").Process(target=_train, args=(index, root))
    child.start()
    child.join()
    if child.exitcode != 0:
        raise RuntimeError(f"{root}: the trainer ended with exit code {child.exitcode}")


def _train(index: int, root: Path) -> None:
    from trainer.cli import train as go

    pairs = [f"{key}={json.dumps(value)}" for key, value in settings_of(index).items()]
    go("tiny", root, pairs, quiet=True)


def write(index: int, root: Path, path: Path) -> None:
    """The evaluations of a run as a CSV; it appears whole or not at all."""
    rows = [json.loads(line) for line in (root / "evals.jsonl").read_text().splitlines()]
    settings = settings_of(index)
    size = settings["batch.prompts_per_step"], settings["batch.samples_per_prompt"]
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(
            ("step", "completions", "eval_pass_ratio", "stderr", "prompts", "k", "lr", "batch", "operands", "seed")
        )
        for row in rows:
            out.writerow(
                (
                    row["step"], row["account"]["completions"], round(row["pass_ratio"], 7),
                    round(row["pass_ratio_stderr"], 5), row["prompts"], row["k"], settings["optimizer.lr"],
                    f"{size[0]}x{size[1]}", "-".join(map(str, settings["task.operands"])), settings["seed"],
                )
            )  # fmt: skip
    part.rename(path)


def main() -> None:
    """Collect what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=34)
    parser.add_argument("--work", type=Path, default=Path("runs/tiny-forecast"), help="folder of the run directories")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny_runs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    import trainer.cli
    import trainer.session  # noqa: F401 - what a forked run would load itself

    for index in range(arguments.runs):
        path, root = arguments.out / f"tiny-{index:02d}.csv", arguments.work / f"tiny-{index:02d}"
        if path.exists():
            continue
        began = time.monotonic()
        train(index, root)
        write(index, root, path)
        shutil.rmtree(root)
        print(f"{path.name}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
