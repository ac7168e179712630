"""What a look at the run means: findings of every detector, the forecast, and whether the data may be used at all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt

from pydantic import BaseModel, ConfigDict

from controlplane.detect import Finding


class ForecastView(BaseModel):
    """A forecast as journaled and shown. Compute is in the axis of the policy (steps or GPU-seconds)."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    step: int
    branch: int
    compute: float
    """Compute of the newest evaluation used."""
    budget: float
    """Compute at which the run ends."""
    points: int
    quantiles: dict[str, float]
    """Pass rate at the budget, by quantile."""
    band: tuple[tuple[float, float, float, float], ...]
    """(compute, q10, q50, q90) from here to the budget, for the picture."""
    refused: bool
    reason: str = ""
    target: float | None = None
    target_probability: float | None = None
    parameters: dict[str, tuple[float, float, float]] = {}
    """q10, q50, q90 of A, B, C_mid and R0."""
    coverage: dict[str, float] = {}
    """Nominal level -> share of the evaluations so far that fell inside the interval forecast just before them."""
    scored: int = 0
    """Evaluations that the coverage is counted over."""


@dataclass(frozen=True)
class Judgement:
    """The input of a decision, beside policy and standing."""

    step: int | None
    branch: int
    findings: Mapping[str, Finding]
    since_breach: Mapping[str, int]
    """Detector -> steps since it was last in alarm on this branch; those that never were are missing."""
    since_began: Mapping[str, int] = field(default_factory=dict)
    """Detector -> steps since its newest alarm began."""
    stale: str = ""
    """One sentence when the data are missing or too old to act on."""
    blind_seconds: float = 0.0
    """Time since the newest sample that could be used."""
    forecast: ForecastView | None = None
    forecast_is_new: bool = False
    forecasts: Mapping[str, ForecastView] = field(default_factory=dict)
    """The newest forecast of every held-out set; `forecast` is that of the policy's."""
    recent: tuple[tuple[int, float, float], ...] = ()
    """(progress, pass rate, samples) of the newest readings."""
    gain_per_step: float = 0.0
    """Change of the pass rate per step that the forecast expects; 0 without a forecast."""

    def pass_rate_since(self, progress: int) -> tuple[float, float] | None:
        """Mean pass rate over the readings after `progress` and the margin of its comparison; None without readings."""
        rows = [(value, n) for at, value, n in self.recent if at > progress]
        samples = sum(n for _, n in rows)
        if not rows or samples <= 0:
            return None
        mean = sum(value * n for value, n in rows) / samples
        # Completions of one prompt are alike: a design effect of 4 on the binomial error, and never below .03.
        return mean, max(0.03, 2 * sqrt(4 * max(mean * (1 - mean), 0.02) / samples))
