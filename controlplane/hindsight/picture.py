"""The picture of `scalerl replay`: one panel per signal that the run has, alarms shaded, everything that was said marked."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from controlplane.contract.yamlfile import FileError
from controlplane.hindsight.rehearse import Hindsight
from controlplane.recorded import Table
from controlplane.report.plots import STYLE
from controlplane.report.theme import light

_PANELS = {
    "pass_rate": "pass rate",
    "truncation": "truncated share",
    "gen_length": "mean length, tokens",
    "grad_norm": "gradient norm",
    "mismatch_kl": "sampler-learner mismatch, nats",
    "entropy": "entropy, nats",
    "loss": "loss",
    "zero_variance": "groups without signal",
}
_LOGARITHMIC = frozenset({"grad_norm", "mismatch_kl"})
_MARKS = {"act": "bad", "page": "attention", "advise": "attention", "observe": "soft"}
_MOST = 6


def write(table: Table, hindsight: Hindsight, path: Path) -> None:
    """Write the picture as PNG or SVG, by the ending of `path`."""
    if path.suffix not in (".png", ".svg"):
        raise FileError(f"{path}: a picture ends in .png or .svg")
    ground = {"figure.facecolor": light("page"), "savefig.facecolor": light("page")}
    with matplotlib.rc_context({**STYLE, **ground}):
        figure = draw(table, hindsight)
        (FigureCanvasAgg if path.suffix == ".png" else FigureCanvasSVG)(figure)
        figure.savefig(path, dpi=120)


def draw(table: Table, hindsight: Hindsight) -> Figure:
    """Panels over the step, the signals with alarms first kept."""
    alarmed = {signal for name in hindsight.alarms if (signal := _signal(hindsight, name))}
    known = [name for name in _PANELS if table.known(name)]
    # The pass rate always; then what was in alarm; then the rest, as far as there is room.
    chosen = sorted(known, key=lambda name: (name != "pass_rate", name not in alarmed))[:_MOST]
    shown = [name for name in _PANELS if name in chosen]
    figure = Figure(figsize=(10, 0.9 + 1.45 * max(len(shown), 1)), layout="constrained")
    panels = figure.subplots(max(len(shown), 1), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, shown, strict=False):
        _panel(axes, table, hindsight, name)
    panels[-1].set_xlabel("optimiser step")
    figure.suptitle(f"{table.name} under policy {hindsight.policy.name}", x=0.01, ha="left", fontsize=11)
    return figure


def _panel(axes: Axes, table: Table, hindsight: Hindsight, name: str) -> None:
    steps, _, values = table.points(name)
    axes.plot(steps, values, color=light("held"), linewidth=1.1, marker="." if len(steps) < 60 else None, markersize=4)
    if name == "pass_rate" and table.known("eval_pass_rate"):
        at, _, held_out = table.points("eval_pass_rate")
        axes.plot(at, held_out, color=light("ink"), linewidth=1.4, label="held out")
    axes.set_title(_PANELS[name])
    if name in _LOGARITHMIC and (values > 0).all():
        axes.set_yscale("log")
    mine = [(each, stretches) for each, stretches in hindsight.alarms.items() if _signal(hindsight, each) == name]
    for number, (detector, stretches) in enumerate(mine):
        for first, last in stretches:
            axes.axvspan(first, max(last, first + 0.3), color=light("attention"), alpha=0.2, linewidth=0)
        axes.annotate(
            detector, (stretches[0][0], 0.97 - 0.16 * number), xycoords=("data", "axes fraction"), fontsize=7.5,
            color=light("attention"), va="top", ha="left", xytext=(2, 0), textcoords="offset points",
        )  # fmt: skip
    for each in hindsight.said:
        width = 1.6 if each.verb == "act" else 0.8
        axes.axvline(each.step, color=light(_MARKS.get(each.verb, "soft")), linewidth=width)
    if name == "pass_rate":
        _label(axes, hindsight, float(steps.max() - steps.min()))


def _label(axes: Axes, hindsight: Hindsight, span: float) -> None:
    """The rules beside their first marks; marks that lie close together get their labels one above the other."""
    told: set[str] = set()
    last, level = -span, 0
    for each in hindsight.said:
        if each.rule in told:
            continue
        told.add(each.rule)
        level = level + 1 if each.step - last < 0.15 * span else 0
        last = each.step
        axes.annotate(
            each.rule, (each.step, 0.04 + 0.14 * (level % 6)), xycoords=("data", "axes fraction"), fontsize=7.5,
            color=light(_MARKS.get(each.verb, "soft")), va="bottom", ha="left", xytext=(3, 0),
            textcoords="offset points",
        )  # fmt: skip


def _signal(hindsight: Hindsight, detector: str) -> str:
    return str(getattr(hindsight.policy.detectors.get(detector), "signal", ""))
