"""Time and completions to a held-out pass rate, ours and TRL's: `python bench/trl/learning.py --seeds 1 2 3`

Every arm starts from the same weights and is judged by the same evaluation every 10 steps, which is not timed. A run ends
at the target or at the limit of steps; the one that does not get there counts as such. A run whose result is there is not
repeated. Prints a table; the curves are in build/trl-learning.json.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

import shared

ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ours": ("ours", ("--set", "rollout.overlap=true")),
    "TRL, defaults": ("trl", ("--config", "default")),
    "TRL, nearest to ScaleRL": ("trl", ("--config", "scalerl")),
}


def run(name: str, out: Path, start: Path, options: argparse.Namespace, seed: int) -> list[dict[str, float]]:
    """Evaluations of one run; runs it if need be."""
    side, extra = ARMS[name]
    if not (out / "result.json").exists():
        command = [*shared.command(side, start), "--out", str(out), "--seed", str(seed), *extra]
        command += ["--steps", str(options.steps), "--every", str(options.every), "--until", str(options.until)]
        # Ours has a core for the generator and one for the learner; TRL's phases take turns on both.
        command += ["--threads", str(options.threads if side == "trl" else max(1, options.threads // 2))]
        command += ["--micro-batch", str(options.micro_batch)] if side == "trl" else []
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "terminal.log", "wb") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
    result = shared.read_result(out)
    assert result is not None
    return result["evaluations"]  # type: ignore[no-any-return]


def reached(evaluations: list[dict[str, float]], target: float) -> dict[str, float] | None:
    """The first evaluation at the target."""
    return next((point for point in evaluations if point["pass_ratio"] >= target), None)


def row(name: str, curves: list[list[dict[str, float]]], target: float) -> tuple[str, ...]:
    """An arm over its seeds: medians of those that got there, and how many did."""
    points = [point for point in (reached(curve, target) for curve in curves) if point]
    last = [curve[-1] for curve in curves]
    rate = sum(point["seconds"] for point in last) / max(1, sum(point["step"] for point in last))
    if not points:
        best = max(point["pass_ratio"] for curve in curves for point in curve)
        return name, f"0 of {len(curves)}", f"best {best:.3f}", "", f"after {last[0]['step']}", "", f"{rate:.3f}"
    cells = []
    for key, shape in (("seconds", "{:.0f}"), ("cpu", "{:.0f}"), ("step", "{:.0f}"), ("completions", "{:.0f}")):
        values = [point[key] for point in points]
        each = ", ".join(shape.format(value) for value in values)
        cells.append(f"{shape.format(statistics.median(values))} ({each})")
    return name, f"{len(points)} of {len(curves)}", *cells, f"{rate:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--until", type=float, default=0.85)
    parser.add_argument("--steps", type=int, default=400, help="limit")
    parser.add_argument("--every", type=int, default=10, help="steps between evaluations")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=128, help="TRL: sequences per pass")
    parser.add_argument("--out", type=Path, default=shared.BUILD / "trl-learning")
    options = parser.parse_args()
    start = shared.start(shared.open_recipe("0.5M"))
    curves: dict[str, list[list[dict[str, float]]]] = {name: [] for name in options.arms}
    for seed in options.seeds:
        for name in options.arms:
            out = options.out / name.replace(", ", "-").replace(" ", "-") / str(seed)
            curves[name].append(run(name, out, start, options, seed))
            print(f"seed {seed}, {name}: {curves[name][-1][-1]}", flush=True)
    columns = ("arm", "reached", "seconds", "CPU seconds", "steps", "completions", "s/step")
    rows = [row(name, each, options.until) for name, each in curves.items()]
    print(f"\nTo a held-out pass rate of {options.until}: median (every seed)\n\n{shared.table(columns, rows)}")
    report: dict[str, Any] = {"options": {k: str(v) for k, v in vars(options).items()}, "curves": curves}
    (shared.BUILD / "trl-learning.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
