"""What repeating one recipe with other seeds tells: how far A, B and C_mid move by themselves. Pure.

The paper repeats ScaleRL three times; A moved by at most 0.015 around the mean, and so its margin on A is 0.02.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from controlplane.forecast.protocol import Fit
from controlplane.study.compare import Run
from controlplane.study.fits import Interval


@dataclass(frozen=True)
class Spread:
    """How one parameter moves over the seeds."""

    mean: float
    deviation: float
    """Largest distance of a seed from the mean."""
    sd: float


@dataclass(frozen=True, eq=False)
class SeedRow:
    """One seed: free fit with the posterior's intervals, and the fit at the mean A."""

    run: Run
    free: Fit
    common: Fit
    A_interval: Interval
    B_interval: Interval
    edges: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Repeats:
    """All seeds that could be fitted. `B_common`, `C_mid_common`: with A fixed to the mean A."""

    rows: tuple[SeedRow, ...]
    A: Spread
    B: Spread
    C_mid: Spread
    B_common: Spread
    C_mid_common: Spread
    final: Spread


def repeats(runs: Sequence[Run]) -> Repeats:
    """Spread over the given runs. ValueError with fewer than two, or where one cannot be fitted."""
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} finished runs; a spread needs at least 2")
    for run in runs:
        try:
            _ = run.fitted.free
        except ValueError as error:
            raise ValueError(f"seed {run.seed}: {error}") from None
    common = fmean(run.fitted.free.A for run in runs)
    rows = tuple(
        SeedRow(
            run, run.fitted.free, run.fitted.at(common), run.fitted.draws.interval("A"), run.fitted.draws.interval("B"),
            run.fitted.edges,
        )
        for run in runs
    )  # fmt: skip
    return Repeats(
        rows,
        A=spread([row.free.A for row in rows]),
        B=spread([row.free.B for row in rows]),
        C_mid=spread([row.free.C_mid for row in rows]),
        B_common=spread([row.common.B for row in rows]),
        C_mid_common=spread([row.common.C_mid for row in rows]),
        final=spread([row.run.final for row in rows]),
    )


def spread(values: Sequence[float]) -> Spread:
    """Mean, largest deviation from it, sample standard deviation."""
    mean = fmean(values)
    return Spread(mean, max(abs(value - mean) for value in values), stdev(values))
