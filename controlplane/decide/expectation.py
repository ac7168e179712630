"""What the forecast lets one expect of the next steps: the reference of the pass-rate detectors and of verdicts. Pure.

The forecast is about held-out evaluations against compute; the training pass rate has other prompts. So only its *change*
is taken over to the training pass rate, and an evaluation is compared with the forecast made before it. A refused forecast
expects nothing: no change, and no number.
"""

from math import nan, sqrt

from controlplane.decide.judgement import ForecastView

_Q80 = 2.563  # width of a normal distribution's 80 % interval, in standard deviations


def gain_per_step(view: ForecastView | None, compute_per_step: float) -> float:
    """Change of the pass rate per step that the forecast expects from here on; 0 where there is none.

    The first stretch of the band is a chord of a curve that flattens, so this is rather too little than too much.
    """
    if view is None or view.refused or len(view.band) < 2:
        return 0.0
    (here, _, now, _), (there, _, later, _) = view.band[0], view.band[1]
    return (later - now) / (there - here) * compute_per_step if there > here else 0.0


def of_evaluation(view: ForecastView | None, compute: float, prompts: float) -> tuple[float, float]:
    """(median, standard deviation) of an evaluation of `prompts` prompts at `compute`, forecast earlier; NaN where there is none."""
    if view is None or view.refused or len(view.band) < 2 or not prompts > 0:
        return nan, nan
    rows = view.band
    after = next((i for i, row in enumerate(rows) if row[0] >= compute), len(rows) - 1)
    left, right = rows[max(after - 1, 0)], rows[after]
    share = (compute - left[0]) / (right[0] - left[0]) if right[0] > left[0] else 0.0
    low, middle, high = (a + (b - a) * min(max(share, 0.0), 1.0) for a, b in zip(left[1:], right[1:], strict=True))
    # The band is about the mean; an evaluation adds the noise of its prompts.
    return middle, sqrt(((high - low) / _Q80) ** 2 + max(middle * (1 - middle), 0.02) / prompts)
