"""Panels -> rows on Grafana's grid of 24 columns, left to right, with ids in reading order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLUMNS = 24


@dataclass(frozen=True)
class Row:
    """A question, and the panels that answer it as (panel, width, height). A collapsed row loads when it is opened."""

    title: str
    panels: Sequence[tuple[dict[str, Any], int, int]]
    collapsed: bool = False


def place(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Give every panel its place and its id."""
    placed: list[dict[str, Any]] = []
    y, number = 0, 0
    for row in rows:
        number += 1
        head: dict[str, Any] = {"type": "row", "id": number, "title": row.title, "collapsed": row.collapsed}
        head |= {"panels": [], "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}}
        placed.append(head)
        inside, below, number = _flow(row, y + 1, number)
        (head["panels"] if row.collapsed else placed).extend(inside)
        y = y + 1 if row.collapsed else below
    return placed


def _flow(row: Row, y: int, number: int) -> tuple[list[dict[str, Any]], int, int]:
    found, x, tallest = [], 0, 0
    for panel, width, height in row.panels:
        if x + width > COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        number += 1
        found.append({**panel, "id": number, "gridPos": {"x": x, "y": y, "w": width, "h": height}})
        x, tallest = x + width, max(tallest, height)
    return found, y + tallest, number
