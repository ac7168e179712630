"""The detectors that a policy can name, with their settings. What they compute is in `controlplane.detect`.

Each says how often it alarms for nothing and how soon it finds something; the line "Measured at its defaults" is written by
`python bench/detectors.py --write` from the same figures that `scalerl policy explain` and docs/detectors.md show.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from controlplane.policy.parts import Part
from controlplane.policy.signals import BUILT_IN

SignalName = Annotated[str, Field(min_length=1, json_schema_extra={"examples": list(BUILT_IN)})]


class _OneSide(Part):
    """A threshold on one side."""

    above: float | None = Field(default=None, allow_inf_nan=False)
    below: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_side(self) -> "_OneSide":
        if (self.above is None) == (self.below is None):
            raise ValueError("give exactly one of above and below")
        return self

    @property
    def limit(self) -> float:
        """The threshold, whichever side it is on."""
        return self.above if self.above is not None else self.below if self.below is not None else 0.0


class Cusum(Part):
    """Cumulative sum of deviations from the usual: small lasting shifts.

    z = (value - level) / spread, clipped to +-3: the level is the median of 16 readings that ended `lag` readings ago, the
    spread the MAD of `window` earlier readings around their own level. S = max(0, S -+ z - k), alarm while S > h.
    Measured at its defaults: 0.05 (heavy-tailed), fewer than 0.03 (normal), 0.22 (correlated) false alarms per 1,000 steps; found in 6 (2 spreads), 5 (4 spreads) steps.
    """

    kind: Literal["cusum"]
    signal: SignalName
    side: Literal["low", "high"]
    reference: Literal["local", "forecast"] = "local"
    """What is usual: the local level alone, or moved on by the gain that the forecast expects since then (at most one
    spread). An evaluation is compared with what the forecast before it said. Local while the forecast is refused."""
    k: float = Field(default=1.0, gt=0)
    """Spreads that a reading may deviate without adding to the sum."""
    h: float = Field(default=8.0, gt=0)
    """The sum past which it is an alarm."""
    window: int = Field(default=64, ge=8, le=1024)
    lag: int = Field(default=8, ge=1, le=256)
    min_readings: int = Field(default=16, ge=8)
    """Readings that the window must hold before the detector judges."""


class RobustZ(Part):
    """Readings far above the recent median, several in a row: spikes that stay.

    The z of `cusum`, without a forecast.
    Measured at its defaults: 0.1 (heavy-tailed), fewer than 0.03 (normal), fewer than 0.03 (correlated) false alarms per 1,000 steps; found in more than 150 (2 spreads), 2 (4 spreads) steps.
    """

    kind: Literal["robust_z"]
    signal: SignalName
    above: float = Field(default=4.0, gt=0)
    """Spreads above the level."""
    consecutive: int = Field(default=2, ge=1)
    window: int = Field(default=64, ge=8, le=1024)
    lag: int = Field(default=8, ge=1, le=256)
    min_readings: int = Field(default=16, ge=8)


class Threshold(_OneSide):
    """A fixed threshold with persistence: the numbers that people agreed on.

    How often it alarms for nothing depends on how near to it a healthy run lives.
    Measured at its defaults: 0.69 (1 spread on the good side), 0.01 (2 spreads on the good side) false alarms per 1,000 steps; found in 3 (1 spread beyond), 3 (2 spreads beyond) steps.
    """

    kind: Literal["level"]
    signal: SignalName
    consecutive: int = Field(default=3, ge=1)
    """Readings in a row beyond the threshold."""
    from_step: int = Field(default=0, ge=0)
    """Nothing is judged before this step: early in a run the number means nothing yet."""


class BernoulliCusum(Part):
    """Cumulative log-likelihood ratio of two proportions: a share that rises from `usual` to `bad`.

    S = max(0, S + n_eff (v ln(bad / usual) + (1 - v) ln((1 - bad) / (1 - usual)))), alarm while S > h. Completions of one
    prompt are alike, so n_eff = n / (1 + (group size - 1) correlation): without that, 60,000 batches at a true 5 % gave 35
    alarms, with it none. One batch adds at most half of h.
    Measured at its defaults: fewer than 0.03 (at a true 0.025), 0.05 (at a true 0.05) false alarms per 1,000 steps; found in 8 (at a true 0.08), 3 (at a true 0.1), 3 (at a true 0.15) steps.
    """

    kind: Literal["bernoulli_cusum"]
    signal: SignalName = "truncation"
    usual: float = Field(default=0.05, gt=0, lt=1)
    bad: float = Field(default=0.10, gt=0, lt=1)
    h: float = Field(default=8.0, gt=0)
    correlation: float = Field(default=0.3, ge=0, le=1)
    """Between completions of the same prompt."""

    @model_validator(mode="after")
    def _ordered(self) -> "BernoulliCusum":
        if self.usual >= self.bad:
            raise ValueError(f"usual {self.usual:g} must be below bad {self.bad:g}")
        return self


class Trend(_OneSide):
    """Says that a signal will reach a threshold soon: "truncation reaches 0.1 in about 40 steps".

    A straight line through the last `window` readings, the outer ones clipped; an alarm when its slope is `certainty`
    standard errors away from zero, it meets the threshold within `within_steps`, and it said so `consecutive` times.
    Measured at its defaults: fewer than 0.03 (flat at half the threshold) false alarms per 1,000 steps; found in 64 (a climb that takes 100 steps), 163.5 (a climb that takes 200 steps) steps.
    """

    kind: Literal["trend"]
    signal: SignalName
    within_steps: int = Field(default=40, ge=1)
    window: int = Field(default=48, ge=16, le=1024)
    certainty: float = Field(default=5.0, gt=0)
    consecutive: int = Field(default=3, ge=1)


class Slide(Part):
    """Falls in a row that add up: a signal that leaves where it was within a few steps, also before anything is usual.

    Needs no warm-up and no level, so it judges from the first steps on: an alarm when each of the last `falls` readings or
    more lay below the one before, and together they lost `share` of where the signal stood before (the lower of two readings,
    so that one high reading alone is no slide).
    Measured at its defaults: 0.05 (spread of 0.1), 1 (spread of 0.3) false alarms per 1,000 steps; found in 4 (halved every 2 steps), 5 (halved every 4 steps) steps.
    """

    kind: Literal["slide"]
    signal: SignalName
    falls: int = Field(default=4, ge=2)
    """Readings in a row that each lie below the one before."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """Of where the signal stood before the first fall, lost."""


class Streak(Part):
    """Steps in a row with a non-finite value. Needs no second key: the numbers are simply gone.

    Measured: no false alarm, for it counts; found in `steps` steps.
    """

    kind: Literal["nonfinite"]
    steps: int = Field(default=3, ge=1)


class Stall(Part):
    """No step for longer than `times` the usual step time, and at least `seconds`.

    Measured: no false alarm while no step takes that long; found after that time.
    """

    kind: Literal["stall"]
    times: float = Field(default=10.0, gt=1)
    seconds: float = Field(default=600.0, gt=0)


class Shortfall(Part):
    """The forecast says that the run will probably miss `forecast.target`.

    Measured: as often wrong as the forecast's own calibration says (docs/forecast.md).
    """

    kind: Literal["shortfall"]
    probability: float = Field(default=0.9, gt=0.5, lt=1)
    """Of ending below the target, past which it is an alarm. Judged at each new forecast that is not refused."""
    consecutive: int = Field(default=2, ge=1)
    """Forecasts in a row."""


Detector = Annotated[
    Cusum | RobustZ | Threshold | BernoulliCusum | Trend | Slide | Streak | Stall | Shortfall,
    Field(discriminator="kind"),
]
