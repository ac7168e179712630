"""Which recipe is better: the paper's rule on fitted curves, with what the data can and cannot tell beside it. Pure.

    1  A first (ScaleRL, A.8). Two A are equal when they lie within the margin (0.02, ScaleRL, section 4 and Fig. 8a: from three runs).
    2  Those equal to the reference are fitted again with A fixed to the mean of theirs; the higher B is the more efficient.

The rule looks at points. P(equal) says how far the curves support it: the posterior probability that the two A lie within
the margin. In a short run it is small even for twins, and then "equal" means "not told apart".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from statistics import fmean, variance
from typing import Literal

import numpy as np

from controlplane.forecast.law import Array
from controlplane.study.fits import Draws, FittedCurve, Interval, together

MARGIN = 0.02
Verdict = Literal["reference", "equal", "higher", "lower", "unknown"]


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run: its curve and what it took. Device-seconds without evaluation, minutes with it."""

    seed: int
    fitted: FittedCurve
    final: float
    """Last held-out pass rate."""
    steps: int
    completions: float
    """NaN where only the curve is known; so are the next two."""
    device_seconds: float
    minutes: float


@dataclass(frozen=True, eq=False)
class Arm:
    """A variant with its finished runs; `failures` say what became of the others."""

    name: str
    title: str
    runs: tuple[Run, ...]
    failures: tuple[str, ...] = ()
    paper: Mapping[str, float | None] | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table; means over the runs of the arm. None where there is no fit."""

    name: str
    title: str
    runs: int
    A: float | None = None
    B: float | None = None
    C_mid: float | None = None
    edges: tuple[str, ...] = ()
    """Parameters at an edge of the protocol's grid in some run: bounds, not estimates."""
    A_interval: Interval | None = None
    B_interval: Interval | None = None
    C_mid_interval: Interval | None = None
    verdict: Verdict = "unknown"
    difference: float | None = None
    """A minus that of the reference."""
    p_equal: float | None = None
    B_common: float | None = None
    C_mid_common: float | None = None
    B_common_interval: Interval | None = None
    final: float = nan
    final_error: float = nan
    """Standard error: over seeds where there are several, never below that of the sampled completions."""
    steps: float = nan
    completions: float = nan
    device_seconds: float = nan
    minutes: float = nan
    problems: tuple[str, ...] = ()
    paper: Mapping[str, float | None] | None = None


@dataclass(frozen=True)
class Comparison:
    """The table: the reference and its equals by falling B at the common A, then the others by falling A."""

    reference: str
    margin: float
    common_A: float | None
    """Mean A of the reference and its equals; None without a fit of the reference."""
    rows: tuple[Row, ...]


@dataclass(frozen=True, eq=False)
class _Free:
    """An arm's free fits, averaged, and its posterior."""

    A: float
    B: float
    C_mid: float
    edges: tuple[str, ...]
    draws: Draws


def compare(arms: Sequence[Arm], reference: str, margin: float = MARGIN) -> Comparison:
    """Compare all arms with the one named `reference`."""
    free: dict[str, _Free] = {}
    problems: dict[str, list[str]] = {arm.name: list(arm.failures) for arm in arms}
    for arm in arms:
        try:
            if arm.runs:
                free[arm.name] = _fit(arm)
        except ValueError as error:
            problems[arm.name].append(str(error))
    base = free.get(reference)
    verdicts = {name: _verdict(name, fit, reference, base, margin) for name, fit in free.items()}
    same = [free[name].A for name, verdict in verdicts.items() if verdict in ("reference", "equal")]
    common = fmean(same) if base is not None else None
    rows = [
        _row(
            arm, free.get(arm.name), base, verdicts.get(arm.name, "unknown"), common, margin, tuple(problems[arm.name])
        )
        for arm in arms
    ]
    return Comparison(reference, margin, common, tuple(sorted(rows, key=_order)))


def equal(one: float, other: float, margin: float = MARGIN) -> bool:
    """Whether two asymptotes count as the same; the margin itself still does, whatever floating point makes of it."""
    return abs(one - other) <= margin + 1e-9


def probability_equal(one: Array, other: Array, margin: float = MARGIN) -> float:
    """P(|A - A'| <= margin) for two independent posteriors given as draws."""
    shares = (np.arange(400) + 0.5) / 400
    a, b = np.quantile(one, shares), np.quantile(other, shares)
    return float((np.abs(a[:, None] - b[None, :]) <= margin + 1e-9).mean())


def final_of(runs: Sequence[Run]) -> tuple[float, float]:
    """Mean last pass rate and its standard error."""
    rates = [run.final for run in runs]
    mean = fmean(rates)
    binomial = mean * (1.0 - mean) / runs[0].fitted.curve.samples
    spread = max(variance(rates), binomial) if len(rates) > 1 else binomial
    return mean, sqrt(spread / len(rates))


def _fit(arm: Arm) -> _Free:
    fits = [run.fitted.free for run in arm.runs]
    return _Free(
        A=fmean(fit.A for fit in fits),
        B=fmean(fit.B for fit in fits),
        C_mid=fmean(fit.C_mid for fit in fits),
        edges=tuple(dict.fromkeys(edge for run in arm.runs for edge in run.fitted.edges)),
        draws=together([run.fitted.draws for run in arm.runs]),
    )


def _verdict(name: str, fit: _Free, reference: str, base: _Free | None, margin: float) -> Verdict:
    if name == reference:
        return "reference"
    if base is None:
        return "unknown"
    if equal(fit.A, base.A, margin):
        return "equal"
    return "higher" if fit.A > base.A else "lower"


def _row(
    arm: Arm,
    free: _Free | None,
    base: _Free | None,
    verdict: Verdict,
    common: float | None,
    margin: float,
    problems: tuple[str, ...],
) -> Row:
    if not arm.runs:
        return Row(arm.name, arm.title, 0, problems=problems, paper=arm.paper)
    final, error = final_of(arm.runs)
    fixed = common is not None and verdict in ("reference", "equal")
    refits = [run.fitted.at(common) for run in arm.runs] if fixed and common is not None else []
    return Row(
        name=arm.name,
        title=arm.title,
        runs=len(arm.runs),
        A=free.A if free else None,
        B=free.B if free else None,
        C_mid=free.C_mid if free else None,
        edges=free.edges if free else (),
        A_interval=free.draws.interval("A") if free else None,
        B_interval=free.draws.interval("B") if free else None,
        C_mid_interval=free.draws.interval("C_mid") if free else None,
        verdict=verdict,
        difference=free.A - base.A if free and base else None,
        p_equal=probability_equal(free.draws.A, base.draws.A, margin) if free and base and free is not base else None,
        B_common=fmean(fit.B for fit in refits) if refits else None,
        C_mid_common=fmean(fit.C_mid for fit in refits) if refits else None,
        B_common_interval=free.draws.at(common, "B") if free and refits and common is not None else None,
        final=final,
        final_error=error,
        steps=fmean(run.steps for run in arm.runs),
        completions=fmean(run.completions for run in arm.runs),
        device_seconds=fmean(run.device_seconds for run in arm.runs),
        minutes=fmean(run.minutes for run in arm.runs),
        problems=problems,
        paper=arm.paper,
    )


def _order(row: Row) -> tuple[int, float, float]:
    if row.B_common is not None:
        return 0, -row.B_common, 0.0
    if row.A is not None:
        return 1, -row.A, 0.0
    return 2, 0.0 if row.runs else 1.0, 0.0
