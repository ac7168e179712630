"""The generated dashboards as tests want them: files, panels, queries, variables filled in."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dashboards.build import FOLDER

NAMES = ("overview", "learning", "rollouts", "system", "controller", "compare", "stages")
LOADED = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in NAMES}


@dataclass(frozen=True)
class Asked:
    """One query of a dashboard."""

    board: str
    panel: str
    expr: str
    instant: bool = False


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel but the rows, those in collapsed rows included."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def asked() -> list[Asked]:
    """Every query of every dashboard, annotations included."""
    found = []
    for name, board in LOADED.items():
        for panel in panels(board):
            found += [Asked(name, panel["title"], t["expr"], t["instant"]) for t in panel["targets"]]
        found += [Asked(name, a["name"], a["expr"]) for a in board["annotations"]["list"] if "expr" in a]
    return found


def filled(expr: str, values: dict[str, str] | None = None) -> str:
    """The query as Prometheus gets it: windows in seconds or as given, every other variable a pattern that fits all."""
    given = {"__rate_interval": "5m", "__interval": "15s", "__range": "6h", **(values or {})}
    return re.sub(r"\$\{?(\w+)\}?", lambda m: given.get(m[1], ".+"), expr)
