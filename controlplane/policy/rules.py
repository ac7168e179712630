"""Rules: when which detectors are in alarm, what to do, how often, and how to come back from it."""

from math import isfinite
from typing import Literal

from pydantic import Field, model_validator

from controlplane.contract.tunables import TUNABLES
from controlplane.policy.parts import FAMILY_OF, Family, Part


class When(Part):
    """All of `all` and, if given, at least one of `any` must be in alarm."""

    all: tuple[str, ...] = Field(min_length=1)
    any: tuple[str, ...] = ()
    within_steps: int = Field(default=10, ge=0)
    """Steps for which an alarm of `any` counts after it stood last: a mechanism shows in spikes, not all the time."""
    fresh_steps: int = Field(default=200, ge=1)
    """An alarm of `any` that has stood for longer than this is how the run usually is, and no evidence of something new."""


class Rollback(Part):
    """Go back to the newest checkpoint proved good that is at least this many steps older than the onset."""

    before_onset_steps: int = Field(default=5, ge=0)


class Then(Part):
    """What a rule does. `scale` multiplies tunables, `set` gives absolute values; a rollback may carry both."""

    rollback: Rollback | None = None
    scale: dict[str, float] = Field(default_factory=dict)
    set: dict[str, float] = Field(default_factory=dict)
    for_steps: int | None = Field(default=None, ge=1)
    """The new values are a lease: after so many steps the trainer takes them back by itself, controller or not."""
    advise: str = ""
    """What a person is advised to do; told once per episode."""
    page: bool = False
    """Call a person."""

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
        for name, value in self.set.items():
            if not isfinite(value):
                raise ValueError(f"{name} must be set to a finite number, not {value}")
        if both := self.scale.keys() & self.set.keys():
            raise ValueError(f"{sorted(both)[0]} is both scaled and set")
        if not (self.rollback or self.scale or self.set or self.page or self.advise):
            raise ValueError("a rule must do something: rollback, scale, set, advise or page")
        if self.rollback and not (self.scale or self.set):
            raise ValueError("a rollback must also change something (scale or set), or the run meets the same end")
        if (self.page or self.advise) and self.families:
            raise ValueError("a rule that changes the run tells people by itself; page and advise stand alone")
        if self.for_steps and not (self.scale or self.set):
            raise ValueError("for_steps says how long new values last, and there are none (scale or set)")
        return self


class Limits(Part):
    """How often a rule may act. Steps count over all branches."""

    max_per_run: int = Field(default=2, ge=0)
    cooldown_steps: int = Field(default=50, ge=0)


class Recover(Part):
    """The way back to the values before: one `step` at a time, as long as all stays quiet."""

    after_quiet_steps: int = Field(default=300, ge=1)
    """Steps without an alarm of this rule, and without an action, before each step back."""
    step: float = Field(default=1.1, gt=1, allow_inf_nan=False)
    """Factor of one step back."""


class Rule(Part):
    """One condition and what it leads to."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    priority: Literal["safety", "efficiency", "tuning"] = "safety"
    """Of rules that hold together the safer goes first; at the same priority rollback, decrease, increase, then telling."""
    when: When
    then: Then
    limits: Limits = Limits()
    recover: Recover | None = None
    dry_run: bool = False
    """Only write down what it would do, whatever the autonomy."""

    @model_validator(mode="after")
    def _sensible(self) -> "Rule":
        if self.recover and not (self.then.scale or self.then.set):
            raise ValueError("recover needs something to come back from (scale or set)")
        if self.recover and self.then.for_steps:
            raise ValueError("for_steps takes the values back by itself; leave out recover")
        return self
