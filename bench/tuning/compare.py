"""Does tuning help a badly set run, and harm a well set one? Real tiny runs: starts x arms x seeds.

    none         no controller                                      spare       ours, arms beside the run
    inline       ours, arms in place of the run                     switchback  ours, turns inside the run
    auto         ours, inline, begun by the forecast alone
    pbt, pb2     Ray Tune, a population of four                     optuna      TPE on live segments, the best is kept

One JSON line per run goes to --out; a line that is there is not run again. Costs are counted in completions (lab.py). Reported are the
held-out pass rate at equal wall-clock (the budget of the run without a controller) and at equal total compute (the same budget
for everything together), the compute to 0.60 and 0.85, and harm: ending more than 0.01 below no controller.

    python -m bench.tuning.compare run --out ROWS [--starts lr6low,tuned] [--arms none,inline] [--seeds 0] [--minutes 30]
    python -m bench.tuning.compare summary --out ROWS [--picture FILE.png]
"""

import argparse
import json
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.tuning.lab import STARTS, STEP, Clock
from controlplane.contract.rundir import append_line, read_lines

ARMS = ("none", "inline", "spare", "auto", "switchback", "pbt", "pb2", "optuna")
POPULATIONS = ("pbt", "pb2")
HARM = 0.01
TARGETS = (0.6, 0.85)
"""Pass rates to which the compute is reported: what a good run reaches on the way, and the one that was asked for."""
Row = dict[str, Any]
Ends = dict[tuple[str, str], dict[int, float]]


def row(start: str, arm: str, seed: int, steps: int, keep: Path | None = None, share: float = 1.0) -> Row:
    """Run that share of the steps of one combination, in a folder that goes away, or stays below `keep`."""
    if arm in POPULATIONS:
        from bench.tuning.rivals import run
    else:
        from bench.tuning.ours import run
    clock, began = Clock(), time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="compare-"))
    try:
        costs, extra = run(root / "run", start, arm, seed, int(steps * share))
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            shutil.move(root / "run", keep / f"{start}-{arm}-{seed}")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    cpu = clock.seconds + extra.pop("cpu_members", 0.0)
    key = {"start": start, "arm": arm, "seed": seed, "steps": steps, "share": share}
    return {
        **key,
        "curve": costs.curve,
        "cpu_seconds": round(cpu, 1),
        "seconds": round(time.monotonic() - began, 1),
        **extra,
    }


def at(curve: list[list[float]], axis: int, budget: float) -> float:
    """Pass rate when `budget` completions were spent, between two evaluations on a straight line; NaN before the first one and where
    it was not run so far."""
    spent, rate = [point[axis] for point in curve], [point[3] for point in curve]
    return float(np.interp(budget, spent, rate, left=np.nan)) if spent[-1] >= 0.99 * budget else float("nan")


def compute_to(curve: list[list[float]], axis: int, target: float) -> float:
    """Completions until the target is reached for the first time, on a straight line between two evaluations; infinite where it
    is not."""
    reached = next((i for i, point in enumerate(curve) if point[3] >= target), None)
    if reached is None:
        return float("inf")
    before, after = curve[max(reached - 1, 0)], curve[reached]
    share = (target - before[3]) / (after[3] - before[3]) if after[3] > before[3] else 1.0
    return before[axis] + share * (after[axis] - before[axis])


