"""What a detector says. Four outcomes, never mixed up: `ok`, `breach`, `inconclusive` (too little evidence yet, or grace
after a rollback) and `error` (the value is NaN or missing where it should be). Only a breach can be a key of a rule."""

from dataclasses import dataclass
from enum import StrEnum
from math import nan
from typing import Protocol

from controlplane.detect.signals import Reading


class Outcome(StrEnum):
    ok = "ok"
    breach = "breach"
    inconclusive = "inconclusive"
    error = "error"


@dataclass(frozen=True)
class Finding:
    """What a detector says after its newest reading."""

    outcome: Outcome
    statistic: float = nan
    threshold: float = nan
    onset: int | None = None
    """Step of the last reading before the breach began; a rollback should go behind it."""
    detail: str = ""


class Detector(Protocol):
    """Fed with every new reading of its signal, in order."""

    def update(self, reading: Reading) -> Finding: ...

    def rewind(self, step: int) -> None:
        """The run went back to `step`: forget what came after, keep what the lineage still has."""
        ...
