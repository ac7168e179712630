"""PipelineRL-8 against PPO-off-policy-8 and synchronous training: staleness, wall time, learning. The tiny recipe.

Each mode runs in a process of its own, one after the other, round by round, so that a busy machine disturbs all alike.
Where modes differ in time on one core it is not because phases overlap (they cannot) but because continuous batching
keeps the rows full: a synchronous batch ends with a few long completions decoded almost alone.
With `rollout.overlap` phases do overlap, on two cores.

    python bench/off_policy.py [--steps 150] [--seeds 3] [--out build/off_policy]
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

MODES = {
    "pipeline-8": {"staleness.mode": "pipeline", "staleness.max_staleness": "8"},
    "pipeline-8, twice the slots": {
        "staleness.mode": "pipeline",
        "staleness.max_staleness": "8",
        "rollout.slots": "256",
    },
    "pipeline-8, overlap": {
        "staleness.mode": "pipeline",
        "staleness.max_staleness": "8",
        "rollout.overlap": "true",
    },
    "ppo-off-policy-8": {"staleness.mode": "ppo_off_policy", "staleness.max_staleness": "8"},
    "synchronous": {"staleness.mode": "ppo_off_policy", "staleness.max_staleness": "1"},
}


def train(run: Path, seed: int, steps: int, settings: dict[str, str]) -> None:
    """One run; a finished one is kept."""
    command = [sys.executable, "-m", "trainer", "tiny", "--run", str(run), "--quiet"]
    settings = {
        "seed": str(seed),
        "steps": str(steps),
        "evaluation.every": "25",
        "checkpoint.every": str(steps),
        **settings,
    }
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def lines(path: Path) -> list[dict]:
    """A JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def busy(line: dict) -> dict[str, float]:
    """Wall seconds of a step by phase, without evaluation and checkpoints."""
    return {k: v for k, v in line["phase_seconds"].items() if k not in ("evaluating", "checkpointing")}


def row(name: str, runs: list[Path]) -> str:
    """One line of the table over all seeds."""
    steps = [lines(run / "steps.jsonl") for run in runs]
    evals = [lines(run / "evals.jsonl") for run in runs]
    staleness: Counter[int] = Counter()
    for line in (line for run in steps for line in run):
        staleness.update({int(k): n for k, n in line["staleness"].items()})
    total = sum(staleness.values())
    shares = " ".join(f"{k}:{staleness[k] / total:.0%}" for k in sorted(staleness))
    phases = {
        phase: statistics.mean(line["phase_seconds"].get(phase, 0.0) for run in steps for line in run)
        for phase in ("generating", "training")
    }
    # Of each run the mean, not the median: ppo-off-policy generates once in k steps.
    seconds = [statistics.mean(sum(busy(line).values()) for line in run) for run in steps]
    dropped = sum(sum(line["dropped"].values()) for run in steps for line in run)
    ends = ", ".join(f"{run[-1]['pass_ratio']:.3f}" for run in evals)
    compute = ", ".join(f"{run[-1]['compute']:.0f}" for run in steps)
    return (
        f"| {name} | {', '.join(f'{s:.3f}' for s in seconds)} | {phases['generating']:.3f} |"
        f" {phases['training']:.3f} | {compute} | {shares} | {dropped} | {ends} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/off_policy"))
    args = parser.parse_args()
    for seed in range(1, args.seeds + 1):
        for name, settings in MODES.items():
            print(f"seed {seed}: {name}", file=sys.stderr, flush=True)
            train(args.out / f"{name.replace(' ', '-').replace(',', '')}-{seed}", seed, args.steps, settings)
    print(
        "| mode | seconds per step, mean of each run | generating | training | device-seconds in all | staleness at use |"
        " dropped groups | held-out pass rate at the end |\n" + "| --- " * 8 + "|"
    )
    for name in MODES:
        runs = [args.out / f"{name.replace(' ', '-').replace(',', '')}-{seed}" for seed in range(1, args.seeds + 1)]
        print(row(name, runs))


if __name__ == "__main__":
    main()
