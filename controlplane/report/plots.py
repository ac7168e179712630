"""The pictures of the report. Each takes records and gives a matplotlib figure; `svg` and `overview_png` write them out.

strong line   held-out pass rate of the weights in force
faint line    training pass rate
reddish       what an abandoned branch did before it was given up
vertical      faults (where the trainer says so) and rollbacks
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from controlplane.decide import ForecastView, Kind
from controlplane.digest import facts, words
from controlplane.record import Record
from controlplane.report.theme import inline, light

STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # ships with matplotlib; the page puts the reader's own font in its place
    "font.size": 9.5,
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
    "ytick.minor.size": 0,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
_ARMS = ("held", "bad", "arm2", "arm3", "attention")


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step."""

    step: float
    label: str
    colour: str


def svg(draw: Callable[[], Figure], label: str) -> str:
    """The figure that `draw` makes, as inline SVG; `label` is read out by screen readers and must be escaped already."""
    out = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": label}):
        figure = draw()
        FigureCanvasSVG(figure)
        figure.savefig(out, format="svg")
    return inline(out.getvalue(), label)


def overview_png(record: Record, path: Path) -> None:
    """The overview of one run as a PNG of 1200 pixels width on a light ground."""
    with matplotlib.rc_context({**STYLE, "figure.facecolor": light("page"), "savefig.facecolor": light("page")}):
        figure = overview(record)
        FigureCanvasAgg(figure)
        figure.savefig(path, format="png", dpi=1200 / figure.get_size_inches()[0])


def overview(record: Record) -> Figure:
    """Held-out and training pass rate by step, with every branch and every mark."""
    figure, axes = _pass_rate(record, 3.9)
    _training(axes, record)
    _heldout(axes, record)
    _marks(axes, marks(record))
    for fork in facts.forks(record):
        back = _value_at(record, fork.to_step)
        if isfinite(back):
            arrow = {"arrowstyle": "->", "color": light("attention"), "lw": 1.3, "connectionstyle": "arc3,rad=-0.25"}
            low = _value_at(record, fork.from_step, fork.branch - 1)
            axes.annotate(
                "", (fork.to_step, back - 0.02), (fork.from_step, low if isfinite(low) else 0.1), arrowprops=arrow
            )
    _key(axes, record)
    return figure


def forecast(record: Record, views: Sequence[ForecastView]) -> Figure:
    """Each forecast's band from where it was made to the end, with what was known then and what came after."""
    figure, axes = _pass_rate(record, 3.4)
    rows = facts.in_force(record, facts.heldout(record))
    for view in views:
        band = facts.band_by_step(record, view)
        if not band:
            continue
        steps, lows, middles, highs = zip(*band, strict=True)
        bound = view.refused
        axes.fill_between(steps, lows, highs, color=light("rule" if bound else "band"), lw=0, alpha=0.7)
        axes.plot(steps, middles, color=light("soft" if bound else "held"), lw=1, ls=(0, (4, 3)))
    words_of = {True: "refused: only a bound", False: "forecast made"}
    _marks(axes, [Mark(view.step, f"{words_of[view.refused]} at {view.step}", "soft") for view in views])
    target = next((view.target for view in views if view.target is not None), None)
    if target is not None:
        axes.axhline(target, color=light("soft"), lw=0.8, ls=(0, (1, 3)))
        axes.annotate(
            f"target {words.ratio(target)}", (0, target), (2, 3), textcoords="offset points", color=light("soft")
        )
    made = min((view.step for view in views), default=0)
    for some, filled in (
        ([r for r in rows if r["step"] <= made], True),
        ([r for r in rows if r["step"] > made], False),
    ):
        xs, ys = _xy(some, "pass_ratio")
        if not xs:
            continue  # an empty curve would still take part in the layout
        face = light("held") if filled else light("page")
        label = "known when it was made" if filled else "came after"
        axes.plot(xs, ys, "o", ms=4.5, mfc=face, mec=light("held"), mew=1.2, label=label, clip_on=False, zorder=3)
    _legend(axes)
    return figure


