"""The policy as types. Everything a policy may say is here; there is no expression language.

    signals -> detectors -> rules -> actions, inside clamps, as far as autonomy and approval allow

Autonomy is a ladder per action family: `observe` (write down what would be done), `advise` (tell a person), `act`. The
default is `observe` everywhere. docs/policy.md explains it for people.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from controlplane.contract.tunables import TUNABLES
from controlplane.contract.yamlfile import Misplaced
from controlplane.policy.detectors import (
    BernoulliCusum,
    Cusum,
    Detector,
    RobustZ,
    Shortfall,
    Slide,
    Stall,
    Streak,
    Threshold,
    Trend,
)
from controlplane.policy.parts import FAMILY_OF, Autonomy, Family, Level, Part
from controlplane.policy.rules import Limits, Recover, Rollback, Rule, Then, When
from controlplane.policy.signals import NO_KEY, VALUE_SIGNALS, Signal, SignalSpec, resolve
from controlplane.policy.tuning import Tuning

__all__ = [
    "FAMILY_OF",
    "LEARNING_RATE",
    "RESERVED_RULES",
    "TUNING",
    "VALUE_SIGNALS",
    "Approval",
    "Autonomy",
    "BernoulliCusum",
    "Budget",
    "Clamp",
    "Cusum",
    "Detector",
    "Family",
    "ForecastOf",
    "Freshness",
    "Limits",
    "Notify",
    "Pace",
    "Policy",
    "Recover",
    "RobustZ",
    "Rollback",
    "Rule",
    "Shortfall",
    "Signal",
    "SignalSpec",
    "Slide",
    "Stall",
    "Streak",
    "Then",
    "Threshold",
    "Trend",
    "Tuning",
    "Verdict",
    "When",
]

TUNING = "tuning"
"""The name under which probes, and what they change, stand in decisions."""
RESERVED_RULES = frozenset({"stale", "refused", TUNING})
"""What the controller tells people of without a rule; no rule may have these names."""
LEARNING_RATE = "learning_rate"
"""A clamp may name it beside the tunables: the learning rate itself, which `lr_scale` multiplies."""


class Pace(Part):
    """How fast a tunable may move in one direction."""

    max_step: float = Field(gt=0, allow_inf_nan=False)
    """Largest factor of one action: below 1 for a decrease, above 1 for an increase."""
    min_gap_steps: int = Field(default=0, ge=0)
    """Steps between two moves in this direction."""


class Clamp(Part):
    """Hard limits of a tunable, in its unit. Values outside are cut to the nearest limit."""

    min: float = Field(allow_inf_nan=False)
    max: float = Field(allow_inf_nan=False)
    decrease: Pace | None = None
    increase: Pace | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Clamp":
        if self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        if self.decrease and self.decrease.max_step >= 1:
            raise Misplaced(("decrease", "max_step"), f"a decrease is a factor below 1, not {self.decrease.max_step:g}")
        if self.increase and self.increase.max_step <= 1:
            raise Misplaced(
                ("increase", "max_step"), f"an increase is a factor above 1, not {self.increase.max_step:g}"
            )
        return self


class Budget(Part):
    """What all rules together may do in one run; after that a person has to look. Ways back do not count."""

    max_actions: int = Field(default=20, ge=0)
    max_rollbacks: int = Field(default=2, ge=0)


class Approval(Part):
    """Actions that wait for a person, although autonomy allows them."""

    required_for: tuple[Family, ...] = ()
    expires_steps: int = Field(default=50, ge=1)
    """Steps that an action waits for an answer."""
    on_timeout: Literal["drop", "page", "act"] = "drop"
    """Without an answer: drop it, drop it and call a person, or act (people have a veto, and the night is safe)."""


class Freshness(Part):
    """When data are too old to act on."""

    max_age_seconds: float = Field(default=60.0, gt=0)
    """Age of the newest metric sample past which the controller holds and a person is told. It also holds, without telling
    yet, while the data cannot be read at all for less than this."""
    on_stale: Literal["hold", "hold_and_page"] = "hold_and_page"
    """It holds in any case; `hold` leaves telling people to the alert rules."""


class Notify(Part):
    """Where people are told, beside log, metrics and report."""

    webhook: str | None = Field(default=None, pattern=r"^\$\{env:[A-Z_][A-Z0-9_]*\}$")
    """An address from the environment, `${env:NAME}`; never in the file, which goes into journals and reports."""


Normal = tuple[float, Annotated[float, Field(gt=0)]]


class PriorOf(Part):
    """What finished runs of the same recipe showed: (mean, standard deviation) each, compute on the axis of the forecast.

    `scalerl fit NEW --prior OLD --prior OLD --json` prints it.
    """

    R0: Normal
    A: Normal
    ln_B: Normal
    ln_C_mid: Normal
    weight: float = Field(default=0.8, gt=0, lt=1)
    """Prior probability that this run is like them."""


class ForecastOf(Part):
    """What is forecast: the held-out pass rate at the end of the run."""

    dataset: str = "held_out"
    axis: Literal["step", "gpu_seconds"] = "gpu_seconds"
    """Compute axis of the law. GPU-seconds as in the paper; steps where a step always costs the same."""
    target: float | None = Field(default=None, gt=0, lt=1)
    """Pass rate that the run should reach; the probability of it is reported."""
    prior: PriorOf | None = None
    """Where runs of this recipe have ended before; without it a young run is forecast from its own points alone."""


class Verdict(Part):
    """How an action is judged afterwards."""

    after_steps: int = Field(default=25, ge=5)
    grace_steps: int = Field(default=5, ge=0)
    """Steps after a rollback in which nothing is judged: a restore dents the reward by itself."""
    revert: bool = True
    """Take a change back that did not help. A rollback is not taken back; a person is told."""


class Policy(Part):
    """A whole policy file."""

    policy: Literal["v1"]
    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    autonomy: dict[Family, Level] = Field(default_factory=dict)
    """Per action family; what is not named is only observed."""
    observe_until_step: int = Field(default=0, ge=0)
    """No action before this step: the first steps of a run look like anything."""
    freshness: Freshness = Freshness()
    forecast: ForecastOf = ForecastOf()
    signals: dict[str, Signal] = Field(default_factory=dict)
    """Signals with a query of their own, and what is known about built-in ones. Most policies need none."""
    detectors: dict[str, Detector] = Field(min_length=1)
    rules: tuple[Rule, ...] = ()
    clamps: dict[str, Clamp] = Field(default_factory=dict)
    budget: Budget = Budget()
    approval: Approval = Approval()
    verdict: Verdict = Verdict()
    notify: Notify = Notify()
    tuning: Tuning | None = None

    def allows(self, families: frozenset[Family]) -> Autonomy:
        """The lowest autonomy among the families; a rule acts only as far as its most restricted part."""
        return min((self.autonomy.get(family, Autonomy.observe) for family in families), default=Autonomy.act)

    def capped(self, ceiling: Autonomy) -> "Policy":
        """The same policy with no family above `ceiling`; for `--at-most`."""
        lowered = {family: min(level, ceiling) for family, level in self.autonomy.items()}
        return self.model_copy(update={"autonomy": lowered})

    def signal(self, name: str) -> SignalSpec:
        """All that is known of a signal that this policy uses."""
        return resolve(name, self.signals.get(name))

    @property
    def queries(self) -> dict[str, str]:
        """Signal -> PromQL, of the signals that have a query of their own."""
        return {name: signal.query for name, signal in self.signals.items() if signal.query is not None}

    @model_validator(mode="after")
    def _coherent(self) -> "Policy":
        for name in self.signals:
            self._signal(name, ("signals", name))
        for name, detector in self.detectors.items():
            self._detector(name, detector)
        for name, clamp in self.clamps.items():
            self._clamp(name, clamp)
        if self.tuning is not None:
            self._tuning(self.tuning)
        names = [rule.name for rule in self.rules]
        for index, rule in enumerate(self.rules):
            if rule.name in RESERVED_RULES:
                raise Misplaced(("rules", index, "name"), "is reserved for what the controller tells without a rule")
            if rule.name in names[:index]:
                raise Misplaced(("rules", index, "name"), f"a rule {rule.name!r} stands above already")
            self._rule(rule, ("rules", index))
        return self

    def _signal(self, name: str, at: tuple[str | int, ...]) -> SignalSpec:
        try:
            return self.signal(name)
        except ValueError as error:
            raise Misplaced(at, str(error)) from None

    def _detector(self, name: str, detector: Detector) -> None:
        at = ("detectors", name)
        if isinstance(detector, Shortfall) and self.forecast.target is None:
            raise Misplaced(at, "there is no target to fall short of; give one under forecast")
        if isinstance(detector, Streak | Stall | Shortfall):
            return
        spec = self._signal(detector.signal, (*at, "signal"))
        if isinstance(detector, BernoulliCusum) and spec.kind != "proportion":
            raise Misplaced((*at, "signal"), f"a bernoulli_cusum needs a proportion; {detector.signal} is {spec.kind}")
        if isinstance(detector, BernoulliCusum) and spec.query is not None and not (spec.n and spec.group_size):
            needs = f"needs to know the samples and how they are grouped; give n and group_size of {detector.signal}"
            raise Misplaced((*at, "signal"), f"a bernoulli_cusum {needs}")
        if isinstance(detector, Cusum) and detector.reference == "forecast" and detector.signal not in VALUE_SIGNALS:
            allowed = ", ".join(sorted(VALUE_SIGNALS))
            raise Misplaced(
                (*at, "reference"), f"the forecast is about the pass rate; it can be the reference of {allowed}"
            )

    def _clamp(self, name: str, clamp: Clamp) -> None:
        if name == LEARNING_RATE:
            return
        spec = TUNABLES.get(name)
        if spec is None:
            raise Misplaced(("clamps", name), f"unknown tunable; known are {', '.join(TUNABLES)}, {LEARNING_RATE}")
        if clamp.min < spec.lowest or clamp.max > spec.highest:
            raise Misplaced(("clamps", name), f"must lie within {spec.lowest:g} and {spec.highest:g}")

    def _tuning(self, tuning: Tuning) -> None:
        for name in tuning.space:
            if name not in self.clamps:
                raise Misplaced(("tuning", "space", name), "may be probed but has no clamp; add it under clamps")
        for detector, tunables in tuning.on_alarm.items():
            if detector not in self.detectors:
                raise Misplaced(
                    ("tuning", "on_alarm", detector), f"no such detector; there are {', '.join(self.detectors)}"
                )
            for name in tunables:
                if name not in tuning.space:
                    raise Misplaced(("tuning", "on_alarm", detector), f"{name} is not in tuning.space")

    def _rule(self, rule: Rule, at: tuple[str | int, ...]) -> None:
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
        def key(name: str) -> str:
            detector = self.detectors[name]
            if isinstance(detector, Stall | Shortfall):
                return "neither"  # says nothing about whether these weights are broken
            signal = getattr(detector, "signal", "")
            return "value" if signal in VALUE_SIGNALS else "neither" if signal in NO_KEY else "mechanism"

        if any(isinstance(self.detectors[name], Streak) for name in when.all):
            return True
        needed, offered = {key(name) for name in when.all}, {key(name) for name in when.any}
        return "value" in needed and ("mechanism" in needed or offered == {"mechanism"})
