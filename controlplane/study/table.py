"""The tables, as Markdown that also reads well in a terminal. Pure."""

from collections.abc import Sequence
from math import isfinite

from controlplane.study.compare import MARGIN, Comparison, Row
from controlplane.study.fits import LEVEL, Grid, Interval
from controlplane.study.repeat import Repeats, Spread

PAPER_A = 0.605
"""Common A of the paper's leave-one-out table (ScaleRL, Fig. 7)."""
PAPER_DEVIATION = 0.015
"""Largest move of A over the paper's three seeds (ScaleRL, Fig. 8a)."""
_WORDS = {"reference": "reference", "equal": "equal", "higher": "higher", "lower": "lower", "unknown": "no reference"}


def comparison(found: Comparison) -> str:
    """Fits of all variants, best first."""
    common = "common A" if found.common_A is None else f"A = {found.common_A:.3f}"
    head = [
        "variant", f"B at {common}", f"C_mid at {common}", "B", "C_mid", "A", f"A by the ±{found.margin:g} rule", "P(equal)",
        "held-out, end", "completions", "device-s", "minutes",
    ]  # fmt: skip
    paper = any(row.paper and any(row.paper.values()) for row in found.rows)
    head += ["paper: B", "paper: A"] if paper else []
    lines = [_cells(row, found.reference) + (_paper(row) if paper else []) for row in found.rows]
    return markdown(head, lines)


def _cells(row: Row, reference: str) -> list[str]:
    name = f"**{row.title}**" if row.name == reference else row.title
    verdict = _WORDS[row.verdict] if row.A is not None else "no fit" if row.runs else "no run"
    if row.difference is not None and row.verdict != "reference":
        verdict += f" ({row.difference:+.3f})"
    return [
        name,
        number(row.B_common, 2, row.B_common_interval),
        number(row.C_mid_common, 4),
        number(row.B, 2, row.B_interval),
        number(row.C_mid, 4) + _mark(row.edges, "C_mid"),
        number(row.A, 3, row.A_interval) + _mark(row.edges, "A"),
        verdict,
        "-" if row.p_equal is None else f"{row.p_equal:.0%}",
        f"{row.final:.3f} ± {row.final_error:.3f}" if isfinite(row.final) else "-",
        f"{row.completions:,.0f}" if isfinite(row.completions) else "-",
        f"{row.device_seconds:.0f}" if isfinite(row.device_seconds) else "-",
        f"{row.minutes:.1f}" if isfinite(row.minutes) else "-",
    ]


def _paper(row: Row) -> list[str]:
    paper = row.paper or {}
    return [
        number(paper.get("B_common") or paper.get("B"), 2),
        number(paper.get("A"), 3),
    ]


def comparison_notes(found: Comparison, axis: str, grid: Grid, r0: Sequence[float]) -> list[str]:
    """What one has to know to read the table."""
    notes = [
        f"A, B, C_mid: the paper's protocol ({grid_words(grid)}); in brackets the posterior's {LEVEL:.0%} interval. "
        f"Compute is {axis}; R_0 = {r0_words(r0)}, the evaluation at compute 0.",
        f"Two A within {found.margin:g} count as equal ({margin_source(found.margin)}); B is then "
        "compared at the mean of theirs, and the table is in that order. P(equal) is the posterior probability that the "
        "two A lie within the margin: where it is low, equal means not told apart.",
    ]
    fits = [row for row in found.rows if row.B_common_interval is not None]
    if len(fits) > 1:
        best, last = fits[0].B_common_interval, fits[-1].B_common_interval
        if best and last and last.high >= best.low:
            notes.append(
                "The intervals of the highest and the lowest B at the common A overlap: the order is not settled."
            )
    if any(row.edges for row in found.rows):
        notes.append("* at the edge of the grid: a bound, not an estimate.")
    if all(row.runs <= 1 for row in found.rows):
        notes.append("One run per variant: seeds move A and B too; `scalerl repeat` says by how much.")
    if any(row.paper and row.paper.get("B_common") for row in found.rows):
        notes.append(f"paper: 8B dense model, 16k GPU-hours, B at the common A of {PAPER_A}.")
    elif any(row.paper and any(row.paper.values()) for row in found.rows):
        notes.append("paper: 8B dense model, free fits of Fig. 2.")
    notes += [f"{row.title}: {problem}" for row in found.rows for problem in row.problems]
    return notes