def vitals(record: Record) -> Figure:
    """Small multiples of the trainer's vital signs, with the same marks."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    grid = figure.subplots(2, 4, sharex=True).ravel()
    panels = (
        ("Length, tokens", "mean_length", False), ("Truncated, share", "truncated", False),
        ("Gradient norm", "grad_norm", True), ("Entropy, nats", "entropy", True), ("Learning rate", "lr", True),
        ("Utilisation, share", "utilization", False), ("Staleness, steps (max)", "staleness_max", False),
        ("Seconds per step", "seconds", False),
    )  # fmt: skip
    kept, lost = facts.in_force(record, record.steps), facts.abandoned(record, record.steps)
    happened = marks(record)
    for axes, (title, key, logarithmic) in zip(grid, panels, strict=True):
        axes.set_title(title)
        axes.margins(x=0.01)
        for rows, colour in ((kept, "held"), *((stretch, "lost") for stretch in lost)):
            xs, ys = _xy(rows, key, positive=logarithmic)
            axes.plot(xs, ys, color=light(colour), lw=1.1)
        if not isfinite(facts.vital(record, key)):
            axes.annotate("not recorded", (0.5, 0.5), xycoords="axes fraction", ha="center", color=light("soft"))
            axes.set_yticks([])
        elif logarithmic:
            axes.set_yscale("log")
            _plain_log(axes)
        else:
            axes.set_ylim(bottom=0)
            axes.locator_params(axis="y", nbins=4)
        for mark in happened:
            axes.axvline(mark.step, color=light(mark.colour), lw=0.7, alpha=0.6, ls=(0, (3, 2)), zorder=0.5)
    return figure


def comparison(records: Sequence[Record], names: Sequence[str]) -> Figure:
    """The held-out curves of several runs in one picture, named where they end."""
    figure = Figure(figsize=(10, 4.0), layout="constrained")
    axes = figure.subplots()
    _frame(axes, max(map(facts.planned, records), default=1))
    ends: list[tuple[float, float, str, str]] = []
    for index, (record, name) in enumerate(zip(records, names, strict=True)):
        colour = light(_ARMS[index % len(_ARMS)])
        top = 3 - index / 100  # the first run is the one that the others are compared with
        for stretch in facts.abandoned(record, record.steps):
            axes.plot(*_xy(stretch, "pass_ratio"), color=colour, lw=1.2, alpha=0.45, zorder=top)
        xs, ys = _xy(facts.in_force(record, facts.heldout(record) or record.steps), "pass_ratio")
        axes.plot(xs, ys, color=colour, lw=2, zorder=top)
        finite = [(x, y) for x, y in zip(xs, ys, strict=True) if isfinite(y)]
        if finite:
            ends.append((*finite[-1], name, colour))
    heights = _apart([end[1] for end in ends], 0.065)
    for (x, y, name, colour), height in zip(ends, heights, strict=True):
        text = f"{name} {y:.2f}"
        axes.annotate(
            text, (x, height), (8, 0), textcoords="offset points", color=colour, va="center", annotation_clip=False
        )
    happened = {(mark.step, mark.label): mark for record in records for mark in marks(record, advice=False)}
    _marks(axes, sorted(happened.values(), key=lambda mark: mark.step))
    return figure


def marks(record: Record, advice: bool = True) -> list[Mark]:
    """Faults that the trainer wrote down, rollbacks, other actions and `advice` not carried out, in order of step."""
    found = [Mark(float(e.get("step") or 0), "fault put in", "bad") for e in record.events if e.get("event") == "fault"]
    found += [Mark(fork.from_step, f"rollback to {fork.to_step}", "attention") for fork in facts.forks(record)]
    for item in words.interventions(record):
        decision = item.look.decision
        if decision.step is None or decision.change is None:
            continue
        if decision.kind is Kind.act and decision.change.target is None:
            found.append(Mark(decision.step, item.what, "attention"))
        elif decision.kind is not Kind.act and advice:
            found.append(Mark(decision.step, f"{decision.rule} holds, {decision.kind.value} only", "attention"))
    return sorted(found, key=lambda mark: mark.step)


def _pass_rate(record: Record, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(10, height), layout="constrained")
    axes = figure.subplots()
    _frame(axes, max(facts.planned(record), facts.step_now(record)))
    return figure, axes


def _frame(axes: Axes, last: int) -> None:
    axes.set_xlim(0, max(last, 1))
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_xlabel("optimiser step", loc="left")
    axes.set_ylabel("pass rate")
    axes.grid(visible=False, axis="x")


def _training(axes: Axes, record: Record) -> None:
    for stretch in facts.abandoned(record, record.steps):
        axes.plot(*_xy(stretch, "pass_ratio"), color=light("lost"), lw=1.6)
    axes.plot(*_xy(facts.in_force(record, record.steps), "pass_ratio"), color=light("train"), lw=1)


def _heldout(axes: Axes, record: Record) -> None:
    rows = facts.heldout(record)
    for stretch in facts.abandoned(record, rows):
        axes.plot(*_xy(stretch, "pass_ratio"), color=light("lost"), lw=1.2, marker="o", ms=3.5, ls=(0, (3, 2)))
    kept = facts.in_force(record, rows)
    xs, ys = _xy(kept, "pass_ratio")
    axes.plot(xs, ys, color=light("held"), lw=2, marker="o", ms=4, clip_on=False)
    if kept:
        axes.annotate(
            words.ratio(ys[-1]), (xs[-1], ys[-1]), (7, 0), textcoords="offset points", color=light("held"), va="center",
            weight="bold", annotation_clip=False,
        )  # fmt: skip


def _key(axes: Axes, record: Record) -> None:
    """Names of the lines that are there."""
    wanted = [
        ("held-out", "held", 2.0, bool(facts.heldout(record))),
        ("training", "train", 1.0, bool(record.steps)),
        ("abandoned branch", "lost", 1.2, bool(facts.abandoned(record, record.steps))),
    ]
    for label, colour, width, there in wanted:
        if there:
            axes.plot([], [], color=light(colour), lw=width, label=label)
    if any(there for *_, there in wanted):
        _legend(axes)
    else:
        axes.annotate(
            "no pass rate was recorded", (0.5, 0.5), xycoords="axes fraction", ha="center", color=light("soft")
        )


def _legend(axes: Axes) -> None:
    """Below the axes, where no curve can run into it."""
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(
        loc="upper right", bbox_to_anchor=(1, -0.07), borderaxespad=0, frameon=False, labelcolor=light("soft"), ncols=3
    )


def _marks(axes: Axes, happened: Sequence[Mark]) -> None:
    """Vertical lines, named above the axes in as many rows as it takes that no two names meet."""
    low, high = axes.get_xlim()
    rows: list[float] = []  # where the last name of each row ends, in steps
    for mark in happened:
        axes.axvline(mark.step, color=light(mark.colour), lw=1.1, ls=(0, (3, 2)))
        width = len(mark.label) * 0.0085 * (high - low)
        row = next((i for i, end in enumerate(rows) if end <= mark.step), len(rows))
        rows[row : row + 1] = [mark.step + width]
        axes.annotate(
            mark.label, (mark.step, 1), (-2, 4 + 13 * row), xycoords=("data", "axes fraction"), textcoords="offset points",
            color=light(mark.colour), annotation_clip=False,
        )  # fmt: skip


def _xy(rows: Sequence[dict[str, Any]], key: str, positive: bool = False) -> tuple[list[float], list[float]]:
    values = [facts.number(row, key) for row in rows]
    return [float(row["step"]) for row in rows], [v if isfinite(v) and (v > 0 or not positive) else nan for v in values]


def _value_at(record: Record, step: int, branch: int | None = None) -> float:
    rows = [r for r in record.steps if r["step"] == step and (branch is None or (r.get("branch") or 0) == branch)]
    return facts.number(rows[0], "pass_ratio") if rows else nan


def _plain_log(axes: Axes) -> None:
    """Ticks on a log axis that need no superscripts, which would be drawn as mathematics."""
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 3), numticks=5))
    axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """The same heights, pushed up just so far that none is closer than `gap` to the next."""
    moved = list(heights)
    before = -gap
    for index in sorted(range(len(moved)), key=lambda i: moved[i]):
        moved[index] = before = max(moved[index], before + gap)
    return moved
