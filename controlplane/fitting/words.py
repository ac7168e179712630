"""A fit in words and numbers that a tired person reads, and a chart of it for the terminal. Pure."""

import math
from collections.abc import Sequence
from datetime import datetime

import numpy as np
from rich.text import Text

from controlplane.fitting.fit import NAMES, Fitted, date_of
from controlplane.forecast import Distribution
from controlplane.forecast.economics import Economics
from controlplane.view.chart import Chart

_SURE = ((0.9, "almost surely"), (0.6, "likely"), (0.4, "open"), (0.1, "unlikely"), (0.0, "hardly"))


def lines(fitted: Fitted, now: datetime | None) -> list[str]:
    """The whole answer."""
    known, unit = fitted.known, fitted.known.unit
    found = [
        f"{fitted.given.name}: {len(known.compute)} evaluations up to {size(float(known.compute[-1]))} {unit}, "
        f"the last at {known.rate[-1]:.3f}",
        *(f"  {note}" for note in fitted.notes),
        *_parameters(fitted),
        *_changes(fitted),
        *_forecast(fitted),
    ]
    if fitted.economics is not None:
        found += _worth(fitted.economics, unit, now)
    return found


def _parameters(fitted: Fitted) -> list[str]:
    found = fitted.forecaster.parameters()
    three = {name: [getattr(found, name).quantile(q) for q in (0.5, 0.1, 0.9)] for name in NAMES}
    meaning = {
        "A": "where it would end with compute without limit",
        "B": "how steeply it climbs",
        "C_mid": f"half of the gain is made there, {fitted.known.unit}",
        "R0": "where it began",
    }
    head = f"  parameter  {'median':>9}  80 % interval"
    return [head] + [
        f"  {name:<9}  {size(middle):>9}  [{size(low)}, {size(high)}]   {meaning[name]}"
        for name, (middle, low, high) in three.items()
        if math.isfinite(middle)
    ]


def _changes(fitted: Fitted) -> list[str]:
    if fitted.forecaster.method != "posterior":
        return []
    return [
        f"  change at {size(c.compute)}: moved the curve with probability {c.probability:.0%}"
        for c in fitted.forecaster.changes
    ]


def _forecast(fitted: Fitted) -> list[str]:
    p = fitted.forecast
    (low80, high80), (low95, high95), middle = p.interval(0.8), p.interval(0.95), p.quantile(0.5)
    last = float(fitted.known.compute[-1])
    found = []
    for i, compute in enumerate(p.compute):
        line = (
            f"  forecast at {size(float(compute))}: {middle[i]:.3f}, 80 % [{low80[i]:.3f}, {high80[i]:.3f}], "
            f"95 % [{low95[i]:.3f}, {high95[i]:.3f}]"
        )
        near = np.abs(fitted.given.compute - compute) <= 0.07 * compute
        came = fitted.given.rate[near & (fitted.given.compute > last)]
        found.append(line + (f"; came {came.mean():.3f}" if len(came) else ""))
    if p.reason:  # the verdict says why, where there is one
        found.append("  refused: this is a bound only" + ("" if fitted.economics else f". {p.reason}"))
    return found


def _worth(worth: Economics, unit: str, now: datetime | None) -> list[str]:
    per = worth.gain_per_unit
    found = [
        f"  {worth.sentence}",
        f"  marginal gain now: {per.quantile(0.5):.2g} pass rate per unit of compute "
        f"[{per.quantile(0.1):.2g}, {per.quantile(0.9):.2g}]; left until the budget: {_signed(worth.gain_left)}",
        f"  {'at ' + unit:>18}  {'pass rate':>22}  {'this doubling adds':>26}  {'ROI per unit':>12}  level",
    ]
    found += [
        f"  {size(d.compute) + (' (now)' if i == 0 else ''):>18}  {_spread(d.level):>22}  {_signed(d.gain):>26}  "
        f"{d.roi.quantile(0.5):>12.2g}  x{d.ratio:.2f}"
        for i, d in enumerate(worth.doublings)
    ]
    for stage in worth.stages:
        sure = next(word for limit, word in _SURE if stage.probability >= limit)
        state = "reached" if stage.reached else f"{sure} by the budget ({stage.probability:.0%})"
        need = stage.compute.quantile(0.5)
        when = "" if stage.reached else f"; at {size(need)} {unit}" if math.isfinite(need) else "; never, by the law"
        date = date_of(stage.hours, now) if not stage.reached else None
        found.append(f"  stage {stage.target:.0%}: {state}{when}{f', {date}' if date else ''}")
    return found


def size(value: float) -> str:
    """A number with as many digits as its size asks for."""
    if not math.isfinite(value):
        return "never"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _spread(values: Distribution) -> str:
    return f"{values.quantile(0.5):.3f} [{values.quantile(0.1):.3f}, {values.quantile(0.9):.3f}]"


def _signed(values: Distribution) -> str:
    return f"{values.quantile(0.5):+.3f} [{values.quantile(0.1):+.3f}, {values.quantile(0.9):+.3f}]"


def chart(fitted: Fitted, width: int, height: int = 14) -> Sequence[Text]:
    """Points, band and median against compute, with an axis."""
    grid, low, middle, high = band(fitted, 40)
    end = max(float(grid[-1]), float(fitted.given.compute[-1]))
    top = float(np.ceil(10 * max(high.max(), fitted.given.rate.max())) / 10)
    bottom = float(np.floor(10 * min(low.min(), fitted.given.rate.min())) / 10)
    picture = Chart(max(30, width - 7), height, x=(0.0, end), y=(bottom, max(top, bottom + 0.1)))
    picture.band(list(zip(grid, low, high, strict=True)), "dim", rank=1)
    picture.line(list(zip(grid, middle, strict=True)), "", rank=2)
    later = fitted.given.compute > fitted.known.compute[-1]
    picture.points(list(zip(fitted.given.compute[later], fitted.given.rate[later], strict=True)), "bold", rank=3)
    picture.points(list(zip(fitted.known.compute, fitted.known.rate, strict=True)), "bold", rank=4)
    picture.mark(float(fitted.known.compute[-1]), "dim", rank=0)
    rows = picture.rows()
    labels = {0: max(top, bottom + 0.1), height - 1: bottom}
    body = [Text.assemble(f"{labels[i]:5.2f} " if i in labels else " " * 6, row) for i, row in enumerate(rows)]
    unit = fitted.known.unit
    foot = (
        f"{'0':<6}{f'80 % band from {size(float(fitted.known.compute[-1]))}':^{max(1, width - 26)}}{size(end)} {unit}"
    )
    return [*body, Text(" " * 6 + foot, style="dim")]


def band(fitted: Fitted, count: int) -> "tuple[np.ndarray[tuple[int], np.dtype[np.float64]], ...]":
    """(compute, low, median, high) of the 80 % interval from the last point fitted to the budget, or to what was asked."""
    last = float(fitted.known.compute[-1])
    end = max(fitted.budget, float(fitted.forecast.compute.max()), last * (1.0 + 1e-9))
    grid = np.linspace(last, end, count)
    p = fitted.forecaster.forecast(grid.tolist())
    low, high = p.interval(0.8)
    return grid, low, p.quantile(0.5), high
