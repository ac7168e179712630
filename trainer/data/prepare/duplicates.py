"""Stage duplicates: the same prompt more than once."""

from collections import defaultdict
from collections.abc import Sequence

from trainer.data.prepare.entry import Entry, Removed, Sifted
from trainer.data.prepare.text import answer_key, exact_key


def duplicates(entries: Sequence[Entry]) -> Sifted:
    """Keep one of each prompt (`Entry.rank` says which); where copies disagree about the answer, keep none of them.

    Prompts are compared without white space and LaTeX spacing. A wrong reference answer teaches the wrong thing, and
    nothing here can tell which of two is right.
    """
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[exact_key(entry.record.prompt)].append(entry)
    kept: list[Entry] = []
    removed: list[Removed] = []
    for group in groups.values():
        if len({answer_of(entry) for entry in group} - {None}) > 1:
            removed += [_conflict(entry, group) for entry in group]
            continue
        best = min(group, key=lambda entry: entry.rank)
        kept.append(best)
        same = "the same prompt is kept once"
        removed += [Removed(entry, "exact duplicate", same, best.record.id) for entry in group if entry is not best]
    kept.sort(key=lambda entry: entry.record.id)
    return Sifted(kept, removed)


def answer_of(entry: Entry) -> str | None:
    """The answer in comparable form; None where tests judge."""
    return answer_key(entry.record.answer) if entry.record.answer is not None and entry.kind == "math" else None


def _conflict(entry: Entry, group: Sequence[Entry]) -> Removed:
    mine = answer_of(entry)
    other = min(
        (other for other in group if answer_of(other) != mine and answer_of(other) is not None),
        key=lambda other: other.record.id,
    )
    reason = f"the same prompt has the answers {entry.record.answer!r} and {other.record.answer!r}"
    return Removed(entry, "conflicting answers", reason, other.record.id)
