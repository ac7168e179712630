"""A chart made of braille characters: each cell holds 2 x 4 dots, and shows the most important layer that passes through it."""

from collections.abc import Sequence
from itertools import groupby, pairwise
from math import isfinite

from rich.text import Text

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # [row][column] of the braille block
_BLANK = 0x2800

XY = Sequence[tuple[float, float]]


class Chart:
    """`width` x `height` characters over the ranges `x` and `y`. What lies outside is left out, not clipped to the edge."""

    def __init__(self, width: int, height: int, x: tuple[float, float], y: tuple[float, float] = (0.0, 1.0)) -> None:
        self.width, self.height, self._x, self._y = width, height, x, y
        # (rank, dots or character, style) by cell; a cell is drawn in the style of its highest rank.
        self._cells: dict[tuple[int, int], tuple[int, int | str, str]] = {}

    def points(self, points: XY, style: str, rank: int) -> None:
        """One dot per point."""
        for x, y in points:
            if isfinite(x) and isfinite(y):
                self._dot(self._column(x), self._row(y), style, rank)

    def line(self, points: XY, style: str, rank: int) -> None:
        """Straight lines between neighbouring points; a value that is not finite breaks the line."""
        self.points(points, style, rank)
        for (x0, y0), (x1, y1) in pairwise(points):
            if not all(map(isfinite, (x0, y0, x1, y1))):
                continue
            c0, r0, c1, r1 = self._column(x0), self._row(y0), self._column(x1), self._row(y1)
            steps = max(abs(c1 - c0), abs(r1 - r0), 1)
            for i in range(steps + 1):
                self._dot(round(c0 + (c1 - c0) * i / steps), round(r0 + (r1 - r0) * i / steps), style, rank)

    def band(self, rows: Sequence[tuple[float, float, float]], style: str, rank: int) -> None:
        """(x, low, high) filled with every second dot."""
        for (x0, low0, high0), (x1, low1, high1) in pairwise(rows):
            c0, c1 = self._column(x0), self._column(x1)
            for column in range(c0, c1 + 1):
                share = (column - c0) / max(1, c1 - c0)
                top, bottom = (self._row(a + (b - a) * share) for a, b in ((high0, high1), (low0, low1)))
                for row in range(top, bottom + 1):
                    if (row + column) % 2 == 0 or row in (top, bottom):
                        self._dot(column, row, style, rank)

    def mark(self, x: float, style: str, rank: int, character: str = "┊") -> None:
        """A vertical line."""
        column = self._column(x) // 2
        for row in range(self.height):
            self._put(column, row, character, style, rank)

    def rows(self) -> list[Text]:
        """The lines of the chart, top first."""
        lines = []
        for row in range(self.height):
            cells = [self._cells.get((column, row), (0, " ", "")) for column in range(self.width)]
            runs = groupby(cells, key=lambda cell: cell[2])
            lines.append(Text.assemble(*(("".join(map(_character, run)), style) for style, run in runs)))
        return lines

    def position(self, x: float) -> int:
        """The character column of `x`, within the chart."""
        return min(max(self._column(x) // 2, 0), self.width - 1)

    def _column(self, x: float) -> int:
        low, high = self._x
        return round((x - low) / ((high - low) or 1.0) * (2 * self.width - 1))

    def _row(self, y: float) -> int:
        low, high = self._y
        return round((high - y) / (high - low) * (4 * self.height - 1))

    def _dot(self, column: int, row: int, style: str, rank: int) -> None:
        self._put(column // 2, row // 4, _DOTS[row % 4][column % 2], style, rank)

    def _put(self, column: int, row: int, content: int | str, style: str, rank: int) -> None:
        if not (0 <= column < self.width and 0 <= row < self.height):
            return
        before, old, _ = self._cells.get((column, row), (-1, 0, ""))
        if rank < before:
            return
        if rank == before and isinstance(old, int) and isinstance(content, int):
            content |= old
        self._cells[column, row] = (rank, content, style)


def _character(cell: tuple[int, int | str, str]) -> str:
    content = cell[1]
    return content if isinstance(content, str) else chr(_BLANK + content)
