"""The comparison as a picture: A of every arm with its interval and the margin, and B at the common A beside it."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from controlplane.fitting.picture import save
from controlplane.report.theme import light
from controlplane.study.compare import Comparison, Row
from controlplane.study.fits import Interval
from controlplane.study.plots import STYLE

_COLOURS = {"reference": "held", "equal": "held", "higher": "good", "lower": "bad", "unknown": "soft"}


def forest(found: Comparison, path: Path) -> list[Path]:
    """Write `path` as .png and .svg: best arm on top."""
    rows = [row for row in found.rows if row.A is not None]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.42 * len(rows) + 1.5), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
        for y, row in enumerate(reversed(rows)):
            colour = light(_COLOURS[row.verdict])
            _one(left, y, row.A, row.A_interval, colour)
            if row.B_common is not None:
                _one(right, y, row.B_common, row.B_common_interval, colour)
            else:
                right.annotate(
                    "A differs: B not compared", (0.5, y), xycoords=("axes fraction", "data"), ha="center", va="center",
                    color=light("soft"), fontsize=8,
                )  # fmt: skip
        if found.common_A is not None:
            base = next((row.A for row in rows if row.name == found.reference), found.common_A)
            assert base is not None
            left.axvspan(base - found.margin, base + found.margin, color=light("band"), lw=0, zorder=0)
        left.set_yticks(range(len(rows)), [_label(row) for row in reversed(rows)])
        left.set_ylim(-0.6, len(rows) - 0.4)
        left.set_xlabel("A")
        left.set_title(f"Asymptote; band: the reference ± {found.margin:g}")
        common = "" if found.common_A is None else f" at A = {found.common_A:.3f}"
        right.set_xlabel("B")
        right.set_title(f"Efficiency{common}")
        for axes in (left, right):
            axes.grid(axis="y", visible=False)
        figure.supxlabel(
            "dot: the paper's protocol; line: the posterior's 80 % interval", color=light("soft"), fontsize=8
        )
        return save(figure, path)


def _one(axes: "matplotlib.axes.Axes", y: int, value: float | None, interval: Interval | None, colour: str) -> None:
    if interval is not None:
        axes.plot([interval.low, interval.high], [y, y], color=colour, lw=2.2, solid_capstyle="butt", alpha=0.55)
    if value is not None:
        axes.plot([value], [y], "o", ms=6, color=colour, zorder=3)


def _label(row: Row) -> str:
    runs = f" ({row.runs} runs)" if row.runs > 1 else ""
    return row.title + runs + (", reference" if row.verdict == "reference" else "")
