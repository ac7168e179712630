"""What a prior from finished runs is worth on real runs: the tiny ones, each helped by others of its difficulty.

    python bench/forecast/pooled.py [bench/forecast/tiny_runs]

For every run the prior is made of up to four finished runs of the same difficulty and length that differ in seed and batch:
of the same learning rate (the same recipe), or of other learning rates (a recipe that is only similar). Forecast is the end.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from controlplane.forecast import Forecaster, Prior
from controlplane.forecast.backtest import Series, Z, truth_at

SAMPLES, MOST = 512.0, 4


class TinyRun:
    """One CSV."""

    def __init__(self, path: Path) -> None:
        rows = list(csv.DictReader(path.open(encoding="utf-8")))
        self.operands, self.lr = rows[0]["operands"], rows[0]["lr"]
        step, rate = (np.array([float(row[key]) for row in rows]) for key in ("step", "eval_pass_ratio"))
        self.series = Series(path.stem, path.stem, step, rate)

    def fitted(self, share: float, prior: Prior | None = None) -> Forecaster:
        end = float(self.series.compute[-1])
        f = Forecaster(end, prior=prior)
        for c, y in zip(self.series.compute, self.series.rate, strict=True):
            if c <= share * end:
                f.observe(float(c), float(y), samples=SAMPLES)
        return f


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "tiny_runs")
    runs = [TinyRun(path) for path in sorted(parser.parse_args().folder.glob("*.csv"))]
    print("| prior | fitted | runs | MAE | 80 % covers | 95 % covers | width of 80 % |")
    print("|---|---|---|---|---|---|---|")
    for share in (0.25, 0.5):
        for name, same in (("default", None), ("other learning rates", False), ("same learning rate", True)):
            found = [
                one(run, runs, share, same) for run in runs if others(run, runs, True) and others(run, runs, False)
            ]
            mae, in80, in95, width = np.mean(found, axis=0)
            print(f"| {name} | {share:.0%} | {len(found)} | {mae:.3f} | {in80:.2f} | {in95:.2f} | {width:.3f} |")


def others(run: TinyRun, runs: list[TinyRun], same: bool) -> list[TinyRun]:
    """Finished runs of the same difficulty and length, with the same learning rate or with others."""
    end = run.series.compute[-1]
    return [
        other
        for other in runs
        if other is not run
        and other.operands == run.operands
        and other.series.compute[-1] == end
        and (other.lr == run.lr) == same
    ][:MOST]


def one(run: TinyRun, runs: list[TinyRun], share: float, same: bool | None) -> tuple[float, bool, bool, float]:
    """(error, inside 80 %, inside 95 %, width of 80 %), the noise of the truth added."""
    prior = None if same is None else Prior.from_runs([other.fitted(1.0) for other in others(run, runs, same)])
    end = float(run.series.compute[-1])
    p, (truth, noise) = run.fitted(share, prior).forecast([end]), truth_at(run.series, end)
    middle, inside, widths = float(p.quantile(0.5)[0]), [], []
    for level in (0.8, 0.95):
        low, high = (float(edge[0]) for edge in p.interval(level))
        below, above = np.hypot(middle - low, Z[level] * noise), np.hypot(high - middle, Z[level] * noise)
        inside.append(middle - below <= truth <= middle + above)
        widths.append(below + above)
    return abs(middle - truth), inside[0], inside[1], widths[0]


if __name__ == "__main__":
    main()