def repeat_table(found: Repeats) -> str:
    """One line per seed, then mean, largest deviation and standard deviation."""
    common = f"A = {found.A.mean:.3f}"
    head = [
        "run",
        f"B at {common}",
        f"C_mid at {common}",
        "B",
        "C_mid",
        "A",
        "held-out, end",
        "completions",
        "device-s",
        "minutes",
    ]
    lines = []
    for row in found.rows:
        run = row.run
        lines.append(
            [
                f"seed {run.seed}",
                number(row.common.B, 2),
                number(row.common.C_mid, 4),
                number(row.free.B, 2, row.B_interval),
                number(row.free.C_mid, 4) + _mark(row.edges, "C_mid"),
                number(row.free.A, 3, row.A_interval) + _mark(row.edges, "A"),
                f"{run.final:.3f}",
                f"{run.completions:,.0f}",
                f"{run.device_seconds:.0f}",
                f"{run.minutes:.1f}",
            ]
        )
    spreads = (found.B_common, found.C_mid_common, found.B, found.C_mid, found.A, found.final)
    digits = (2, 4, 2, 4, 3, 3)

    def line(word: str, name: str) -> list[str]:
        return [word, *(number(getattr(s, name), d) for s, d in zip(spreads, digits, strict=True)), "", "", ""]

    lines += [line("**mean**", "mean"), line("largest deviation", "deviation"), line("standard deviation", "sd")]
    return markdown(head, lines)


def repeat_notes(found: Repeats, axis: str, grid: Grid) -> list[str]:
    """The margin, in words."""
    r0 = [row.run.fitted.curve.r0 for row in found.rows]
    return [
        f"A, B, C_mid: the paper's protocol ({grid_words(grid)}); in brackets the posterior's {LEVEL:.0%} interval. "
        f"Compute is {axis}; R_0 = {r0_words(r0)}, the evaluation at compute 0.",
        f"A moves by at most ±{found.A.deviation:.3f} over {len(found.rows)} seeds (the paper: ±{PAPER_DEVIATION}, hence its "
        f"margin of ±0.02). {margin_words(found.A)}",
        f"B moves by ±{found.B.deviation:.2f} free and by ±{found.B_common.deviation:.2f} at the common A: a smaller "
        "difference between two recipes is within what seeds do. (The paper gives no margin on B; its three free fits moved by 0.28.)",
    ]


def margin_source(margin: float) -> str:
    """Where the margin comes from."""
    return "the paper's margin, measured on runs of 16k GPU-hours" if margin == MARGIN else "the paper's is 0.02"


def margin_words(a: Spread) -> str:
    """What margin on A these runs support."""
    if a.deviation <= PAPER_DEVIATION + 1e-9:
        return "That does not contradict the paper's margin."
    return f"The paper's margin is too small here: compare with --margin {rounded_up(a.deviation):g}."


def rounded_up(value: float, step: float = 0.005) -> float:
    """The next multiple of `step` at or above."""
    return round(-(-(value - 1e-9) // step) * step, 6)


def grid_words(grid: Grid) -> str:
    """The grid in words."""
    if grid.absolute:
        return "its own grid: A .450 to .800 by .005, C_mid 100 to 40,000, evaluations before 1,500 dropped"
    first, last, count = grid.c_mid
    cut = f"evaluations before {grid.cut:.0%} of the longest run dropped" if grid.cut else "no evaluation dropped"
    return (
        f"grid sized to these runs: A from 0.05 below the best evaluation by {grid.a_step:g}, {count} C_mid from {first:g} to "
        f"{last:g} of the longest run; {cut}"
    )


def r0_words(values: Sequence[float]) -> str:
    """One value, or the range."""
    low, high = min(values), max(values)
    return f"{low:.3f}" if high - low < 5e-4 else f"{low:.3f} to {high:.3f}"


def number(value: float | None, digits: int, interval: Interval | None = None) -> str:
    """A parameter, with its interval if there is one. `digits` after the point; from 4 on, as suits the size of a compute."""
    if value is None:
        return "-"
    text = _text(value, digits)
    return text if interval is None else f"{text} [{_text(interval.low, digits)}, {_text(interval.high, digits)}]"


def _text(value: float, digits: int) -> str:
    if digits >= 4:
        digits = 0 if value >= 1000 else 1 if value >= 1 else 3
    return f"{value:,.{digits}f}"


def _mark(edges: Sequence[str], name: str) -> str:
    return "*" if name in edges else ""


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with columns padded to line up; the first is left-aligned, the others right."""
    widths = [max(3, *(len(line[i]) for line in (head, *lines))) for i in range(len(head))]

    def one(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * w if i == 0 else "-" * (w - 1) + ":") for i, w in enumerate(widths)]
    return "\n".join([one(head), f"| {' | '.join(rule)} |", *map(one, lines)])
