"""The targets of the comparison, from its rows: `python -m bench.tuning.targets ROWS`. Differences are paired by seed.

gap      LR 6 times too low: share of the way to the well-tuned run (both without a controller) that an arm has made up
harm     well-tuned runs that ended more than 0.01 below the same seed without a controller
rivals   starts at which an arm of ours is better than PBT and PB2 at equal total compute, by the mean over the seeds that both have
"""

import argparse
from pathlib import Path

import numpy as np

from bench.tuning.compare import POPULATIONS, Ends, Row, ends, harm, interval, paired
from bench.tuning.lab import STARTS
from controlplane.contract.rundir import read_lines

OURS, RIVALS = ("inline", "spare", "auto", "switchback"), POPULATIONS
AXES = {"equal wall-clock": 0, "equal total compute": 1}


def gap(found: Ends, arm: str) -> list[float]:
    """Share of the gap made up, for each seed."""
    mine, none, tuned = (found.get(key, {}) for key in (("lr6low", arm), ("lr6low", "none"), ("tuned", "none")))
    seeds = sorted(mine.keys() & none.keys() & tuned.keys())
    return [(mine[s] - none[s]) / (tuned[s] - none[s]) for s in seeds]


def advantages(found: Ends, arm: str) -> dict[str, dict[str, list[float]]]:
    """start -> rival -> differences arm - rival, at the starts where there are any."""
    table = {
        start: {rival: paired(found.get((start, arm), {}), found.get((start, rival), {})) for rival in RIVALS}
        for start in STARTS
    }
    return {start: rivals for start, rivals in table.items() if all(rivals.values())}


def said(values: list[float]) -> str:
    """Mean and 90 % interval over the seeds."""
    mean, low, high = interval(values)
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f}, {len(values)} seeds)"


def report(rows: list[Row]) -> list[str]:
    """Sentences for every target."""
    lines: list[str] = []
    for name, axis in AXES.items():
        found = ends(rows, axis)
        for arm in OURS:
            if shares := gap(found, arm):
                lines.append(f"gap, {arm}, {name}: {said(shares)}")
        for arm in OURS:
            harmed, of = harm(found, "tuned", arm)
            if of:
                lines.append(f"harm, {arm}, {name}: {harmed} of {of}")
    found = ends(rows, AXES["equal total compute"])
    for arm in OURS:
        table = advantages(found, arm)
        for start, rivals in table.items():
            lines.append(f"rivals, {arm}, {start}: " + ", ".join(f"{r} {said(d)}" for r, d in rivals.items()))
        if table:
            won = sum(all(np.mean(d) > 0 for d in rivals.values()) for rivals in table.values())
            lines.append(f"rivals, {arm}: better than both at {won} of {len(table)} starts")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--steps", type=int, default=160)
    options = parser.parse_args()
    print("\n".join(report([row for row in read_lines(options.rows) if row["steps"] == options.steps])))
