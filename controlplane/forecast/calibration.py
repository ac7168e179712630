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
SMOOTHED, LEAST_FALL, SHARE_LOST = 3, 0.05, 0.35
NEAR = 2.0
"""Up to this multiple of the observed compute a forecast does not rest on the asymptote (docs/forecast.md has the figures)."""


def factor(level: float, ratio: Array) -> Array:
    """Conformal factor at compute ratio `ratio`; linear in log ratio between the horizons, constant beyond them."""
    if level not in FACTORS:
        raise ValueError(f"interval: level {level} has no calibration; allowed are {', '.join(map(str, FACTORS))}")
    return np.interp(np.log(ratio), np.log(HORIZONS), FACTORS[level])


def fallen(rates: Array, variances: Array) -> tuple[float, float] | None:
    """(highest level, level now) of a curve that has fallen, each a mean of 3 evaluations; None for one that has not.

    Fallen is by more than 0.05, four standard errors and 35 % of what had been gained.
    """
    if len(rates) < 2 * SMOOTHED:
        return None
    level = np.convolve(rates, np.full(SMOOTHED, 1.0 / SMOOTHED), mode="valid")
    top, last = float(level.max()), float(level[-1])
    error = float(np.sqrt(variances[-1] / SMOOTHED))
    if top - last <= max(LEAST_FALL, 4.0 * error, SHARE_LOST * (top - float(level[0]))):
        return None
    return top, last


def refusal(
    evaluations: int,
    width80: float,
    sd_a: float,
    stretch: float,
    reliable: bool,
    fall: tuple[float, float] | None = None,
) -> str | None:
    """Why the forecast may not be used yet, or None if it may. `stretch`: target compute over last observed compute."""
    if evaluations < MIN_EVALUATIONS:
        return f"only {evaluations} of the {MIN_EVALUATIONS} evaluations that a forecast needs"
    if width80 > MAX_WIDTH80:
        return f"the 80 % interval is {width80:.2f} wide, more than {MAX_WIDTH80}"
    if sd_a > MAX_SD_A and stretch > NEAR:
        return f"the asymptote A is hardly better known than before the run (sd {sd_a:.3f}, limit {MAX_SD_A:.3f})"
    if not reliable:
        return "almost no curve that fits these points is a possible pass-rate curve"
    if fall is not None:
        return f"the pass rate has fallen from {fall[0]:.2f} to {fall[1]:.2f}, and the law only knows curves that rise"
    return None
