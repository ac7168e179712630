"""What a journal line holds.

start      policy text and name, epoch, run_uid, versions: one per controller start
look       snapshot, decision, findings, and the forecast when it is new: one per look at the run
published  decision_id, document: written after the look and before the file is replaced
trial      one arm of a probe: with the look that begins it, and again, with what became of it, before the study is told
stop       reason
"""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict


class EntryKind(StrEnum):
    start = "start"
    look = "look"
    published = "published"
    trial = "trial"
    stop = "stop"


class Entry(BaseModel):
    """One journal line. `hash` covers the line and the hash before it, so nothing can be changed or taken out unseen."""

    model_config = ConfigDict(frozen=True)

    seq: int
    at: float
    """Unix seconds."""
    kind: EntryKind
    body: dict[str, Any]
    hash: str
