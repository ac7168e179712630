"""One run of ours, through `scalerl train` and what it writes: `python bench/trl/run_ours.py --out DIR ...`

result.json      from steps.jsonl and evals.jsonl of DIR/run
a step's time    all phases but evaluation and checkpoints, as TRL's; its CPU time from `utilization`
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import shared

NOT_TRAINING = ("evaluating", "checkpointing")


def lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a file that may be growing."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def step_of(line: dict[str, Any], cores: int) -> dict[str, float]:
    """A line of steps.jsonl in the words of `result.json`."""
    phases = line["phase_seconds"]
    wall = sum(phases.values())
    skip = sum(phases.get(name, 0.0) for name in NOT_TRAINING)
    return {
        "seconds": wall - skip,
        # Utilisation is over the whole step; where that holds an evaluation, its share is taken to be as busy as the rest.
        "cpu": line["utilization"] * (wall - skip) * cores,
        "completions": line["n"],
        "generate": phases.get("generating", 0.0),
        "learn": phases.get("training", 0.0),
        "length": line["mean_length"],
        "passed": line["pass_ratio"],
    }


def overrides(options: argparse.Namespace) -> list[str]:
    """What `scalerl train` is told."""
    pairs = [
        *shared.settings(options.model),
        f"steps={options.steps}",
        f"seed={options.seed}",
        f"threads={options.threads}",
        f"evaluation.every={options.every}",
        f"checkpoint.every={shared.NEVER}",
        *options.set,
    ]
    if options.every == shared.NEVER:
        pairs.append("evaluation.prompts=4")  # the first and the last one cannot be switched off
    return [word for pair in pairs for word in ("--set", pair)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=list(shared.MODELS), default="0.5M")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=shared.NEVER, help="steps between evaluations")
    parser.add_argument("--until", type=float, default=2.0, help="end once this held-out pass rate is reached")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="more overrides of the recipe")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if shared.read_result(options.out):
        return
    run = options.out / "run"
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "trainer", shared.RECIPE, "--run", str(run), "--quiet", *overrides(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    process = subprocess.Popen(command, cwd=shared.ROOT, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if any(line["pass_ratio"] >= options.until for line in lines(run / "evals.jsonl")):
            process.send_signal(signal.SIGTERM)
            process.wait()
        time.sleep(0.5)
    if process.returncode:
        sys.exit(process.returncode)
    cores = options.threads * (2 if "rollout.overlap=true" in options.set else 1)
    steps = [step_of(line, cores) for line in lines(run / "steps.jsonl")]
    evaluations = []
    for line in lines(run / "evals.jsonl") if options.every < shared.NEVER else []:
        before = steps[: line["step"]]
        done = {key: sum(step[key] for step in before) for key in ("seconds", "cpu", "completions")}
        evaluations.append({"step": line["step"], **done, "pass_ratio": line["pass_ratio"]})
        if line["pass_ratio"] >= options.until:
            break
    shared.write_result(options.out, steps, evaluations)


if __name__ == "__main__":
    main()
