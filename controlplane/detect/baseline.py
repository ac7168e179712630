"""What is usual for a signal: a local level and a spread, both lagged. Sorted windows, so that a look costs microseconds."""

from bisect import bisect_left, insort
from collections import deque
from math import isfinite, log, sqrt

from controlplane.detect.signals import Reading
from controlplane.policy.signals import Kind

_MAD_TO_SD = 1.4826  # of a normal distribution
REWIND = 256
"""Readings kept beyond a window, so that a rollback can go back without learning anew."""
_LEVEL = 16  # readings that give the level: few enough to follow a run that learns
_SCALE_FLOOR = 0.05  # a signal that barely moved so far must not make a small change look huge


class LaggedWindow:
    """The `size` values that ended `lag` values ago, kept sorted beside their order of arrival."""

    def __init__(self, size: int, lag: int) -> None:
        self._size, self._lag = size, lag
        self._older: deque[tuple[int, float]] = deque(maxlen=REWIND)
        self._inside: deque[tuple[int, float]] = deque()
        self._newest: deque[tuple[int, float]] = deque()
        self.ordered: list[float] = []
        """Values inside the window, ascending."""

    def push(self, step: int, value: float) -> None:
        """Add the newest value; it enters the window `lag` values later."""
        self._newest.append((step, value))
        if len(self._newest) <= self._lag:
            return
        entering = self._newest.popleft()
        self._inside.append(entering)
        insort(self.ordered, entering[1])
        if len(self._inside) > self._size:
            leaving = self._inside.popleft()
            del self.ordered[bisect_left(self.ordered, leaving[1])]
            self._older.append(leaving)

    @property
    def middle_step(self) -> int:
        """Step of the value in the middle of the window."""
        return self._inside[len(self._inside) // 2][0]

    def rewind(self, step: int) -> None:
        """Take back everything after `step`."""
        kept = [row for row in (*self._older, *self._inside, *self._newest) if row[0] <= step]
        self._older.clear()
        self._inside.clear()
        self._newest.clear()
        self.ordered.clear()
        for row in kept:
            self.push(*row)


class Baseline:
    """Robust z of a reading against its recent past, lagged so that the beginning of a fault is no part of what it is
    compared with.

    Level: median of the `_LEVEL` readings that ended `lag` readings ago. Spread: MAD of how far earlier readings lay from
    their own level, over `window` of them, lagged alike. The level is local, so in a run that learns - a signal that
    rises all the time - the rise neither hides a fall nor looks like wide noise.
    """

    def __init__(self, window: int, lag: int, min_readings: int, kind: Kind) -> None:
        self._levels, self._deviations = LaggedWindow(_LEVEL, lag), LaggedWindow(window, lag)
        self._min, self._kind = min_readings, kind

    def z(self, reading: Reading) -> float | None:
        """Robust z of a reading, which then becomes past itself; None while there is too little past.

        `reading.drift` moves the level on to the present, by at most one spread: a forecast may make the detector
        stricter, but a wrong one cannot make an alarm.
        """
        value = log(max(reading.value, 1e-12)) if self._kind == "positive" else reading.value
        z = None
        if len(self._levels.ordered) == _LEVEL:
            level = _median(self._levels.ordered)
            if len(usual := self._deviations.ordered) >= self._min:
                spread = max(_MAD_TO_SD * _mad(usual), self._floor(reading, level))
                gain = reading.drift * (reading.step - self._levels.middle_step) if reading.drift else 0.0
                z = (value - level - min(max(gain, -spread), spread)) / spread
            self._deviations.push(reading.step, value - level)
        self._levels.push(reading.step, value)
        return z

    def rewind(self, step: int) -> None:
        """The run went back to `step`."""
        self._levels.rewind(step)
        self._deviations.rewind(step)

    def _floor(self, reading: Reading, level: float) -> float:
        if self._kind == "positive":
            return _SCALE_FLOOR
        if self._kind == "proportion":
            # A proportion cannot be known better than its binomial error.
            return max(sqrt(max(level * (1 - level), 0.02) / reading.n), 1e-3) if isfinite(reading.n) else _SCALE_FLOOR
        return max(_SCALE_FLOOR * abs(level), 1e-6)


def _median(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _mad(ordered: list[float]) -> float:
    """Median distance from the median: walks outwards from the middle of sorted values."""
    middle, half = _median(ordered), len(ordered) // 2
    above = bisect_left(ordered, middle)
    below, distance, before = above - 1, 0.0, 0.0
    for _ in range(half + 1):
        before = distance
        up = ordered[above] - middle if above < len(ordered) else float("inf")
        down = middle - ordered[below] if below >= 0 else float("inf")
        if up <= down:
            distance, above = up, above + 1
        else:
            distance, below = down, below - 1
    return distance if len(ordered) % 2 else (before + distance) / 2
