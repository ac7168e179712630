"""Text as arrays of 64-bit numbers, the same on every machine and in every process."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trainer.data.prepare.spec import Similarity
from trainer.data.prepare.text import tokens

Hashes = NDArray[np.uint64]
_ODD = np.uint64(0x9E3779B97F4A7C15)


def shingles(prompt: str, settings: Similarity) -> Hashes:
    """The set of shingles of a prompt, sorted; a prompt shorter than one shingle is a shingle by itself. Case is ignored."""
    parts: Sequence[str] = [part.casefold() for part in tokens(prompt)]
    if settings.unit == "character":
        parts = " ".join(parts)
    return np.unique(windows(hashes(parts), min(settings.size, max(len(parts), 1))))


def hashes(parts: Sequence[str]) -> Hashes:
    """One number per part. shape [len(parts)]"""
    return np.fromiter((_hash(part) for part in parts), dtype=np.uint64, count=len(parts))


def windows(values: Hashes, size: int) -> Hashes:
    """One number per `size` consecutive values, in order. shape [max(0, len(values) - size + 1)]"""
    count = max(0, len(values) - size + 1)
    total = np.zeros(count, dtype=np.uint64)
    for start in range(size if count else 0):
        total = total * _ODD + values[start : start + count]
    return mix(total)


def mix(values: Hashes) -> Hashes:
    """Every bit of the input moves every bit of the output (the finaliser of SplitMix64; Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=1 << 18)
def _hash(part: str) -> int:
    return int.from_bytes(hashlib.blake2b(part.encode("utf-8", "replace"), digest_size=8).digest(), "little")
