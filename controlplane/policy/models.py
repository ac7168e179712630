"""The policy as types. Everything a policy may say is here; there is no expression language.

    signals (built in) -> detectors -> rules -> actions, inside clamps, as far as autonomy allows

Autonomy is a ladder per action family: `observe` (write down what would be done), `advise` (tell a person), `act`. The
default is `observe` everywhere.
"""

from enum import IntEnum, StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

from controlplane.contract.tunables import TUNABLES
from controlplane.contract.yamlfile import Misplaced


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Family(StrEnum):
    """Kinds of action that a user may trust the controller with, one by one."""

    rollback = "rollback"
    lr = "lr"
    clip = "clip"
    batch = "batch"
    sampling = "sampling"
    length = "length"


FAMILY_OF: dict[str, Family] = {
    "lr_scale": Family.lr,
    "ratio_max": Family.clip,
    "clip_low": Family.clip,
    "clip_high": Family.clip,
    "prompts_per_step": Family.batch,
    "max_staleness": Family.sampling,
    "temperature": Family.sampling,
    "max_new_tokens": Family.length,
    "thinking_budget": Family.length,
    "length_penalty": Family.length,
}
"""The family that a change of each tunable belongs to."""


class Autonomy(IntEnum):
    """How far the controller may go: write down, tell, or do."""

    observe = 0
    advise = 1
    act = 2


def _level(value: object) -> Autonomy:
    try:
        return value if isinstance(value, Autonomy) else Autonomy[str(value)]
    except KeyError:
        raise ValueError(f"must be one of {', '.join(Autonomy.__members__)}") from None


Level = Annotated[Autonomy, PlainValidator(_level), PlainSerializer(lambda level: level.name)]

Signal = Literal[
    "pass_rate",
    "truncation",
    "gen_length",
    "grad_norm",
    "loss",
    "entropy",
    "mismatch_kl",
    "effective_samples",
    "zero_variance",
    "utilization",
    "staleness",
    "eval_pass_rate",
    "nonfinite_steps",
]
RESERVED_RULES = frozenset({"stale", "refused"})
"""What the controller tells people of without a rule; no rule may have these names."""
VALUE_SIGNALS: frozenset[str] = frozenset({"pass_rate", "eval_pass_rate"})
"""Signals that say the run is worth less; all others say how it breaks. A rollback needs one of each."""


class Cusum(_Part):
    """Cumulative sum against the signal's own recent past: small lasting shifts.

    z = (value - level) / spread, clipped to +-3: the level is the median of 16 readings that ended `lag` readings ago, the
    spread the MAD of `window` earlier readings around their own level. S = max(0, S -+ z - k), alarm while S > h.
    With k 1 and h 8 (`bench/detectors.py`): a false alarm in about 27,000 readings under heavy-tailed (t3) noise, 4,600
    under correlated (AR .3) noise; a lasting shift of two spreads is found in about 6 readings.
    """

    kind: Literal["cusum"]
    signal: Signal
    side: Literal["low", "high"]
    k: float = Field(default=1.0, gt=0)
    h: float = Field(default=8.0, gt=0)
    transform: Literal["none", "log"] = "none"
    window: int = Field(default=64, ge=8)
    lag: int = Field(default=8, ge=1)
    min_readings: int = Field(default=16, ge=8)
    """Readings that the window must hold before the detector judges."""


class RobustZ(_Part):
    """Readings far above the recent median, several in a row: spikes that stay.

    The z of `Cusum`. With z > 4 twice in a row (`bench/detectors.py`): a false alarm in about 7,000 readings under
    heavy-tailed (t3) noise, 140,000 under correlated noise; a shift of four spreads is found in 2 readings.
    """

    kind: Literal["robust_z"]
    signal: Signal
    transform: Literal["none", "log"] = "log"
    above: float = Field(default=4.0, gt=0)
    consecutive: int = Field(default=2, ge=1)
    window: int = Field(default=64, ge=8)
    lag: int = Field(default=8, ge=1)
    min_readings: int = Field(default=16, ge=8)


