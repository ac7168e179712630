"""Seconds per optimizer step of 128 completions, ours and TRL's: `python bench/trl/speed.py --rounds 3`

The runs of a round follow each other in one session (ours, TRL, ours, TRL, ...), so that what else the machine does meets
both. A run whose result is there is not repeated. Prints a table; the numbers are in build/trl-speed.json.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

import shared

WARM_UP = 3
"""Steps left out: threads start, memory is allocated, our pipeline fills."""
Arm = tuple[str, tuple[str, ...]]
ARMS: dict[str, Arm] = {
    "ours, 1 thread": ("ours", ("--threads", "1")),
    "TRL, 1 thread, 128 rows": ("trl", ("--threads", "1", "--micro-batch", "128")),
    "ours, 2 cores": ("ours", ("--threads", "1", "--set", "rollout.overlap=true")),
    "TRL, 2 threads, 128 rows": ("trl", ("--threads", "2", "--micro-batch", "128")),
    "TRL, 1 thread, 16 rows": ("trl", ("--threads", "1", "--micro-batch", "16")),
    "TRL, 2 threads, 16 rows": ("trl", ("--threads", "2", "--micro-batch", "16")),
    "ours, 2 threads": ("ours", ("--threads", "2")),
}


def run(arm: Arm, out: Path, model: str, start: Path, steps: int, seed: int) -> list[dict[str, float]]:
    """Steps of one run after the warm-up; runs it if need be."""
    side, extra = arm
    if not (out / "result.json").exists():
        command = [*shared.command(side, start), "--out", str(out), "--model", model]
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "terminal.log", "wb") as log:
            subprocess.run(
                [*command, "--steps", str(steps), "--seed", str(seed), *extra], check=True, stdout=log, stderr=log
            )
    result = shared.read_result(out)
    assert result is not None
    return result["steps"][WARM_UP:-1]  # type: ignore[no-any-return]


def summary(rounds: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over all steps; the spread is that of the rounds."""
    steps = [step for steps in rounds for step in steps]
    medians = [statistics.median(step["seconds"] for step in steps) for steps in rounds]
    fields = ("seconds", "cpu", "generate", "learn", "length", "passed")
    return {
        **{field: statistics.median(step[field] for step in steps) for field in fields},
        "rounds": medians,
        "steps": len(steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=list(shared.MODELS), default=list(shared.MODELS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--steps", type=int, nargs="+", default=[40, 16], help="steps of a run, for each model")
    parser.add_argument("--out", type=Path, default=shared.BUILD / "trl-speed")
    options = parser.parse_args()
    report: dict[str, Any] = {}
    for model, steps in zip(options.models, options.steps, strict=False):
        start = shared.start(shared.open_recipe(model))
        found: dict[str, list[list[dict[str, float]]]] = {name: [] for name in options.arms}
        for number in range(1, options.rounds + 1):
            for name in options.arms:
                out = options.out / model / name.replace(", ", "-").replace(" ", "") / str(number)
                found[name].append(run(ARMS[name], out, model, start, steps, number))
                print(f"{model}, round {number}, {name}: {summary(found[name][-1:])['seconds']:.3f} s/step", flush=True)
        report[model] = {name: summary(rounds) for name, rounds in found.items()}
        ours = [r["seconds"] for name, r in report[model].items() if ARMS[name][0] == "ours"]
        best = min(ours, default=float("nan"))
        rows = [
            (
                name, f"{r['seconds']:.3f}", f"{min(r['rounds']):.3f} - {max(r['rounds']):.3f}", f"{r['cpu']:.3f}",
                f"{r['generate']:.3f}", f"{r['learn']:.3f}", f"{r['length']:.1f}", f"{r['seconds'] / best:.2f}",
            )
            for name, r in report[model].items()
        ]  # fmt: skip
        columns = ("arm", "s/step", "medians of rounds", "CPU s/step", "generation", "learning", "tokens", "times ours")
        print(
            f"\n{model} parameters, medians of {options.rounds} runs of {steps} steps\n\n{shared.table(columns, rows)}\n"
        )
    (shared.BUILD / "trl-speed.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
