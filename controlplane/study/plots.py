"""Small multiples of a study: every run's evaluations with its fit, and the reference faint behind it.

curves   pass rate against compute, on a log axis, R_0 as a dotted line
linear   F against C, both on log axes (ScaleRL, Fig. 7): a straight line whose slope is B
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.axis
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from controlplane.forecast.protocol import Fit
from controlplane.report.theme import light
from controlplane.study.fits import Curve, linear

COLUMNS = 3
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "study",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": light("ink"),
    "axes.edgecolor": light("rule"),
    "axes.labelcolor": light("soft"),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": light("ink"),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": light("rule"),
    "grid.linewidth": 0.6,
    "xtick.color": light("soft"),
    "ytick.color": light("soft"),
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "figure.facecolor": light("page"),
    "axes.facecolor": "none",
    "savefig.facecolor": light("page"),
}


Plot = Callable[[Axes, Curve, Fit | None, str, bool], str]
"""Draws one run in a colour, faint for the reference behind another; says what to write beside it."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One variant (or seed): its runs, each with the fit to draw, if there is one."""

    title: str
    runs: Sequence[tuple[Curve, Fit | None]]


def draw(free: Sequence[Panel], common: Sequence[Panel], reference: int, axis: str, folder: Path) -> list[Path]:
    """Write `curves` (free fits) and `linear` (fits at the common A) as PNG and SVG into `folder`.

    `reference` is the index of its panel in both.
    """
    written = []
    for name, panels, plot, label in (
        ("curves", free, _curves, "held-out pass rate"),
        ("linear", common, _linear, "F(R)"),
    ):
        with matplotlib.rc_context(STYLE):
            figure = _multiples(panels, reference, plot, axis, label)
            for kind, canvas in (("png", FigureCanvasAgg), ("svg", FigureCanvasSVG)):
                canvas(figure)
                path = folder / f"{name}.{kind}"
                figure.savefig(path, format=kind, dpi=140, metadata={"Date": None} if kind == "svg" else None)
                written.append(path)
    return written


def _multiples(panels: Sequence[Panel], reference: int, plot: Plot, axis: str, label: str) -> Figure:
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(3.4 * columns, 4.5), 2.5 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for index, axes in enumerate(grid.ravel()):
        if index >= len(panels):
            axes.set_visible(False)
            continue
        axes.set_xscale("log")
        _plain(axes.xaxis)
        axes.set_title(panels[index].title)
        if index != reference:
            for curve, fit in panels[reference].runs:
                plot(axes, curve, fit, "rule", True)
        notes = [plot(axes, curve, fit, "held", False) for curve, fit in panels[index].runs]
        note = notes[0] if len(notes) == 1 else f"{len(notes)} runs"
        axes.annotate(note, (0.98, 0.04), xycoords="axes fraction", ha="right", color=light("soft"), fontsize=8)
        if index + columns >= len(panels):  # the last panel of its column
            axes.set_xlabel(axis)
            axes.tick_params(labelbottom=True)
        if index % columns == 0:
            axes.set_ylabel(label)
    return figure


def _curves(axes: Axes, curve: Curve, fit: Fit | None, colour: str, faint: bool) -> str:
    axes.plot(curve.compute, curve.pass_rate, "o", ms=3 if faint else 4, color=light(colour), zorder=2 if faint else 3)
    if not faint:
        axes.axhline(curve.r0, color=light("soft"), lw=0.8, ls=(0, (1, 3)))
    if fit is not None:
        c = np.geomspace(curve.compute[0] / 2, curve.end, 200)
        axes.plot(c, fit.predict(c), color=light(colour), lw=1.6)
        if not faint:
            axes.axhline(fit.A, color=light("held"), lw=0.8, ls=(0, (4, 3)))
    axes.set_ylim(0, 1.02)
    return "no fit" if fit is None else f"A {fit.A:.3f}   B {fit.B:.2f}   C_mid {fit.C_mid:.3g}"


def _linear(axes: Axes, curve: Curve, fit: Fit | None, colour: str, faint: bool) -> str:
    axes.set_yscale("log")
    _plain(axes.yaxis)
    if fit is None:
        return "no fit"
    c, f = linear(curve, fit)
    axes.plot(c, f, "o", ms=3 if faint else 4, color=light(colour), zorder=2 if faint else 3)
    line = np.geomspace(curve.compute[0], curve.end, 50)
    axes.plot(line, line**fit.B, color=light(colour), lw=1.6)
    left = len(curve.compute) - len(c)
    return f"slope B {fit.B:.2f} at A {fit.A:.3f}" + (f"   ({left} beyond A)" if left else "")


def _plain(axis: matplotlib.axis.Axis) -> None:
    """Ticks of a log axis as plain numbers, at most five."""
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5), numticks=5))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