class Threshold(_Part):
    """A fixed threshold with persistence: the numbers that people agreed on."""

    kind: Literal["level"]
    signal: Signal
    above: float | None = Field(default=None, allow_inf_nan=False)
    below: float | None = Field(default=None, allow_inf_nan=False)
    consecutive: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _one_side(self) -> "Threshold":
        if (self.above is None) == (self.below is None):
            raise ValueError("give exactly one of above and below")
        return self


class Streak(_Part):
    """Steps in a row with a non-finite value. Needs no second key: the numbers are simply gone."""

    kind: Literal["nonfinite"]
    steps: int = Field(default=3, ge=1)


class Stall(_Part):
    """No step for longer than `times` the usual step time, and at least `seconds`."""

    kind: Literal["stall"]
    times: float = Field(default=10.0, gt=1)
    seconds: float = Field(default=600.0, gt=0)


Detector = Annotated[Cusum | RobustZ | Threshold | Streak | Stall, Field(discriminator="kind")]


class When(_Part):
    """All of `all` and, if given, at least one of `any` must be in alarm."""

    all: tuple[str, ...] = Field(min_length=1)
    any: tuple[str, ...] = ()
    within_steps: int = Field(default=10, ge=0)
    """Steps for which an alarm of `any` counts after it stood last: a mechanism shows in spikes, not all the time."""


class Rollback(_Part):
    """Go back to the newest checkpoint proved good that is at least this many steps older than the onset."""

    before_onset_steps: int = Field(default=5, ge=0)


class Then(_Part):
    """What a rule does. `scale` multiplies tunables, `set` gives absolute values; a rollback may carry both."""

    rollback: Rollback | None = None
    scale: dict[str, float] = {}
    set: dict[str, float] = {}
    page: bool = False

    @property
    def families(self) -> frozenset[Family]:
        """Families of action that this needs; autonomy must allow every one of them."""
        found = {FAMILY_OF[name] for name in (*self.scale, *self.set)}
        # Changing values as part of a rollback is the rollback's business: it must change something to help.
        return frozenset({Family.rollback}) if self.rollback else frozenset(found)

    @model_validator(mode="after")
    def _known(self) -> "Then":
        for name in (*self.scale, *self.set):
            if name not in TUNABLES:
                raise ValueError(f"unknown tunable {name!r}; known are {', '.join(TUNABLES)}")
        for name, factor in self.scale.items():
            if not 0 < factor < float("inf"):
                raise ValueError(f"scale of {name} must be a positive factor, not {factor}")
        if both := self.scale.keys() & self.set.keys():
            raise ValueError(f"{sorted(both)[0]} is both scaled and set")
        if not (self.rollback or self.scale or self.set or self.page):
            raise ValueError("a rule must do something: rollback, scale, set or page")
        if self.rollback and not (self.scale or self.set):
            raise ValueError("a rollback must also change something (scale or set), or the run meets the same end")
        return self


class Limits(_Part):
    """How often a rule may act. Steps count over all branches."""

    max_per_run: int = Field(default=2, ge=0)
    cooldown_steps: int = Field(default=50, ge=0)


