"""Stage format_standardization: text in one form, every prompt with something to judge it by and a name of its own."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from trainer.data.files import Record
from trainer.data.prepare.entry import Entry, Removed, Sifted
from trainer.data.prepare.text import answer_key, damage, standard, tokens


def format_standardization(entries: Sequence[Entry]) -> Sifted:
    """Rewrite text into standard form, make missing ids, tell clashing ids apart, remove what cannot be used.

    Tests are program text and stay as they are. The result is in the order of ids.
    """
    kept: list[Entry] = []
    removed: list[Removed] = []
    rewritten = made = 0
    for entry in entries:
        record = standardized(entry.record)
        rewritten += record != entry.record
        if not record.id:
            made += 1
            record = replace(record, id=f"p-{_fingerprint(record)}")
        fault = _damaged(entry.record)
        entry = replace(entry, record=record)
        fault = fault or _unusable(entry)
        if fault:
            removed.append(Removed(entry, *fault))
        else:
            kept.append(entry)
    kept, renamed = _told_apart(kept)
    kept.sort(key=lambda entry: (entry.record.id, entry.rank, entry.record.answer or "", entry.source))
    return Sifted(kept, removed, {"records rewritten": rewritten, "ids made": made, "clashing ids renamed": renamed})


def standardized(record: Record) -> Record:
    """The record in standard form; doing it twice changes nothing."""
    return replace(
        record,
        prompt=standard(record.prompt),
        answer=_text(record.answer),
        id=standard(record.id),
        difficulty=_text(record.difficulty),
        solution=_text(record.solution),
    )


def _text(value: str | None) -> str | None:
    return (standard(value) or None) if value is not None else None


def _damaged(record: Record) -> tuple[str, str] | None:
    """(rule, reason) if text was lost on the way here. It is looked for before standard form hides it."""
    texts = {"prompt": record.prompt, "answer": record.answer, "solution": record.solution, "id": record.id}
    for name, text in (*texts.items(), ("difficulty", record.difficulty), *(("tests", test) for test in record.tests)):
        problem = damage(text or "", latex=name != "tests")
        if problem:
            return "damaged text", f"the {name} {problem}"
    return None


def _unusable(entry: Entry) -> tuple[str, str] | None:
    """(rule, reason) if the record has nothing to ask or to judge by."""
    record = entry.record
    if not tokens(record.prompt):
        return "empty prompt", "the prompt has no words"
    if entry.kind == "code":
        return None if any(test.strip() for test in record.tests) else ("no tests", "a code prompt has no tests")
    if record.answer is None:
        return "no answer", "a math prompt has no answer"
    if not answer_key(record.answer):
        return "unusable answer", f"nothing is left of the answer {record.answer!r} once its markup is gone"
    return None


def _fingerprint(record: Record) -> str:
    """16 hex digits that depend on what is asked and how it is judged; damaged text has one too."""
    content = json.dumps([record.prompt, record.answer, record.tests])
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def _told_apart(entries: Sequence[Entry]) -> tuple[list[Entry], int]:
    """Files that count from 1 share ids; where one id names different prompts, each gets a fingerprint behind it."""
    named: dict[str, set[str]] = defaultdict(set)
    prints = [_fingerprint(entry.record) for entry in entries]
    for entry, mark in zip(entries, prints, strict=True):
        named[entry.record.id].add(mark)
    result = []
    renamed = 0
    for entry, mark in zip(entries, prints, strict=True):
        if len(named[entry.record.id]) > 1:
            renamed += 1
            entry = replace(entry, record=replace(entry.record, id=f"{entry.record.id}~{mark}"))
        result.append(entry)
    return result, renamed
