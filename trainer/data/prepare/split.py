"""Split into training, validation and test sets: by difficulty, with a fixed seed, and stable when data are added.

    within a stratum, by hash of (seed, id):   | validation |        training        | test |

What holds:
- Sizes are those asked for, and every stratum has its share of them, to within about one unit (a unit is a prompt, or
  several that are much alike and stay together).
- A prompt's place in the order depends on the seed and its own id alone. If m prompts are added, only those near the two
  ends of the order can move: in or out of training, and no more of them per stratum than were added to it, apart from
  the change of the sizes themselves.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from controlplane.contract.yamlfile import FileError
from trainer.data.prepare.entry import Entry
from trainer.data.prepare.shingles import shingles
from trainer.data.prepare.similar import similar_pairs
from trainer.data.prepare.spec import Similarity, Split

NAMES = ("train", "validation", "test")
MOST_STRATA = 50
UNKNOWN = "unknown"


@dataclass(frozen=True)
class _Unit:
    """Prompts that stay together, with the key and the stratum of the one that comes first in the order."""

    key: tuple[int, str]
    stratum: str
    members: tuple[Entry, ...]


def split(entries: Sequence[Entry], settings: Split, similarity: Similarity) -> dict[str, list[Entry]]:
    """The entries of each split, by id.

    Raises:
        FileError: more is asked for than there is, or the difficulties cannot serve as strata.
    """
    strata: dict[str, list[_Unit]] = defaultdict(list)
    for unit in sorted(_units(entries, settings, similarity), key=lambda unit: unit.key):
        strata[unit.stratum].append(unit)
    if len(strata) > MOST_STRATA:
        raise FileError(
            f"split.edges: there are {len(strata)} different difficulties, allowed are {MOST_STRATA}; "
            "give the numbers that part them"
        )
    sizes = {name: sum(len(unit.members) for unit in units) for name, units in strata.items()}
    validation, test = (_number(amount, len(entries)) for amount in (settings.validation, settings.test))
    if entries and validation + test >= len(entries):
        raise FileError(
            f"split.validation: {validation} for validation and {test} for test leave nothing of {len(entries)} "
            "prompts for training"
        )
    held_out = apportion(sizes, validation)
    tested = apportion({name: size - held_out[name] for name, size in sizes.items()}, test)
    result: dict[str, list[Entry]] = {name: [] for name in NAMES}
    for name, units in strata.items():
        first, rest = _take(units, held_out[name])
        last, rest = _take(rest[::-1], tested[name])
        for target, chosen in zip(NAMES, (rest, first, last), strict=True):
            result[target] += [entry for unit in chosen for entry in unit.members]
    return {name: sorted(chosen, key=lambda entry: entry.record.id) for name, chosen in result.items()}


def stratum(entry: Entry, edges: Sequence[float]) -> str:
    """The difficulty, or the interval between `edges` that it falls into; the pass rate stands in for a missing one.

    Raises:
        FileError: there are edges and the difficulty is no number.
    """
    record = entry.record
    if record.difficulty is None and record.pass_rate is None:
        return UNKNOWN
    text = record.difficulty if record.difficulty is not None else f"{record.pass_rate:g}"
    if not edges:
        return text
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise FileError(f"split.edges: the difficulty {text!r} of record {record.id!r} is no number") from None
    above = [edge for edge in edges if value >= edge]
    below = [edge for edge in edges if value < edge]
    if not above:
        return f"below {below[0]:g}"
    return f"{above[-1]:g} to {below[0]:g}" if below else f"{above[-1]:g} and above"


def apportion(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Parts of `total` in proportion to `sizes`, each within one of its exact share, by largest remainder."""
    everything = sum(sizes.values())
    if not everything:
        return dict.fromkeys(sizes, 0)
    parts = {name: size * total // everything for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(sizes[name] * total % everything), name))
    for name in by_remainder[: total - sum(parts.values())]:
        parts[name] += 1
    return parts


def _number(amount: int | float, of: int) -> int:
    return amount if isinstance(amount, int) else round(amount * of)


def _take(units: Sequence[_Unit], wanted: int) -> tuple[list[_Unit], list[_Unit]]:
    """(taken, left): units in order until `wanted` prompts are taken; a unit that is too large is passed over."""
    taken: list[_Unit] = []
    left: list[_Unit] = []
    for unit in units:
        fits = len(unit.members) <= wanted
        wanted -= len(unit.members) if fits else 0
        (taken if fits else left).append(unit)
    return taken, left


def _units(entries: Sequence[Entry], settings: Split, similarity: Similarity) -> list[_Unit]:
    leader = list(range(len(entries)))

    def find(position: int) -> int:
        while leader[position] != position:
            leader[position] = leader[leader[position]]
            position = leader[position]
        return position

    if settings.together is not None:
        sets = [shingles(entry.record.prompt, similarity) for entry in entries]
        for a, b, _ in similar_pairs(sets, settings.together):
            leader[find(a)] = find(b)
    groups: dict[int, list[Entry]] = defaultdict(list)
    for position, entry in enumerate(entries):
        groups[find(position)].append(entry)
    units = []
    for group in groups.values():
        members = sorted(group, key=lambda entry: _place(entry, settings.seed))
        first = members[0]
        units.append(_Unit(_place(first, settings.seed), stratum(first, settings.edges), tuple(members)))
    return units


def _place(entry: Entry, seed: int) -> tuple[int, str]:
    """Where the prompt stands in the order: a hash of the seed and its id (and the id, should two hashes agree)."""
    digest = hashlib.blake2b(f"{seed}\0{entry.record.id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big"), entry.record.id
