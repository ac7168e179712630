"""When to believe a forecast, and how far its intervals must be stretched to cover as often as they say.

The conformal factors come from back-tests on published runs, one factor per level and horizon; within a single run
nothing can calibrate the far forecast, because its target is seen only once, at the end.
"""

import numpy as np

from controlplane.forecast.grid import TRUNCATED_SD_A
from controlplane.forecast.law import Array

HORIZONS = (2.0, 4.0, 10.0)
"""Target compute over last observed compute at which the factors were measured."""
FACTORS = {0.8: (1.18, 1.05, 1.08), 0.9: (1.60, 1.52, 1.28), 0.95: (2.15, 2.15, 1.48)}
"""Factor on the 80 % half-width for each nominal level, at `HORIZONS`."""

MIN_EVALUATIONS = 8
MAX_WIDTH80 = 0.5
MAX_SD_A = 0.8 * TRUNCATED_SD_A
NEAR = 2.0
"""Up to this multiple of the observed compute a forecast does not rest on the asymptote (docs/forecast.md has the figures)."""


def factor(level: float, ratio: Array) -> Array:
    """Conformal factor at compute ratio `ratio`; linear in log ratio between the horizons, constant beyond them."""
    if level not in FACTORS:
        raise ValueError(f"interval: level {level} has no calibration; allowed are {', '.join(map(str, FACTORS))}")
    return np.interp(np.log(ratio), np.log(HORIZONS), FACTORS[level])


def refusal(evaluations: int, width80: float, sd_a: float, stretch: float, reliable: bool) -> str | None:
    """Why the forecast may not be used yet, or None if it may. `stretch`: target compute over last observed compute."""
    if evaluations < MIN_EVALUATIONS:
        return f"only {evaluations} of the {MIN_EVALUATIONS} evaluations that a forecast needs"
    if width80 > MAX_WIDTH80:
        return f"the 80 % interval is {width80:.2f} wide, more than {MAX_WIDTH80}"
    if sd_a > MAX_SD_A and stretch > NEAR:
        return f"the asymptote A is hardly better known than before the run (sd {sd_a:.3f}, limit {MAX_SD_A:.3f})"
    if not reliable:
        return "almost no curve that fits these points is a possible pass-rate curve"
    return None
