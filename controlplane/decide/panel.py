"""All detectors of one policy with what they said last. Fed by the evaluator; holds no clock."""

from collections.abc import Mapping
from math import isfinite

from controlplane.detect import MISS_PROBABILITY, Detector, Finding, Outcome, Reading, build, source_of
from controlplane.policy.models import Policy

_PATIENCE = 8
"""Looks in a row with a finished step in which a signal may be missing: several steps may share one batch of completions."""
_FLICKER = 10
"""Steps without a breach that do not yet end an alarm."""
_RARE = frozenset({MISS_PROBABILITY})


class Panel:
    """Detectors by name. `findings` always has one for every detector of the policy, the stall included."""

    def __init__(self, policy: Policy) -> None:
        self.findings: dict[str, Finding] = {}
        self._detectors: dict[str, tuple[str, Detector]] = {}
        self._missing: dict[str, int] = {}
        self._breached_at: dict[str, int] = {}
        self._began_at: dict[str, int] = {}
        self._rare = set(_RARE)
        for name, config in policy.detectors.items():
            source = source_of(config)
            signal = getattr(config, "signal", None)
            spec = policy.signal(signal) if signal else None
            if spec is not None and spec.rare:
                self._rare.add(source)
            detector = build(config, spec)
            if detector is not None:
                self._detectors[name] = source, detector
            self.findings[name] = Finding(Outcome.inconclusive, detail="no reading yet")

    def judge(self, new: Mapping[str, Reading]) -> None:
        """Take the readings of a look in which at least one step was finished."""
        for name, (source, detector) in self._detectors.items():
            reading = new.get(source)
            if reading is not None:
                self._missing[name] = 0
                self.findings[name] = detector.update(reading)
            elif source not in self._rare:
                self._missing[name] = gone = self._missing.get(name, 0) + 1
                if gone > _PATIENCE:
                    self.findings[name] = Finding(Outcome.error, detail=f"{source} is missing from the metrics")

    def judge_one(self, source: str, reading: Reading) -> None:
        """Take a reading that comes at its own time."""
        for name, (wanted, detector) in self._detectors.items():
            if wanted == source:
                self.findings[name] = detector.update(reading)

    def rewind(self, step: int) -> None:
        """The run went back to `step`."""
        for name, (_, detector) in self._detectors.items():
            detector.rewind(step)
            self.findings[name] = Finding(Outcome.inconclusive, detail="starts again after a restore")
        self._breached_at.clear()
        self._began_at.clear()

    def see_breaches(self, progress: int) -> None:
        """Note which detectors are in alarm; once per look. Alarms that stop for a few steps only are one alarm."""
        for name, finding in self.findings.items():
            if finding.outcome is Outcome.breach:
                if progress - self._breached_at.get(name, -_FLICKER - 1) > _FLICKER:
                    self._began_at[name] = progress
                self._breached_at[name] = progress

    def since_breach(self, progress: int) -> dict[str, int]:
        """Detector -> steps since it was last in alarm."""
        return {name: progress - at for name, at in self._breached_at.items()}

    def since_began(self, progress: int) -> dict[str, int]:
        """Detector -> steps since its newest alarm began."""
        return {name: progress - at for name, at in self._began_at.items()}


class Presence:
    """When each signal that must have data had its last value, by the clock of the looks."""

    def __init__(self, policy: Policy) -> None:
        self._last: dict[str, float | None] = {
            name: None for name, signal in policy.signals.items() if signal.must_have_data
        }
        self._limit = policy.freshness.max_age_seconds

    def see(self, new: Mapping[str, Reading], at: float) -> None:
        """Take the readings of a look."""
        for name in self._last:
            reading = new.get(name)
            if (reading is not None and isfinite(reading.value)) or self._last[name] is None:
                self._last[name] = at  # before the first value, time counts from the first look

    def absent(self, at: float) -> str:
        """One sentence about a signal without data for too long; empty while all are there."""
        gone = {name: at - last for name, last in self._last.items() if last is not None and at - last > self._limit}
        return next((f"{name} has had no value for {age:.0f} s; the policy needs it" for name, age in gone.items()), "")