def interval(values: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean and 90 % interval: a bootstrap over the seeds. One seed has no interval."""
    drawn = np.random.default_rng(seed).choice(values, (2000, len(values))).mean(1)
    return float(np.mean(values)), float(np.quantile(drawn, 0.05)), float(np.quantile(drawn, 0.95))


def ends(rows: list[Row], axis: int) -> Ends:
    """(start, arm) -> seed -> pass rate when the budget was spent; what was not run so far is left out."""
    found: Ends = {}
    for row in rows:
        rate = at(row["curve"], axis, budget(row))
        if np.isfinite(rate):
            found.setdefault((row["start"], row["arm"]), {})[row["seed"]] = rate
    return found


def paired(one: dict[int, float], other: dict[int, float]) -> list[float]:
    """Differences one - other at the seeds that both have."""
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def harm(found: Ends, start: str, arm: str) -> tuple[int, int]:
    """Runs that ended more than `HARM` below the same seed without a controller, and how many there were."""
    differences = paired(found.get((start, arm), {}), found.get((start, "none"), {}))
    return sum(round(d, 9) < -HARM for d in differences), len(differences)


def budget(row: Row) -> int:
    """Completions of a run of so many steps without a controller."""
    return int(row["steps"]) * STEP


def summary(rows: list[Row]) -> str:
    """A table in Markdown, one line for each start and arm."""
    found: dict[tuple[str, str], dict[int, Row]] = defaultdict(dict)
    for each in rows:
        found[each["start"], each["arm"]][each["seed"]] = each
    at_wall = ends(rows, 0)
    lines = [
        "| start | arm | seeds | at equal wall-clock | at equal total compute | total spent "
        f"| {' | '.join(f'to {target}, wall / total' for target in TARGETS)} | harmed | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for start in STARTS:
        for arm in ARMS:
            if mine := found.get((start, arm)):
                lines.append(_line(start, arm, list(mine.values()), harm(at_wall, start, arm)))
    return "\n".join(lines)


def _line(start: str, arm: str, mine: list[Row], harmed: tuple[int, int]) -> str:
    def said(values: list[float]) -> str:
        known = [value for value in values if np.isfinite(value)]
        if not known:
            return "not run so far"
        mean, low, high = interval(known)
        text = f"{mean:.3f} ({low:.3f} to {high:.3f})" if len(known) > 1 else f"{mean:.3f}"
        return text if len(known) == len(values) else f"{text}, {len(known)} of {len(values)} seeds"

    def reached(axis: int, target: float) -> str:
        values = [compute_to(r["curve"], axis, target) / budget(r) for r in mine]
        middle = float(np.median(values))
        if np.isfinite(middle):
            return f"{middle:.2f}"
        return "never" if np.isfinite([at(r["curve"], axis, budget(r)) for r in mine]).any() else "-"

    targets = " | ".join(f"{reached(0, target)} / {reached(1, target)}" for target in TARGETS)
    spent = float(np.mean([r["curve"][-1][1] / budget(r) for r in mine]))
    return (
        f"| {start} | {arm} | {len(mine)} | {said([at(r['curve'], 0, budget(r)) for r in mine])} "
        f"| {said([at(r['curve'], 1, budget(r)) for r in mine])} | {spent:.2f} | {targets} "
        f"| {f'{harmed[0]} of {harmed[1]}' if harmed[1] and arm != 'none' else '-'} | {np.mean([r['cpu_seconds'] for r in mine]):.0f} |"
    )


def picture(rows: list[Row], path: Path) -> None:
    """Pass rate against completions of the run's own device, one panel for each start."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    starts = [start for start in STARTS if any(r["start"] == start for r in rows)]
    wide = min(3, len(starts))
    high = -(-len(starts) // wide)
    figure, axes = plt.subplots(
        2 * high, wide, figsize=(4.6 * wide, 5.6 * high), squeeze=False, sharex=True, sharey=True
    )
    for number, start in enumerate(starts):
        for line, (axis, label) in enumerate(((0, "wall-clock"), (1, "total compute"))):
            panel = axes[2 * (number // wide) + line][number % wide]
            panel.set_title(f"{start}, by {label}", fontsize=10)
            panel.grid(alpha=0.3)
            _draw(panel, [r for r in rows if r["start"] == start], axis)
    for panels in axes:
        panels[0].set_ylabel("held-out pass rate")
    for panel in axes[-1]:
        panel.set_xlabel("share of the budget")
    lines = {text: line for row in axes for p in row for line, text in zip(*p.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="upper center", ncol=len(lines), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(path, dpi=90)


def _draw(panel: Any, rows: list[Row], axis: int) -> None:
    """The mean of each arm over its seeds, and each seed; of those that went on to the end, if any did."""
    for number, arm in enumerate(ARMS):
        every = [r for r in rows if r["arm"] == arm]
        mine = [r for r in every if np.isfinite(at(r["curve"], axis, budget(r)))] or every
        if not mine:
            continue
        x = np.linspace(0, 1, 41)
        y = np.array([[at(r["curve"], axis, share * budget(r)) for share in x] for r in mine])
        panel.plot(x, y.mean(axis=0), color=f"C{number}", label=arm, linewidth=2)
        for one in y if len(y) > 1 else ():
            panel.plot(x, one, color=f"C{number}", linewidth=0.6, alpha=0.4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "summary"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--starts", default=",".join(STARTS))
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--steps", type=int, default=160, help="of a run without a controller; the budget")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of its steps that a population takes; 0.25: equal total compute"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many minutes")
    parser.add_argument("--keep", type=Path, help="leave the run directories below this folder")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    if options.what == "run":
        until = time.monotonic() + 60 * options.minutes
        _run(options, lambda: time.monotonic() < until)
    rows = [each for each in read_lines(options.out) if each["steps"] == options.steps]
    print(summary(rows))
    if options.picture:
        picture(rows, options.picture)


def _run(options: argparse.Namespace, time_left: Callable[[], bool]) -> None:
    done = {(r["start"], r["arm"], r["seed"], r["steps"], r["share"]) for r in read_lines(options.out)}
    for seed in map(int, options.seeds.split(",")):
        for start in options.starts.split(","):
            for arm in options.arms.split(","):
                share = options.share if arm in POPULATIONS else 1.0
                if (start, arm, seed, options.steps, share) in done or not time_left():
                    continue
                new = row(start, arm, seed, options.steps, options.keep, share)
                append_line(options.out, new)
                shown = {key: value for key, value in new.items() if key != "curve"}
                print(json.dumps({**shown, "final": new["curve"][-1]}), flush=True)


if __name__ == "__main__":
    main()
