"""Stage decontamination: prompts that give away an item of an evaluation set.

Overlap of 13 words in a row, after Brown et al. 2020, appendix C. Two things are added. Contest problems end in set phrases
("where m and n are relatively prime positive integers, find m + n") which alone would remove every problem of that kind: an
n-gram that several evaluation items share, whatever its numbers and one-letter names, counts for nothing. And items too
short for an n-gram are looked for whole.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.prepare.entry import Entry, Removed, Sifted
from trainer.data.prepare.shingles import Hashes, hashes, windows
from trainer.data.prepare.text import words

_VARIABLE = re.compile(r"^(?:\d+|[a-z])$")
SHORTEST_INSIDE = 6
"""A short item of fewer words is only found where it is the whole prompt; inside others it would be chance."""


@dataclass(frozen=True)
class Item:
    """A prompt of an evaluation set."""

    set: str
    id: str
    prompt: str


@dataclass(frozen=True)
class _Index:
    """n-grams of one size, sorted, and for each the evaluation item it comes from."""

    size: int
    grams: Hashes
    owner: NDArray[np.int64]

    def find(self, values: Hashes) -> tuple[int, int] | None:
        """(position in the prompt, item) of the first n-gram that is in the index."""
        grams = windows(values, self.size)
        if not len(grams) or not len(self.grams):
            return None
        at = np.minimum(np.searchsorted(self.grams, grams), len(self.grams) - 1)
        hits = np.flatnonzero(self.grams[at] == grams)
        return (int(hits[0]), int(self.owner[at[hits[0]]])) if len(hits) else None


def decontamination(entries: Sequence[Entry], items: Sequence[Item], ngram: int, boilerplate: int) -> Sifted:
    """Remove prompts that share `ngram` words in a row with an item, hold a shorter item whole, or equal any item.

    Args:
        boilerplate: an n-gram in this many different items or more is ignored.
    """
    texts = [words(item.prompt) for item in items]
    whole = {tuple(text): number for number, text in reversed(list(enumerate(texts))) if text}
    long = {number: text for text, number in whole.items() if len(text) >= ngram}
    inner, ignored = _index(long, ngram, boilerplate)
    lengths = sorted({len(text) for text in whole if SHORTEST_INSIDE <= len(text) < ngram})
    short = [
        _index({number: text for text, number in whole.items() if len(text) == size}, size, len(items) + 1)[0]
        for size in lengths
    ]
    kept: list[Entry] = []
    removed: list[Removed] = []
    for entry in entries:
        mine = words(entry.record.prompt)
        found = _fault(mine, items, whole, [inner, *short])
        if found:
            removed.append(Removed(entry, *found))
        else:
            kept.append(entry)
    return Sifted(kept, removed, {"n-grams ignored as set phrases": ignored})


def _index(texts: Mapping[int, Sequence[str]], size: int, boilerplate: int) -> tuple[_Index, int]:
    """Index of the n-grams of numbered items, and how many were left out as set phrases."""
    spread: Counter[int] = Counter()
    phrase: dict[int, int] = {}
    owner: dict[int, int] = {}
    for number in sorted(texts):
        grams = windows(hashes(texts[number]), size).tolist()
        phrases = windows(hashes([_VARIABLE.sub("#", word) for word in texts[number]]), size).tolist()
        spread.update(set(phrases))
        phrase.update(zip(grams, phrases, strict=True))
        for gram in grams:
            owner.setdefault(gram, number)
    telling = sorted(gram for gram in owner if spread[phrase[gram]] < boilerplate)
    owners = np.array([owner[gram] for gram in telling], dtype=np.int64)
    return _Index(size, np.array(telling, dtype=np.uint64), owners), len(owner) - len(telling)


def _fault(
    mine: Sequence[str], items: Sequence[Item], whole: dict[tuple[str, ...], int], indices: Sequence[_Index]
) -> tuple[str, str, str] | None:
    number = whole.get(tuple(mine))
    if number is not None:
        item = items[number]
        return f"in {item.set}", f"is the whole of {item.set}, item {item.id}", f"{item.set}/{item.id}"
    values = hashes(mine)
    for index in indices:
        if hit := index.find(values):
            at, number = hit
            item, phrase = items[number], " ".join(mine[at : at + index.size])
            reason = f"shares {index.size} words in a row with {item.set}, item {item.id}: {phrase!r}"
            return f"in {item.set}", reason, f"{item.set}/{item.id}"
    return None
