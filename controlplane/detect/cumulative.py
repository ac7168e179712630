"""Detectors that add up small evidence: the two CUSUMs."""

from math import isfinite, log, nan

from controlplane.detect.baseline import Baseline
from controlplane.detect.finding import Finding, Outcome
from controlplane.detect.signals import Reading
from controlplane.policy.detectors import BernoulliCusum, Cusum
from controlplane.policy.signals import SignalSpec

_Z_CLIP = 3.0  # one wild reading may not carry a sum over its limit alone


class _Sum:
    """S = max(0, S + increment), an alarm while S > h; the onset is the last reading at which S was 0."""

    def __init__(self, h: float) -> None:
        self._h, self._sum = h, 0.0
        self._onset: int | None = None
        self._last_step: int | None = None

    def _add(self, increment: float, step: int, detail: str) -> Finding:
        before = self._sum
        self._sum = max(0.0, before + increment)
        if self._sum == 0.0:
            self._onset = None
        elif before == 0.0:
            self._onset = self._last_step
        self._last_step = step
        breach = self._sum > self._h
        return Finding(Outcome.breach if breach else Outcome.ok, self._sum, self._h, self._onset, detail)

    def _no_number(self) -> Finding:
        return Finding(Outcome.error, nan, self._h, detail="the signal is not a number")

    def rewind(self, step: int) -> None:
        self._sum, self._onset, self._last_step = 0.0, None, step


class CusumDetector(_Sum):
    """See `policy.detectors.Cusum`."""

    def __init__(self, config: Cusum, spec: SignalSpec) -> None:
        super().__init__(config.h)
        self._k, self._forecast = config.k, config.reference == "forecast"
        self._sign = -1.0 if config.side == "low" else 1.0
        self._baseline = Baseline(config.window, config.lag, config.min_readings, spec.kind)

    def update(self, reading: Reading) -> Finding:
        if not isfinite(reading.value):
            return self._no_number()
        forecast = self._forecast and isfinite(reading.expected) and reading.expected_sd > 0
        if not self._forecast:
            reading = Reading(reading.step, reading.value, reading.n)
        z = self._baseline.z(reading)
        if forecast:
            z = (reading.value - reading.expected) / reading.expected_sd
        if z is None:
            self._last_step = reading.step
            return Finding(Outcome.inconclusive, nan, self._h, detail="learning what is usual")
        usual = "what was forecast" if forecast else "its recent median"
        detail = f"{reading.value:.3g}, {abs(z):.1f} spreads {'below' if z < 0 else 'above'} {usual}"
        return self._add(self._sign * max(-_Z_CLIP, min(_Z_CLIP, z)) - self._k, reading.step, detail)

    def rewind(self, step: int) -> None:
        super().rewind(step)
        self._baseline.rewind(step)


class BernoulliDetector(_Sum):
    """See `policy.detectors.BernoulliCusum`."""

    def __init__(self, config: BernoulliCusum, spec: SignalSpec) -> None:
        super().__init__(config.h)
        self._more, self._less = log(config.bad / config.usual), log((1 - config.bad) / (1 - config.usual))
        self._correlation, self._group_size = config.correlation, spec.group_size

    def update(self, reading: Reading) -> Finding:
        value = reading.value
        if not isfinite(value) or not isfinite(reading.n):
            return self._no_number()
        group_size = float(self._group_size) if self._group_size else reading.group_size
        if not isfinite(group_size):
            return Finding(Outcome.inconclusive, nan, self._h, detail="the size of a prompt group is not known")
        effective = reading.n / (1 + max(group_size - 1, 0.0) * self._correlation)
        evidence = effective * (value * self._more + (1 - value) * self._less)
        # One batch may not carry the sum over its limit alone, however large it is.
        evidence = min(evidence, self._h / 2)
        return self._add(evidence, reading.step, f"{value:.3g} of about {effective:.0f} independent completions")
