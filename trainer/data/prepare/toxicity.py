"""Stage toxicity_filtering: a function of the user's own scores every prompt. Off unless the spec names one."""

import importlib
import math
from collections.abc import Callable, Iterable

from controlplane.contract.yamlfile import FileError
from trainer.data.prepare.entry import Entry, Removed, Sifted

Score = Callable[[str], float]


def find_score(name: str) -> Score:
    """The function `package.module:function`.

    Raises:
        FileError: it cannot be imported or called.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise FileError(f"toxicity.module: {name} cannot be loaded ({error}); it must be importable") from None
    if not callable(found):
        raise FileError(f"toxicity.module: {name} is not a function")
    return found  # type: ignore[no-any-return]


def toxicity_filtering(entries: Iterable[Entry], score: Score, threshold: float) -> Sifted:
    """Remove prompts that score `threshold` or more.

    Raises:
        FileError: the function fails, or gives something that is no number; the record is named.
    """
    kept: list[Entry] = []
    removed: list[Removed] = []
    for entry in entries:
        value = _score(entry, score)
        if value >= threshold:
            removed.append(Removed(entry, "toxic", f"score {value:g}, removed from {threshold:g}"))
        else:
            kept.append(entry)
    return Sifted(kept, removed)


def _score(entry: Entry, score: Score) -> float:
    try:
        value = float(score(entry.record.prompt))
    except Exception as error:
        kind = type(error).__name__
        raise FileError(
            f"toxicity.module: the function failed on record {entry.record.id!r} ({kind}: {error})"
        ) from error
    if math.isnan(value):
        raise FileError(f"toxicity.module: the score of record {entry.record.id!r} is not a number")
    return value
