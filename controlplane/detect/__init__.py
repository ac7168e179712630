"""Samples -> readings -> alarms. Pure: no clock, no I/O; the same snapshots give the same findings."""

from controlplane.detect.detectors import Detector, Finding, Outcome, build
from controlplane.detect.signals import SERIES, Reading, readings

__all__ = ["SERIES", "Detector", "Finding", "Outcome", "Reading", "build", "readings"]