class Rule(_Part):
    """One condition and what it leads to."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    when: When
    then: Then
    limits: Limits = Limits()


class Clamp(_Part):
    """Hard limits of a tunable, in its unit. Values outside are cut to the nearest limit."""

    min: float = Field(allow_inf_nan=False)
    max: float = Field(allow_inf_nan=False)

    @model_validator(mode="after")
    def _ordered(self) -> "Clamp":
        if self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class Freshness(_Part):
    """When data are too old to act on."""

    max_age_seconds: float = Field(default=60.0, gt=0)
    """Age of the newest metric sample past which the controller holds and a person is told. It also holds, without telling
    yet, while the data cannot be read at all for less than this."""


class ForecastOf(_Part):
    """What is forecast: the held-out pass rate at the end of the run."""

    dataset: str = "held_out"
    axis: Literal["step", "gpu_seconds"] = "gpu_seconds"
    """Compute axis of the law. GPU-seconds as in the paper; steps where a step always costs the same."""
    target: float | None = Field(default=None, gt=0, lt=1)
    """Pass rate that the run should reach; the probability of it is reported."""


class Verdict(_Part):
    """How an action is judged afterwards."""

    after_steps: int = Field(default=25, ge=5)
    grace_steps: int = Field(default=5, ge=0)
    """Steps after a rollback in which nothing is judged: a restore dents the reward by itself."""


class Policy(_Part):
    """A whole policy file."""

    policy: Literal["v1"]
    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    autonomy: dict[Family, Level] = {}
    """Per action family; what is not named is only observed."""
    observe_until_step: int = Field(default=0, ge=0)
    """No action before this step: the first steps of a run look like anything."""
    freshness: Freshness = Freshness()
    forecast: ForecastOf = ForecastOf()
    detectors: dict[str, Detector] = Field(min_length=1)
    rules: tuple[Rule, ...] = ()
    clamps: dict[str, Clamp] = {}
    verdict: Verdict = Verdict()

    def allows(self, families: frozenset[Family]) -> Autonomy:
        """The lowest autonomy among the families; a rule acts only as far as its most restricted part."""
        return min((self.autonomy.get(family, Autonomy.observe) for family in families), default=Autonomy.act)

    def capped(self, ceiling: Autonomy) -> "Policy":
        """The same policy with no family above `ceiling`; for `--at-most`."""
        lowered = {family: min(level, ceiling) for family, level in self.autonomy.items()}
        return self.model_copy(update={"autonomy": lowered})

    @model_validator(mode="after")
    def _coherent(self) -> "Policy":
        for name, clamp in self.clamps.items():
            spec = TUNABLES.get(name)
            if spec is None:
                raise Misplaced(("clamps", name), f"unknown tunable; known are {', '.join(TUNABLES)}")
            if clamp.min < spec.lowest or clamp.max > spec.highest:
                raise Misplaced(("clamps", name), f"must lie within {spec.lowest:g} and {spec.highest:g}")
        names = [rule.name for rule in self.rules]
        for index, rule in enumerate(self.rules):
            if rule.name in RESERVED_RULES:
                raise Misplaced(("rules", index, "name"), "is reserved for what the controller tells without a rule")
            if rule.name in names[:index]:
                raise Misplaced(("rules", index, "name"), f"a rule {rule.name!r} stands above already")
            self._check(rule, ("rules", index))
        return self

    def _check(self, rule: Rule, at: tuple[str | int, ...]) -> None:
        for name in (*rule.when.all, *rule.when.any):
            if name not in self.detectors:
                raise Misplaced((*at, "when"), f"no detector {name!r}; there are {', '.join(self.detectors)}")
        for kind, changes in (("scale", rule.then.scale), ("set", rule.then.set)):
            for name in changes:
                if name not in self.clamps:
                    raise Misplaced(
                        (*at, "then", kind, name), "changes a tunable that has no clamp; add it under clamps"
                    )
        for name, value in rule.then.set.items():
            clamp = self.clamps[name]
            if not clamp.min <= value <= clamp.max:
                allowed = f"{clamp.min:g} to {clamp.max:g}"
                raise Misplaced((*at, "then", "set", name), f"{value:g} is outside its clamp; allowed is {allowed}")
        if rule.then.rollback and not self._two_keys(rule.when):
            raise Misplaced(
                (*at, "when"),
                "a rollback needs two keys: in `all` a detector of the pass rate and, in `all` or `any`, one of a mechanism "
                "(or a nonfinite detector alone)",
            )

    def _two_keys(self, when: When) -> bool:
        def is_value(name: str) -> bool:
            return getattr(self.detectors[name], "signal", "") in VALUE_SIGNALS

        if any(self.detectors[name].kind == "nonfinite" for name in when.all):
            return True
        value = any(is_value(name) for name in when.all)
        mechanism_required = any(not is_value(name) for name in when.all)
        mechanism_offered = bool(when.any) and all(not is_value(name) for name in when.any)
        return value and (mechanism_required or mechanism_offered)
