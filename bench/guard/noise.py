"""Noise of public training logs beside the simulator's: `python bench/guard/noise.py CURVES [--runs 200]`.

CURVES is a folder of logs that `scalerl replay` reads. Per signal and statistic: smallest, median and largest value over
the healthy logs with at least 40 rows, and the 5 %, 50 % and 95 % quantiles over simulated healthy runs of 300 rows.

    spread    robust standard deviation around a running median of 21 rows (of the logarithm for positive quantities)
    effect    the variance of a proportion over its binomial variance, where the number of samples is known
    kurtosis  excess kurtosis of the residuals: 0 for normal noise
    lag 1     correlation of neighbouring residuals, clipped at four spreads
    slow      variance of 8-row means around a line, over what independent rows would give
    beyond 4  share of rows more than four spreads above the median
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controlplane.contract.yamlfile import FileError
from controlplane.recorded import Table, read_run
from controlplane.sim.course import Course
from controlplane.sim.fast import FastRun

Series = NDArray[np.float64]
SIGNALS = {"pass_rate": False, "truncation": False, "gen_length": True, "grad_norm": True, "entropy": True,
           "mismatch_kl": True, "loss": False}  # fmt: skip
"""Signal -> whether its logarithm is looked at."""
NOT_HEALTHY = ("agent_opd__i80f2v90", "agent_opd__do7bl4gg")
ROWS, WINDOW, BLOCK = 300, 21, 8


def statistics(values: Series, samples: float | None, proportion: bool) -> dict[str, float]:
    half = WINDOW // 2
    usual = np.array(
        [np.median(np.delete(values[max(0, i - half) : i + half + 1], min(i, half))) for i in range(len(values))]
    )
    rest = values - usual
    spread = 1.4826 * float(np.median(np.abs(rest - np.median(rest))))
    if spread < 1e-9:
        return {}
    centred = rest - rest.mean()
    clipped = np.clip(rest, -4 * spread, 4 * spread)
    clipped -= clipped.mean()
    found = {
        "spread": spread,
        "kurtosis": float(np.mean(centred**4) / np.mean(centred**2) ** 2 - 3),
        "lag 1": float(np.mean(clipped[1:] * clipped[:-1]) / np.mean(clipped**2)),
        "beyond 4": float(np.mean(rest > 4 * spread)),
    }
    if len(values) >= 12 * BLOCK:
        means = values[: len(values) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(1)
        bend = means[2:] - 2 * means[1:-1] + means[:-2]
        found["slow"] = float(np.mean(bend**2) / (6 * np.mean(np.diff(values) ** 2) / 2 / BLOCK))
    middle = float(np.mean(values))
    if proportion and samples and 0.02 < middle < 0.98:
        found["effect"] = spread**2 / (middle * (1 - middle) / samples)
    return found


def of_table(table: Table) -> dict[tuple[str, str], float]:
    found = {}
    for signal, logarithm in SIGNALS.items():
        values = table.points(signal)[2]
        values = values[np.isfinite(values)]
        if logarithm:
            values = np.log(values[values > 1e-7])
        if len(values) >= 40:
            proportion = signal in ("pass_rate", "truncation")
            found |= {(signal, name): x for name, x in statistics(values, table.samples, proportion).items()}
    return found


def simulated(seed: int) -> dict[tuple[str, str], float]:
    run, rows = FastRun(Course.draw(seed)), []
    start = 200 + seed * 7 % 1000
    while run.executed < start + ROWS:
        run.advance()
        if run.executed > start:
            rows.append(run.tally)
    columns = {name: np.array([getattr(row, name) for row in rows]) for name in SIGNALS}
    steps = np.arange(float(len(rows)))
    return of_table(Table("", steps, np.zeros(len(rows), dtype=np.int64), columns, steps, samples=rows[0].samples))


def gather(many: list[dict[tuple[str, str], float]]) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for each in many:
        for key, value in each.items():
            found[key].append(value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", type=Path)
    parser.add_argument("--runs", type=int, default=200)
    options = parser.parse_args()
    tables = []
    for path in sorted(options.curves.glob("*.csv")):
        try:
            table = read_run(path).lineage()
        except FileError as error:
            parser.error(str(error))
        # Accuracies on a fixed held-out set and returns of other domains say nothing about training batches.
        if table.name not in NOT_HEALTHY and not table.name.startswith(("deeprl", "countdown_kanishkg")):
            tables.append(table)
    real, ours = (
        gather([of_table(table) for table in tables]),
        gather([simulated(seed) for seed in range(options.runs)]),
    )
    print(f"{len(tables)} public logs, {options.runs} simulated runs\n")
    print("| signal | statistic | logs | min | median | max | simulated 5 % | 50 % | 95 % |")
    print("|---|---|---|---|---|---|---|---|---|")
    for key in sorted(real | ours):
        a, b = np.array(real.get(key, [])), np.array(ours.get(key, []))
        left = f"{a.min():.3g} | {np.median(a):.3g} | {a.max():.3g}" if len(a) else "- | - | -"
        right = " | ".join(f"{x:.3g}" for x in np.quantile(b, (0.05, 0.5, 0.95))) if len(b) else "- | - | -"
        print(f"| {key[0]} | {key[1]} | {len(a)} | {left} | {right} |")


if __name__ == "__main__":
    main()
