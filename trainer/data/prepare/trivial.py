"""Stage trivial_prompts: prompts that teach nothing, because they are always solved or ask nothing."""

from collections.abc import Sequence

from trainer.data.prepare.entry import Entry, Removed, Sifted
from trainer.data.prepare.spec import Trivial


def trivial_prompts(entries: Sequence[Entry], settings: Trivial) -> Sifted:
    """Remove by pass rate, by difficulty and by length. A prompt without a pass rate is not judged by it."""
    kept: list[Entry] = []
    removed: list[Removed] = []
    unknown = 0
    for entry in entries:
        unknown += settings.pass_rate is not None and entry.record.pass_rate is None
        fault = _fault(entry, settings)
        if fault:
            removed.append(Removed(entry, *fault))
        else:
            kept.append(entry)
    return Sifted(kept, removed, {"without a pass rate, not judged by it": unknown})


def _fault(entry: Entry, settings: Trivial) -> tuple[str, str] | None:
    record = entry.record
    if settings.pass_rate is not None and record.pass_rate is not None and record.pass_rate >= settings.pass_rate:
        return "solved too often", f"pass rate {record.pass_rate:g}, removed from {settings.pass_rate:g}"
    if record.difficulty in settings.difficulties:
        return "too easy", f"difficulty {record.difficulty!r}"
    if len(record.prompt) < settings.shorter_than:
        return "too short", f"the prompt has {len(record.prompt)} characters, wanted are {settings.shorter_than}"
    return None
