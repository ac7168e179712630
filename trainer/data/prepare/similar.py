"""All pairs of sets that are much alike, without comparing every pair, and without missing one: prefix filtering.

    sets -> members from rare to common -> the rarest few of each -> pairs that share one of them -> exact Jaccard -> pairs

Two sets of a Jaccard index of t or more share at least ceil(t * size) members of either. So, with the members of all sets
in one order, they already share one among the first size - ceil(t * size) + 1 of each. With rare members first such
chance meetings are few (Chaudhuri et al. 2006; Bayardo et al. 2007).

Why not MinHash and banding: prompts are short and share set phrases, so at a threshold of 0.6 the bands meet by chance in
millions of pairs, and some true pairs are still missed (docs/data.md has the figures). This is faster here and misses none.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from controlplane.contract.yamlfile import FileError
from trainer.data.prepare.shingles import Hashes

MOST = 20_000_000
"""Pairs beyond which comparing takes many minutes: nearly always a long text that most prompts share."""
CHUNK = 100_000
EPSILON = 1e-9
"""Room for rounding, always towards comparing one more."""

Numbers = NDArray[np.int64]


class Pair(NamedTuple):
    """Two sets by position, a < b, and how much alike they are."""

    a: int
    b: int
    jaccard: float


def similar_pairs(sets: Sequence[Hashes], threshold: float) -> list[Pair]:
    """All pairs of sets whose Jaccard index is `threshold` or more, in order of position. A set has no member twice.

    Raises:
        FileError: so many prompts are alike that comparing them makes no sense.
    """
    sizes = np.fromiter((len(members) for members in sets), dtype=np.int64, count=len(sets))
    if not sizes.any():
        return []
    owners = np.repeat(np.arange(len(sets)), sizes)
    members = _by_rarity(np.concatenate(sets))
    ones = np.ones(len(members), dtype=np.int32)
    matrix = csr_matrix((ones, (owners, members)), shape=(len(sets), int(members.max()) + 1))
    codes = _candidates(owners, members, sizes, threshold)
    pairs: list[Pair] = []
    for start in range(0, len(codes), CHUNK):
        a, b = np.divmod(codes[start : start + CHUNK], len(sets))
        common = np.asarray(matrix[a].multiply(matrix[b]).sum(axis=1)).ravel()
        jaccard = common / (sizes[a] + sizes[b] - common)
        found = jaccard >= threshold
        pairs += map(Pair, a[found].tolist(), b[found].tolist(), jaccard[found].tolist())
    return pairs


def _by_rarity(members: Hashes) -> Numbers:
    """Each member as its rank among all distinct ones, the rarest first."""
    _, numbers, counts = np.unique(members, return_inverse=True, return_counts=True)
    ranks = np.empty(len(counts), dtype=np.int64)
    ranks[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    return ranks[numbers]


def _candidates(owners: Numbers, members: Numbers, sizes: Numbers, threshold: float) -> Numbers:
    """Pairs of fitting sizes that share a member among the rarest few of each, as a * n + b with a < b, sorted."""
    order = np.lexsort((members, owners))
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    few = sizes - np.ceil(threshold * sizes - EPSILON).astype(np.int64) + 1
    first = order[place < few[owners]]
    first = first[np.lexsort((owners[first], members[first]))]
    owners, members = owners[first], members[first]
    starts = np.flatnonzero(np.diff(members, prepend=-1))
    lengths = np.diff(starts, append=len(members))
    _bearable(int((lengths * (lengths - 1) // 2).sum()))
    codes = [np.empty(0, dtype=np.int64)]
    for start, length in zip(starts[lengths > 1], lengths[lengths > 1], strict=True):
        group = owners[start : start + length]
        a, b = (group[side] for side in np.triu_indices(length, 1))
        fits = np.minimum(sizes[a], sizes[b]) >= threshold * np.maximum(sizes[a], sizes[b]) - EPSILON
        codes.append(a[fits] * len(sizes) + b[fits])
    return np.unique(np.concatenate(codes))


def _bearable(pairs: int) -> None:
    if pairs > MOST:
        raise FileError(
            f"similarity: {pairs:,} pairs of prompts look alike, more than the {MOST:,} that can be compared; "
            "take a text that most prompts share out of them, raise near_duplicates.threshold and split.together, "
            "or use larger shingles (similarity.size)"
        )
