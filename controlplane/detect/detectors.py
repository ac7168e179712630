"""Streaming detectors: readings of one signal in, one finding out. Pure: the same readings give the same findings."""

from controlplane.detect.cumulative import BernoulliDetector, CusumDetector
from controlplane.detect.finding import Detector
from controlplane.detect.persistent import (
    RobustZDetector,
    ShortfallDetector,
    SlideDetector,
    StreakDetector,
    ThresholdDetector,
    TrendDetector,
)
from controlplane.policy.detectors import BernoulliCusum, Cusum, RobustZ, Shortfall, Slide, Streak, Threshold, Trend
from controlplane.policy.detectors import Detector as Config
from controlplane.policy.signals import BUILT_IN, SignalSpec

MISS_PROBABILITY = "miss_probability"
NONFINITE_STEPS = "nonfinite_steps"
"""Readings that have no name in a policy: their detectors know them."""


def build(config: Config, spec: SignalSpec | None = None) -> Detector | None:
    """The detector of a policy entry; None for a stall, which is judged by the clock and not by readings.

    `spec` says how the signal is judged; without it the signal must be built in.
    """
    match config:
        case Cusum():
            return CusumDetector(config, spec or BUILT_IN[config.signal])
        case BernoulliCusum():
            return BernoulliDetector(config, spec or BUILT_IN[config.signal])
        case RobustZ():
            return RobustZDetector(config, spec or BUILT_IN[config.signal])
        case Threshold():
            return ThresholdDetector(config)
        case Trend():
            return TrendDetector(config)
        case Slide():
            return SlideDetector(config)
        case Streak():
            return StreakDetector(config)
        case Shortfall():
            return ShortfallDetector(config)
    return None


def source_of(config: Config) -> str:
    """Name of the readings that a detector wants; empty for a stall."""
    match config:
        case Streak():
            return NONFINITE_STEPS
        case Shortfall():
            return MISS_PROBABILITY
        case Cusum() | BernoulliCusum() | RobustZ() | Threshold() | Trend() | Slide():
            return config.signal
    return ""
