"""A text exposition -> values by series id, within limits. Lines of metrics that nobody wants are checked for their form only."""

import re
from collections.abc import Collection, Iterator

from prometheus_client.parser import text_string_to_metric_families

from controlplane.snapshot import series_id

LONGEST_LINE = 16 * 1024
MOST_SERIES = 5000
"""Wanted series of one page: what is read at each look is journaled at each look."""
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?=[{\s])")


def parse(text: str, names: Collection[str] | None) -> dict[str, float]:
    """Values of the wanted metric names in a text exposition, by series id; None wants every one.

    Raises:
        ValueError: not a text exposition, or beyond the limits.
    """
    wanted = None if names is None else frozenset(names)
    lines = list(_wanted(text, wanted))
    if wanted is not None and len(lines) > MOST_SERIES:
        raise ValueError(f"more than {MOST_SERIES} series of the wanted metrics")
    values: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                key = series_id(sample.name, sample.labels)
                if key in values:
                    raise ValueError(f"{key[:200]} appears twice")
                values[key] = float(sample.value)
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        # The parser trusts its input in places; what it trips over is no exposition.
        raise ValueError(f"a line cannot be read ({type(error).__name__})") from None
    return values


def _wanted(text: str, names: frozenset[str] | None) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if len(stripped) > LONGEST_LINE:
            raise ValueError(f"line {number} is longer than {LONGEST_LINE} characters")
        name = _NAME.match(stripped)
        if name is None and not stripped.startswith('{"'):  # a quoted name, which none of ours is
            raise ValueError(f"line {number} is not a sample: {stripped[:60]!r}")
        if names is None or (name is not None and name.group() in names):
            yield stripped
