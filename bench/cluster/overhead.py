"""What the Ray path costs and what more generators bring, on this machine: the same recipe in several ways, alternating.

    python bench/cluster/overhead.py                  5 ways, 3 rounds of 30 steps of the tiny model
    python bench/cluster/overhead.py --rounds 1 --steps 12

    turns       one process, generator and learner in turns            what `scalerl train tiny` does
    overlap     one process, the learner in a thread of its own
    ray-1       learner in the driver, 1 generator process
    ray-2, -4   the same with 2 and 4 generator processes
    ranks-2     2 FSDP2 ranks and 2 generator processes

A step is the time between two lines of steps.jsonl; the first third of a run is left out, and there is no evaluation or
checkpoint in the rest. Per way: median over the steps of a round; then median, smallest and largest over the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

WAYS: dict[str, list[str]] = {
    "turns": [],
    "overlap": ["rollout.overlap=true"],
    "ray-1": ["cluster.generators.max=1"],
    "ray-2": ["cluster.generators.max=2"],
    "ray-4": ["cluster.generators.max=4"],
    "ranks-2": ["cluster.generators.max=2", "cluster.learners.ranks=2"],
}


def once(way: str, steps: int, run: Path) -> dict[str, float]:
    """One run; seconds per step, of a weight transfer, and before the first step."""
    never = steps + 1
    keys = [
        f"steps={steps}",
        f"evaluation.every={never}",
        f"checkpoint.every={never}",
        "evaluation.prompts=8",
        *WAYS[way],
    ]
    sets = [word for key in keys for word in ("--set", key)]
    cluster = ["--cluster", "ray"] if way.startswith(("ray", "ranks")) else []
    started = time.time()
    command = [sys.executable, "-m", "trainer", "tiny", "--run", str(run), "--quiet", *cluster, *sets]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    kept = lines[steps // 3 : -1]  # the last step is followed by evaluation and checkpoint
    gaps = [after["time"] - before["time"] for before, after in pairwise(kept)]
    tokens = [after["generated_tokens"] - before["generated_tokens"] for before, after in pairwise(kept)]
    return {
        "step": statistics.median(gaps),
        "tokens": sum(tokens) / sum(gaps),
        "sync": statistics.median(line["phase_seconds"].get("syncing_weights", 0.0) for line in kept),
        "training": statistics.median(line["phase_seconds"].get("training", 0.0) for line in kept),
        "lag": statistics.mean(line["staleness_mean"] for line in kept),
        "start": lines[0]["time"] - started,
    }


def spread(values: list[float], digits: int = 3) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    asked = options.parse_args()
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in asked.ways}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(asked.rounds):
            for way in asked.ways:
                result = once(way, asked.steps, Path(scratch) / f"{way}-{number}")
                results[way].append(result)
                shown = "  ".join(f"{name} {value:.3f}" for name, value in result.items())
                print(f"round {number + 1}  {way:8s}  {shown}  load {os.getloadavg()[0]:.1f}", flush=True)
    print("\nway       s/step                 tokens/s            sync s                 lag    start s")
    for way, rounds in results.items():
        of = {name: [result[name] for result in rounds] for name in rounds[0]}
        print(
            f"{way:8s}  {spread(of['step']):22s} {spread(of['tokens'], 0):19s} {spread(of['sync']):22s} "
            f"{statistics.median(of['lag']):.1f}    {statistics.median(of['start']):.0f}"
        )


if __name__ == "__main__":
    main()
