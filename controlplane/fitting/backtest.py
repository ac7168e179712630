"""`scalerl backtest` from end to end: a folder in, tables out."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from controlplane.contract.yamlfile import FileError
from controlplane.fitting.curves import read_curves
from controlplane.forecast.backtest import FRACTIONS, HORIZONS, RIVALS, Scored, run_backtest, summary
from controlplane.study.table import markdown

_HEAD = [
    "method",
    "forecasts",
    "families",
    "MAE",
    "bias",
    "80 % covers",
    "95 % covers",
    "width of 80 %",
    "score of 80 %",
]


def print_backtest(
    folder: Path, fractions: Sequence[float], horizons: Sequence[float], families: bool, as_json: bool
) -> int:
    """Exit code: 0, or 1 if a curve could not be used (the others are scored)."""
    fractions, horizons = fractions or FRACTIONS, horizons or HORIZONS
    if any(not 0.0 < f < 1.0 for f in fractions) or any(not h > 1.0 for h in horizons):
        raise FileError("backtest: a fraction lies between 0 and 1, and a horizon above 1")
    curves, problems = read_curves(folder)
    progress = Console(stderr=True)
    done = iter(range(1, len(curves) + 1))
    with progress.status("") as status:
        scored = run_backtest(
            curves,
            fractions=fractions,
            horizons=horizons,
            told=lambda series: status.update(f"{next(done)} of {len(curves)}: {series.name}"),
        )
    if not scored:
        raise FileError(f"{folder}: no curve has 6 points in the first {max(fractions):.0%}; nothing can be forecast")
    if as_json:
        json.dump([asdict(s) for s in scored], sys.stdout, indent=1)
        print()
    else:
        for line in tables(scored, horizons, fractions, families):
            print(line)
    for problem in problems:
        progress.print(problem, markup=False, highlight=False)
    return 1 if problems else 0


def tables(
    scored: Sequence[Scored], horizons: Sequence[float], fractions: Sequence[float], families: bool
) -> list[str]:
    """All methods over everything, then by horizon, fraction and, if asked, family."""
    refused = [s for s in scored if s.method == RIVALS[0].name]
    share = sum(s.refused for s in refused) / len(refused)
    found = [
        table(scored),
        "",
        f"Families weigh the same. {share:.0%} of ours came with a refusal (a bound only); they are scored like the others. "
        "Score: width and ten times each miss, lower is better.",
    ]
    groups = [(f"At {h:g} times the compute", [s for s in scored if s.horizon == h]) for h in horizons]
    groups += [(f"From the first {f:.0%}", [s for s in scored if s.fraction == f]) for f in fractions]
    if families:
        groups += [(f"Family {f}", [s for s in scored if s.family == f]) for f in sorted({s.family for s in scored})]
    for title, some in groups:
        if some:
            found += ["", f"{title}:", "", table(some)]
    return found


def table(scored: Sequence[Scored]) -> str:
    """One line per method."""
    rows = []
    for rival in RIVALS:
        s = summary([one for one in scored if one.method == rival.name])
        rows.append(
            [
                rival.name, str(s.forecasts), str(s.families), f"{s.mae:.3f}", f"{s.bias:+.3f}", f"{s.cov80:.2f}",
                f"{s.cov95:.2f}", f"{s.width:.3f}", f"{s.winkler:.3f}",
            ]
        )  # fmt: skip
    return markdown(_HEAD, rows)
