"""What flows through the stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer.data.files import Record

PREVIEW = 200


@dataclass(frozen=True)
class Entry:
    """A record with what the spec says about the file it came from."""

    record: Record
    source: str
    """Path of the file, as the spec has it."""
    kind: str = "math"
    """math: judged by its answer; code: judged by its tests."""

    @property
    def rank(self) -> tuple[bool, bool, bool, str]:
        """Of two that say the same, the lower stays: the more complete record, then the smaller id."""
        record = self.record
        return record.difficulty is None, record.pass_rate is None, record.solution is None, record.id


@dataclass(frozen=True)
class Removed:
    """A prompt that was left out, and why."""

    entry: Entry
    rule: str
    """Name of the rule, for counting."""
    reason: str
    """The same with the particulars, for a person."""
    of: str = ""
    """What it repeats: the id of a record, or `set/item` of an evaluation set; empty where nothing is repeated."""

    def line(self, stage: str) -> dict[str, str]:
        """As it stands in `removed.jsonl`. Characters that no file can hold are replaced."""
        record = self.entry.record
        line = {
            "id": record.id,
            "stage": stage,
            "rule": self.rule,
            "reason": self.reason,
            "of": self.of,
            "source": self.entry.source,
            "prompt": record.prompt[:PREVIEW],
        }
        return {key: text.encode("utf-8", "replace").decode() for key, text in line.items()}


@dataclass(frozen=True)
class Sifted:
    """Result of a stage: every entry that went in is in exactly one of the two lists."""

    kept: Sequence[Entry]
    removed: Sequence[Removed]
    notes: Mapping[str, int] = field(default_factory=dict)
    """Counts worth telling that are no removals."""
