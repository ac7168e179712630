"""A series in one line of text."""

import numpy as np

from controlplane.metricstore.codec import Floats

_BARS = "▁▂▃▄▅▆▇█"


def growth(times: Floats, values: Floats) -> tuple[Floats, Floats]:
    """A counter as growth per second between readings; a fall is a restart from zero."""
    if len(times) < 2:
        return times[:0], values[:0]
    grown = np.where(np.diff(values) >= 0, np.diff(values), values[1:])
    return times[1:], grown / np.maximum(np.diff(times), 1e-9)


def sketch(times: Floats, values: Floats, width: int = 60) -> str:
    """Mean over `width` equal stretches of time as bars, with the least, the greatest and the newest value.

    A stretch without a finite reading is blank: nothing is drawn over a hole.
    """
    kept = np.isfinite(values)
    times, values = times[kept], values[kept]
    if not len(values):
        return f"{'no reading':{width}}"
    first, last = float(times[0]), float(times[-1])
    place = np.minimum(((times - first) / max(last - first, 1e-9) * width).astype(int), width - 1)
    sums, counts = np.bincount(place, values, width), np.bincount(place, minlength=width)
    means = sums / np.maximum(counts, 1)
    low, high = float(means[counts > 0].min()), float(means[counts > 0].max())
    level = ((means - low) / max(high - low, 1e-12) * (len(_BARS) - 1)).round().astype(int)
    bars = "".join(_BARS[step] if count else " " for step, count in zip(level, counts, strict=True))
    return f"{bars}  {values.min():.4g} .. {values.max():.4g}, now {values[-1]:.4g}"
