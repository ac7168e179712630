"""The digitised ScaleRL curve (Fig. 2): forecasts of 16k GPU-hours from earlier windows, and the paper's protocol.

    python bench/forecast/digitised.py FILE       FILE: CSV with gpu_hours, pass_rate

Windows are fitted alone, with the evaluation at compute 0 (R_0 = 0.400, 16,000 samples), and with a prior from finished
runs: the paper's eight leave-one-out variants, or two repeats of the recipe, all simulated from the published fits.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from controlplane.forecast import Forecaster, Prior
from controlplane.forecast.protocol import fit_scalerl

BUDGET, R0, NOISE, SPACING, SAMPLES = 16_000.0, 0.400, 0.0045, 257.0, 16_000.0
VARIANTS = (
    (1.88, 0.610, 2857), (1.89, 0.605, 3409), (1.93, 0.600, 2621), (1.77, 0.610, 3093), (2.09, 0.590, 2463),
    (1.68, 0.610, 2660), (1.84, 0.595, 2503), (1.62, 0.605, 2621),
)  # fmt: skip
"""(B, A, C_mid) of the leave-one-out runs, ScaleRL itself left out (Fig. 7)."""
REPEATS = ((1.92, 0.610, 2542), (2.20, 0.595, 2542))
"""Two of the three repeats (Fig. 8a)."""


def simulated(b: float, a: float, mid: float, seed: int) -> Forecaster:
    """A finished run at the published parameters with the paper's noise."""
    run, rng = Forecaster(BUDGET), np.random.default_rng(seed)
    run.observe(0.0, R0, variance=NOISE**2)
    for c in np.arange(SPACING, BUDGET, SPACING):
        run.observe(float(c), float(R0 + (a - R0) / (1.0 + (mid / c) ** b) + NOISE * rng.normal()), variance=NOISE**2)
    return run


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    rows = [
        (float(row["gpu_hours"]), float(row["pass_rate"]))
        for row in csv.DictReader(parser.parse_args().file.open(encoding="utf-8"))
    ]
    near_end = np.mean([y for c, y in rows if c >= 0.93 * BUDGET])
    print(f"came at 16k: {near_end:.3f} (the law at the published parameters: 0.604 to 0.605)")
    variants = Prior.from_runs([simulated(*row, seed=i) for i, row in enumerate(VARIANTS)])
    repeats = Prior.from_runs([simulated(*row, seed=100 + i) for i, row in enumerate(REPEATS)])
    print("| up to | points | model | 16k: median | 80 % | calibrated 80 % | covers .605 and what came | refused |")
    print("|---|---|---|---|---|---|---|---|")
    for until in (2_600, 4_200, 6_000, 8_000):
        for name, zero, prior in (
            ("points alone", False, None),
            ("with R_0", True, None),
            ("with R_0, prior of 2 repeats", True, repeats),
            ("with R_0, prior of 8 variants", True, variants),
        ):
            f = Forecaster(BUDGET, prior=prior)
            if zero:
                f.observe(0.0, R0, samples=SAMPLES)
            for c, y in rows:
                if c <= until:
                    f.observe(c, y, samples=SAMPLES)
            p = f.forecast([BUDGET])
            low, middle, high = (float(p.quantile(q)[0]) for q in (0.1, 0.5, 0.9))
            wide = [float(edge[0]) for edge in p.interval(0.8)]
            covers = all(low <= truth <= high for truth in (0.605, near_end))
            print(
                f"| {until:,} | {len(f.points)} | {name} | {middle:.3f} | [{low:.3f}, {high:.3f}] | "
                f"[{wide[0]:.3f}, {wide[1]:.3f}] | {'yes' if covers else 'NO'} | {'yes' if p.refused else 'no'} |"
            )
    compute, rate = zip(*[row for row in rows if row[0] <= 8_000], strict=True)
    for largest in (40_000, 4_000):
        fit = fit_scalerl(compute, rate, R0, c_mid_grid=np.linspace(100, largest, 100))
        print(
            f"paper's protocol, C_mid to {largest:,}: A {fit.A:.3f} (.610), B {fit.B:.2f} (1.97), C_mid {fit.C_mid:,.0f}"
        )


if __name__ == "__main__":
    main()
