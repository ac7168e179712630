"""Streaming detectors: readings of one signal in, one finding out.

Four outcomes, never mixed up: `ok`, `breach`, `inconclusive` (too little evidence yet, or grace after a rollback) and
`error` (the value is NaN or missing where it should be). Only a breach can be a key of a rule.

Each has its expected false alarms and detection delay in its docstring, from simulation (`bench/detectors.py`).
"""

import statistics
from collections import deque
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from math import isfinite, log, nan, sqrt
from typing import Protocol

from controlplane.detect.signals import Reading
from controlplane.policy.models import Cusum, RobustZ, Streak, Threshold
from controlplane.policy.models import Detector as Config

_MAD_TO_SD = 1.4826  # of a normal distribution
_REWIND = 256  # readings kept beyond the window, so that a rollback can go back without learning anew
_LEVEL = 16  # readings that give the level: few enough to follow a run that learns
_SCALE_FLOOR = 0.05  # a signal that barely moved so far must not make a small change look huge
_Z_CLIP = 3.0  # one wild reading may not carry a sum over its limit alone


class Outcome(StrEnum):
    ok = "ok"
    breach = "breach"
    inconclusive = "inconclusive"
    error = "error"


@dataclass(frozen=True)
class Finding:
    """What a detector says after its newest reading."""

    outcome: Outcome
    statistic: float = nan
    threshold: float = nan
    onset: int | None = None
    """Step of the last reading before the breach began; a rollback should go behind it."""
    detail: str = ""


class Detector(Protocol):
    """Fed with every new reading of its signal, in order."""

    def update(self, reading: Reading) -> Finding: ...

    def rewind(self, step: int) -> None:
        """The run went back to `step`: forget what came after, keep what the lineage still has."""
        ...


def build(config: Config) -> Detector | None:
    """The detector of a policy entry; None for a stall, which is judged by the clock and not by readings."""
    match config:
        case Cusum():
            return _Cusum(config)
        case RobustZ():
            return _RobustZ(config)
        case Threshold():
            return _Threshold(config)
        case Streak():
            return _Streak(config)
    return None


class _Baseline:
    """What is usual for a signal, lagged so that the beginning of a fault is no part of what it is compared with.

    Level: median of the `_LEVEL` readings that ended `lag` readings ago. Spread: MAD of how far earlier readings lay from
    their own level, over `window` of them, lagged alike. The level is local, so in a run that learns - a signal that
    rises all the time - the rise neither hides a fall nor looks like wide noise.
    """

    def __init__(self, window: int, lag: int, min_readings: int, transform: str) -> None:
        self._past: deque[tuple[int, float]] = deque(maxlen=_LEVEL + lag + _REWIND)
        self._deviations: deque[tuple[int, float]] = deque(maxlen=window + lag + _REWIND)
        self._window, self._lag, self._min, self._log = window, lag, min_readings, transform == "log"

    def z(self, reading: Reading) -> float | None:
        """Robust z of a reading, which then becomes past itself; None while there is too little past."""
        value = log(max(reading.value, 1e-12)) if self._log else reading.value
        z = None
        if len(recent := self._lagged(self._past, _LEVEL)) == _LEVEL:
            level = statistics.median(recent)
            if len(usual := self._lagged(self._deviations, self._window)) >= self._min:
                middle = statistics.median(usual)
                spread = _MAD_TO_SD * statistics.median(abs(d - middle) for d in usual)
                z = (value - level) / max(spread, self._floor(reading, level))
            self._deviations.append((reading.step, value - level))
        self._past.append((reading.step, value))
        return z

    def _lagged(self, past: "deque[tuple[int, float]]", most: int) -> list[float]:
        end = max(0, len(past) - self._lag)
        return [value for _, value in islice(past, max(0, end - most), end)]

    def _floor(self, reading: Reading, level: float) -> float:
        if self._log or not isfinite(reading.n):
            return _SCALE_FLOOR
        # A proportion cannot be known better than its binomial error.
        return max(sqrt(max(level * (1 - level), 0.02) / reading.n), 1e-3)

    def rewind(self, step: int) -> None:
        for past in (self._past, self._deviations):
            kept = [(s, v) for s, v in past if s <= step]
            past.clear()
            past.extend(kept)


