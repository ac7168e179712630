"""Detectors that ask for several readings in a row: spikes, levels, trends, streaks, a forecast that falls short."""

from collections import deque
from dataclasses import replace
from itertools import islice
from math import inf, isfinite, nan, sqrt

from controlplane.detect.baseline import REWIND, Baseline
from controlplane.detect.finding import Finding, Outcome
from controlplane.detect.signals import Reading
from controlplane.policy.detectors import RobustZ, Shortfall, Slide, Streak, Threshold, Trend
from controlplane.policy.signals import SignalSpec

_MAD_TO_SD = 1.4826  # of a normal distribution
_OUTER = 2.5  # spreads from the line past which a reading is clipped before the line is drawn again


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

    def _cannot(self, outcome: Outcome, detail: str) -> Finding:
        return Finding(outcome, nan, self._threshold, self._onset, detail)

    def rewind(self, step: int) -> None:
        self._row, self._onset, self._last_step = 0, None, step


class RobustZDetector(_Persistent):
    """See `policy.detectors.RobustZ`."""

    def __init__(self, config: RobustZ, spec: SignalSpec) -> None:
        super().__init__(config.consecutive, config.above)
        self._baseline = Baseline(config.window, config.lag, config.min_readings, spec.kind)

    def update(self, reading: Reading) -> Finding:
        if not isfinite(reading.value):
            # A step without an update has no gradient norm: no evidence, and no reset of what was seen before.
            return self._cannot(Outcome.inconclusive, "no value in this step")
        z = self._baseline.z(replace(reading, drift=0.0) if reading.drift else reading)
        if z is None:
            return self._cannot(Outcome.inconclusive, "learning what is usual")
        return self._judge(z, reading.step, f"{reading.value:.3g}, z {z:.1f}")

    def rewind(self, step: int) -> None:
        super().rewind(step)
        self._baseline.rewind(step)


class ThresholdDetector(_Persistent):
    """See `policy.detectors.Threshold`."""

    def __init__(self, config: Threshold) -> None:
        super().__init__(config.consecutive, config.limit, below=config.below is not None)
        self._from_step = config.from_step

    def update(self, reading: Reading) -> Finding:
        if not isfinite(reading.value):
            return self._cannot(Outcome.error, "the signal is not a number")
        if reading.step < self._from_step:
            return self._cannot(Outcome.inconclusive, f"{reading.value:.3g}; judged from step {self._from_step} on")
        return self._judge(reading.value, reading.step, f"{reading.value:.3g}")


class TrendDetector(_Persistent):
    """See `policy.detectors.Trend`."""

    def __init__(self, config: Trend) -> None:
        super().__init__(config.consecutive, config.limit, below=config.below is not None)
        self._config = config
        # Kept beyond the window, so that a rollback can go back without learning anew.
        self._rows: deque[tuple[int, float]] = deque(maxlen=config.window + REWIND)

    def update(self, reading: Reading) -> Finding:
        if not isfinite(reading.value):
            return self._cannot(Outcome.error, "the signal is not a number")
        self._rows.append((reading.step, reading.value))
        if len(self._rows) < self._config.window:
            return self._cannot(Outcome.inconclusive, "too few readings for a line")
        window = islice(self._rows, len(self._rows) - self._config.window, None)
        now, slope, error = _line(list(window))
        certain = abs(slope) > self._config.certainty * error
        ahead = now + slope * self._config.within_steps if certain else now
        towards = slope < 0 if self._below else slope > 0
        detail = f"about {now:.3g}, no certain trend"
        if certain and towards:
            left = (self._threshold - now) / slope
            where = f"reaches {self._threshold:g} in about {left:.0f} steps" if left > 0 else "is past its limit"
            detail = f"about {now:.3g}, {where}"
        return self._judge(ahead, reading.step, detail)

    def rewind(self, step: int) -> None:
        super().rewind(step)
        self._rows = deque((row for row in self._rows if row[0] <= step), maxlen=self._rows.maxlen)


class SlideDetector:
    """See `policy.detectors.Slide`. The statistic is the share lost since the slide began; 0 while there is none."""

    def __init__(self, config: Slide) -> None:
        self._falls, self._share = config.falls, config.share
        self._top: tuple[int, float] | None = None
        """Step before the first fall, and where the signal stood then."""
        self._last = nan
        self._row = 0

    def update(self, reading: Reading) -> Finding:
        value, last = reading.value, self._last
        if not isfinite(value):
            return Finding(Outcome.error, nan, self._share, None, "the signal is not a number")
        if not value < last:  # also the first reading of all
            # A slide from a single high reading is measured from the one before: such a reading comes down by itself.
            self._top, self._row = (reading.step, value if self._top is None else min(value, last)), 0
        else:
            self._row += 1
        self._last = value
        assert self._top is not None
        began, top = self._top
        lost = 1 - value / top if top > 0 and self._row else 0.0
        breach = self._row >= self._falls and lost >= self._share
        detail = f"{value:.3g}, {self._row} falls in a row" + (f" from {top:.3g}" if self._row else "")
        onset = began if self._row else None
        return Finding(Outcome.breach if breach else Outcome.ok, lost, self._share, onset, detail)

    def rewind(self, step: int) -> None:
        self._top, self._last, self._row = None, nan, 0


class StreakDetector:
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
        detail = f"{self._row:.0f} non-finite steps in a row"
        return Finding(Outcome.breach if breach else Outcome.ok, self._row, self._steps, self._onset, detail)

    def rewind(self, step: int) -> None:
        self._row, self._onset, self._last_good = 0.0, None, step


class ShortfallDetector(_Persistent):
    """See `policy.detectors.Shortfall`. A reading is the probability of missing the target, at each new forecast."""

    def __init__(self, config: Shortfall) -> None:
        super().__init__(config.consecutive, config.probability)

    def update(self, reading: Reading) -> Finding:
        if not isfinite(reading.value):
            return self._cannot(Outcome.inconclusive, "the forecast is refused")
        return self._judge(reading.value, reading.step, f"misses the target with probability {reading.value:.2f}")


def _line(rows: list[tuple[int, float]]) -> tuple[float, float, float]:
    """(value on the line at the newest step, slope per step, its standard error); readings far off the line are clipped."""
    end = rows[-1][0]
    xs, ys = [step - end for step, _ in rows], [value for _, value in rows]
    count, mean = len(xs), sum(xs) / len(xs)
    across = sum((x - mean) ** 2 for x in xs)
    if across == 0:
        return ys[-1], 0.0, inf

    def fit(values: list[float]) -> tuple[float, float]:
        middle = sum(values) / count
        slope = sum((x - mean) * y for x, y in zip(xs, values, strict=True)) / across
        return middle - slope * mean, slope

    at_end, slope = fit(ys)
    off = [y - at_end - slope * x for x, y in zip(xs, ys, strict=True)]
    reach = _OUTER * _MAD_TO_SD * sorted(map(abs, off))[count // 2]
    kept = [at_end + slope * x + max(-reach, min(reach, d)) for x, d in zip(xs, off, strict=True)]
    at_end, slope = fit(kept)
    left = sum((y - at_end - slope * x) ** 2 for x, y in zip(xs, kept, strict=True))
    return at_end, slope, sqrt(left / (count - 2) / across)
