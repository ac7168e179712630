"""What the Ray path costs and what more generators bring, on this machine: the same recipe in several ways, alternating.

    python bench/cluster/overhead.py                  6 ways, 3 rounds of 30 steps of the tiny model
    python bench/cluster/overhead.py --rounds 1 --steps 12

    turns       one process, generator and learner in turns            what `scalerl train tiny` does
    overlap     one process, the learner in a thread of its own
    ray-1       learner in the driver, 1 generator process
    ray-2, -4   the same with 2 and 4 generator processes
    ranks-2     2 FSDP2 ranks and 2 generator processes

A step is the time between two lines of steps.jsonl; the first third of a run is left out, and there is no evaluation or
checkpoint in the rest. Per way: median over the steps of a round; then median, smallest and largest over the rounds. CPU
seconds are those of the driver and of every process below it, Ray's own included, over the same steps: unlike the time of a
step, they mean the same on a machine that does something else beside.
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
    command = [sys.executable, "-m", "trainer", "tiny", "--run", str(run), "--quiet", *cluster, *sets]
    began = time.time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    marks = [cpu_at(run / "steps.jsonl", step, process) for step in (steps // 3, steps - 2)]
    if process.wait():
        raise SystemExit(f"{way} failed")
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    kept = lines[steps // 3 : -1]  # the last step is followed by evaluation and checkpoint
    gaps = [after["time"] - before["time"] for before, after in pairwise(kept)]
    tokens = [after["generated_tokens"] - before["generated_tokens"] for before, after in pairwise(kept)]
    return {
        "step": statistics.median(gaps),
        "cpu": (marks[1][1] - marks[0][1]) / (marks[1][0] - marks[0][0]),
        "tokens": sum(tokens) / sum(gaps),
        "sync": statistics.median(line["phase_seconds"].get("syncing_weights", 0.0) for line in kept),
        "lag": statistics.mean(line["staleness_mean"] for line in kept),
        "start": lines[0]["time"] - began,
    }


def cpu_at(steps: Path, step: int, process: "subprocess.Popen[bytes]") -> tuple[int, float]:
    """The step that has been reached when `step` is seen, and the CPU seconds of the process and of all below it by then."""
    while not steps.exists() or (done := steps.read_bytes().count(b"\n")) < step:
        if process.poll() is not None:
            raise SystemExit("a run ended before its time")
        time.sleep(0.02)
    return done, family_seconds(process.pid)


def family_seconds(pid: int) -> float:
    """CPU seconds of a process and of all below it that are alive."""
    parents, seconds = dict[int, int](), dict[int, float]()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.parent.name)] = int(fields[1])
        seconds[int(entry.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    family, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in family} - family
        family, grown = family | more, bool(more)
    return sum(seconds.get(member, 0.0) for member in family)


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
    print(
        "\nway       s/step                 CPU s/step             tokens/s            sync s                 lag    start s"
    )
    for way, rounds in results.items():
        of = {name: [result[name] for result in rounds] for name in rounds[0]}
        print(
            f"{way:8s}  {spread(of['step']):22s} {spread(of['cpu']):22s} {spread(of['tokens'], 0):19s} {spread(of['sync']):22s} "
            f"{statistics.median(of['lag']):.1f}    {statistics.median(of['start']):.0f}"
        )


if __name__ == "__main__":
    main()