class _Cusum:
    """See `policy.models.Cusum`. Readings per false alarm at k 1, h 8: 83,000 normal, 27,000 t3, 4,600 AR(.3); two spreads in about 6."""

    def __init__(self, config: Cusum) -> None:
        self._config = config
        self._sign = -1.0 if config.side == "low" else 1.0
        self._baseline = _Baseline(config.window, config.lag, config.min_readings, config.transform)
        self._sum = 0.0
        self._onset: int | None = None
        self._last_step: int | None = None

    def update(self, reading: Reading) -> Finding:
        if not isfinite(reading.value):
            return Finding(Outcome.error, nan, self._config.h, detail="the signal is not a number")
        z = self._baseline.z(reading)
        if z is None:
            self._last_step = reading.step
            return Finding(Outcome.inconclusive, nan, self._config.h, detail="learning what is usual")
        before = self._sum
        self._sum = max(0.0, before + self._sign * max(-_Z_CLIP, min(_Z_CLIP, z)) - self._config.k)
        if self._sum == 0.0:
            self._onset = None
        elif before == 0.0:
            self._onset = self._last_step
        self._last_step = reading.step
        breach = self._sum > self._config.h
        detail = f"{reading.value:.3g}, {abs(z):.1f} spreads {'below' if z < 0 else 'above'} its recent median"
        return Finding(Outcome.breach if breach else Outcome.ok, self._sum, self._config.h, self._onset, detail)

    def rewind(self, step: int) -> None:
        self._baseline.rewind(step)
        self._sum, self._onset, self._last_step = 0.0, None, step


class _Persistent:
    """Counts readings in a row over a limit; subclasses say what the statistic is."""

    def __init__(self, consecutive: int, threshold: float, below: bool = False) -> None:
        self._consecutive, self._threshold, self._below = consecutive, threshold, below
        self._row = 0
        self._onset: int | None = None
        self._last_step: int | None = None

    def _judge(self, statistic: float, step: int, detail: str) -> Finding:
        over = statistic < self._threshold if self._below else statistic > self._threshold
        if not over:
            self._row, self._onset = 0, None
        else:
            if self._row == 0:
                self._onset = self._last_step
            self._row += 1
        self._last_step = step
        breach = self._row >= self._consecutive
        if over and not breach:
            detail += f" ({self._row} of {self._consecutive} in a row)"
        return Finding(Outcome.breach if breach else Outcome.ok, statistic, self._threshold, self._onset, detail)

    def rewind(self, step: int) -> None:
        self._row, self._onset, self._last_step = 0, None, step


class _RobustZ(_Persistent):
    """See `policy.models.RobustZ`. Readings per false alarm at 4 twice: 330,000 normal, 7,200 t3, 140,000 AR(.3); four spreads in 2."""

    def __init__(self, config: RobustZ) -> None:
        super().__init__(config.consecutive, config.above)
        self._baseline = _Baseline(config.window, config.lag, config.min_readings, config.transform)

    def update(self, reading: Reading) -> Finding:
        if not isfinite(reading.value):
            # A step without an update has no gradient norm: no evidence, and no reset of what was seen before.
            return Finding(Outcome.inconclusive, nan, self._threshold, self._onset, "no value in this step")
        z = self._baseline.z(reading)
        if z is None:
            return Finding(Outcome.inconclusive, nan, self._threshold, detail="learning what is usual")
        return self._judge(z, reading.step, f"{reading.value:.3g}, z {z:.1f}")

    def rewind(self, step: int) -> None:
        super().rewind(step)
        self._baseline.rewind(step)


class _Threshold(_Persistent):
    """See `policy.models.Threshold`. At a true truncation of 8 % a single batch of 128 exceeds 10 % about one time in five;
    three in a row about one time in a hundred."""

    def __init__(self, config: Threshold) -> None:
        limit = config.above if config.above is not None else config.below
        assert limit is not None
        super().__init__(config.consecutive, limit, below=config.below is not None)

    def update(self, reading: Reading) -> Finding:
        if not isfinite(reading.value):
            return Finding(Outcome.error, nan, self._threshold, detail="the signal is not a number")
        return self._judge(reading.value, reading.step, f"{reading.value:.3g}")


class _Streak:
    """Non-finite steps in a row. Deterministic: no false alarms, no delay beyond the streak itself."""

    def __init__(self, config: Streak) -> None:
        self._steps = config.steps
        self._row = 0.0
        self._onset: int | None = None
        self._last_good: int | None = None

    def update(self, reading: Reading) -> Finding:
        if reading.value < reading.n:  # at least one finite step since the last look ends the streak
            self._row, self._last_good, self._onset = 0.0, reading.step, None
        if reading.value > 0:
            self._row += reading.value
            self._onset = self._last_good
        breach = self._row >= self._steps
        finding = Finding(Outcome.breach if breach else Outcome.ok, self._row, self._steps, self._onset)
        return replace(finding, detail=f"{self._row:.0f} non-finite steps in a row")

    def rewind(self, step: int) -> None:
        self._row, self._onset, self._last_good = 0.0, None, step
