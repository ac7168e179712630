"""Runs that somebody else recorded, as columns with the names of our signals, and what had to be guessed for it."""

from controlplane.recorded.columns import SIGNALS
from controlplane.recorded.files import read_run
from controlplane.recorded.table import Table

__all__ = ["SIGNALS", "Table", "read_run"]
