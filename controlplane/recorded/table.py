"""A recorded run as columns. Pure data; `files` makes it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """One row per logged step, in the order of the file. Missing values are NaN, never filled in.

    All columns have the same length. Names are those of `columns.SIGNALS`; proportions lie in [0, 1].
    """

    name: str
    step: Column
    """Optimiser step of each row, as logged."""
    branch: NDArray[np.int64]
    """0, and one more after each fall of the step: the run went back to a checkpoint, or started again."""
    columns: Mapping[str, Column]
    compute: Column
    """What was spent up to each row, in `compute_unit`; grows within a lineage. The steps themselves if nothing better was logged."""
    compute_unit: str = "steps"
    samples: float | None = None
    """Completions behind one row of a proportion, logged or seen from the values; None if they cannot tell."""
    notes: tuple[str, ...] = ()
    """One sentence for each thing that was guessed."""

    def __len__(self) -> int:
        return len(self.step)

    def known(self, name: str) -> bool:
        """Whether the run logged any value of this signal."""
        return name in self.columns and bool(np.isfinite(self.columns[name]).any())

    def points(self, name: str) -> tuple[Column, Column, Column]:
        """(step, compute, value) of the rows in which the signal has a value; the columns of a fit."""
        column = self.columns.get(name, np.full(len(self), np.nan))
        kept = np.isfinite(column)
        return self.step[kept], self.compute[kept], column[kept]

    def take(self, rows: NDArray[np.bool_]) -> "Table":
        """The table with only these rows."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return replace(
            self, step=self.step[rows], branch=self.branch[rows], compute=self.compute[rows], columns=columns
        )

    def lineage(self) -> "Table":
        """Only the rows that lead to the last weights: steps grow strictly, abandoned attempts are left out."""
        ahead = np.minimum.accumulate(self.step[::-1])[::-1]
        last = np.append(self.step[:-1] < ahead[1:], True) if len(self) else np.zeros(0, dtype=bool)
        return self.take(last)
