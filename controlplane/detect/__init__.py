"""Samples -> readings -> alarms. Pure: no clock, no I/O; the same snapshots give the same findings."""

from controlplane.detect.detectors import MISS_PROBABILITY, NONFINITE_STEPS, build, source_of
from controlplane.detect.finding import Detector, Finding, Outcome
from controlplane.detect.signals import SERIES, Reading, Totals, readings

__all__ = [
    "MISS_PROBABILITY",
    "NONFINITE_STEPS",
    "SERIES",
    "Detector",
    "Finding",
    "Outcome",
    "Reading",
    "Totals",
    "build",
    "readings",
    "source_of",
]
