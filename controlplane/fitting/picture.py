"""Pictures of fits: points, the median and two bands, what came after, asymptote and target. PNG and SVG."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from controlplane.fitting.fit import Fitted
from controlplane.report.theme import light
from controlplane.study.plots import STYLE

COLUMNS = 2
_POINTS = 80


def draw(fits: Sequence[Fitted], path: Path, target: float | None = None) -> list[Path]:
    """Write `path` as .png and .svg, one panel per fit."""
    with matplotlib.rc_context(STYLE):
        columns = min(COLUMNS, len(fits))
        rows = -(-len(fits) // columns)
        figure = Figure(figsize=(6.4 * columns if columns == 1 else 4.9 * columns, 3.6 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, fitted in zip(grid, fits, strict=False):
            _panel(axes, fitted, target)
        for axes in grid[len(fits) :]:
            axes.set_visible(False)
        return save(figure, path)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write the figure as PNG and SVG; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, canvas in (("png", FigureCanvasAgg), ("svg", FigureCanvasSVG)):
        canvas(figure)
        target = path.parent / f"{path.name}.{kind}"
        figure.savefig(target, format=kind, dpi=140, metadata={"Date": None} if kind == "svg" else None)
        written.append(target)
    return written


def _panel(axes: Axes, fitted: Fitted, target: float | None) -> None:
    known, given = fitted.known, fitted.given
    last = float(known.compute[-1])
    end = max(fitted.budget, float(fitted.forecast.compute.max()), last * (1.0 + 1e-9))
    grid = np.linspace(last, end, _POINTS)
    p = fitted.forecaster.forecast(grid.tolist())
    bound = p.refused
    colour = light("soft" if bound else "held")
    for level, alpha in ((0.95, 0.45), (0.8, 1.0)):
        low, high = p.interval(level)
        label = f"{level:.0%} interval" + (" (refused: a bound)" if bound and level == 0.8 else "")
        axes.fill_between(grid, low, high, color=light("rule" if bound else "band"), lw=0, alpha=alpha, label=label)
    axes.plot(grid, p.quantile(0.5), color=colour, lw=1.6, label="median")
    axes.plot(known.compute, known.rate, "o", ms=4, color=light("held"), label="fitted", zorder=3)
    later = given.compute > last
    if later.any():
        axes.plot(
            given.compute[later], given.rate[later], "o", ms=4, mfc=light("page"), mec=light("held"), label="came after",
            zorder=3,
        )  # fmt: skip
    if fitted.forecaster.method == "posterior":
        a = fitted.forecaster.parameters().A
        axes.axhline(a.quantile(0.5), color=light("held"), lw=0.8, ls=(0, (4, 3)))
        text = f"A {a.quantile(0.5):.3f} [{a.quantile(0.1):.3f}, {a.quantile(0.9):.3f}]"
        axes.annotate(
            text, (0.01, a.quantile(0.5)), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
            color=light("soft"), fontsize=8,
        )  # fmt: skip
        for change in fitted.forecaster.changes:
            axes.axvline(change.compute, color=light("attention"), lw=0.9, ls=(0, (3, 2)))
    if target is not None:
        axes.axhline(target, color=light("good"), lw=0.9, ls=(0, (1, 3)))
        axes.annotate(
            f"target {target:g}", (0.01, target), (0, -10), xycoords=("axes fraction", "data"),
            textcoords="offset points", color=light("good"), fontsize=8,
        )  # fmt: skip
    axes.set_title(given.name)
    axes.set_xlabel(f"compute, {known.unit}")
    axes.set_ylabel("pass rate")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.legend(loc="best", frameon=False, fontsize=8)
