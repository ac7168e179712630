"""Curves as files, as other people's tools write them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def law(c: float, a: float = 0.7, mid: float = 200.0) -> float:
    return 0.2 + (a - 0.2) / (1.0 + (mid / c) ** 1.8) if c > 0 else 0.2


def points(
    n: int = 24, end: float = 600.0, a: float = 0.7, seed: int = 0, mid: float = 200.0
) -> list[tuple[float, float]]:
    rng = np.random.default_rng(seed)
    return [(float(c), float(np.clip(law(c, a, mid) + 0.006 * rng.normal(), 0, 1))) for c in np.linspace(0.0, end, n)]


def write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def write_results(path: Path, arms: dict[str, float], runs: int = 2) -> Path:
    """What `scalerl loo` leaves: only what a comparison reads."""
    rows = []
    for number, (name, a) in enumerate(arms.items()):
        for seed in range(runs):
            (_, r0), *later = points(a=a, seed=10 * number + seed)
            rows.append(
                {
                    "variant": name, "r0": r0, "compute": [c for c, _ in later], "pass_rate": [y for _, y in later],
                    "samples": 1024, "steps": 100, "completions": 6400, "device_seconds": 600.0, "minutes": 12.0,
                }
            )  # fmt: skip
    path.write_text(json.dumps({"axis": "steps", "runs": rows}))
    return path
