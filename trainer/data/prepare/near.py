"""Stage near_duplicates: the same problem in slightly other words."""

from collections import defaultdict
from collections.abc import Sequence

from trainer.data.prepare.duplicates import answer_of
from trainer.data.prepare.entry import Entry, Removed, Sifted
from trainer.data.prepare.shingles import shingles
from trainer.data.prepare.similar import similar_pairs
from trainer.data.prepare.spec import NearDuplicates, Similarity


def near_duplicates(entries: Sequence[Entry], similarity: Similarity, settings: NearDuplicates) -> Sifted:
    """Go through the entries by rank and remove each that is near one already kept.

    So no two that are kept are near, and a chain A-B-C keeps A and C where only B is near both. Prompts that are alike and
    have different answers are different problems, unless the settings say otherwise; the split keeps them together.
    """
    near: dict[int, list[tuple[float, int]]] = defaultdict(list)
    different = 0
    for a, b, jaccard in similar_pairs([shingles(e.record.prompt, similarity) for e in entries], settings.threshold):
        if settings.different_answers == "keep" and _differ(entries[a], entries[b]):
            different += 1
            continue
        near[a].append((jaccard, b))
        near[b].append((jaccard, a))
    kept: set[int] = set()
    removed: list[Removed] = []
    for position in sorted(range(len(entries)), key=lambda i: entries[i].rank):
        rivals = [(-jaccard, entries[other].rank, other) for jaccard, other in near[position] if other in kept]
        if not rivals:
            kept.add(position)
            continue
        distance, _, other = min(rivals)
        reason = f"{-distance:.2f} alike (Jaccard index of shingles)"
        removed.append(Removed(entries[position], "near duplicate", reason, entries[other].record.id))
    notes = {"pairs alike with different answers, kept": different}
    return Sifted([entry for i, entry in enumerate(entries) if i in kept], removed, notes)


def _differ(one: Entry, other: Entry) -> bool:
    mine, theirs = answer_of(one), answer_of(other)
    return mine is not None and theirs is not None and mine != theirs
