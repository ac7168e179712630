"""The policy's section on probes: when, what, how long, and what counts as proof. docs/tuning.md explains it for people."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from controlplane.contract.tunables import TUNABLES
from controlplane.contract.yamlfile import Misplaced
from controlplane.policy.parts import Part

PROBED = ("lr_scale", "ratio_max", "clip_low", "clip_high", "temperature", "max_staleness")
"""Tunables that a probe may try. Batch size is not among them: small batches look better early and lose later."""


CARRIED_OVER = {
    "temperature": "it changes the pass rate itself, at once, which cannot be told from learning",
    "max_staleness": "what is in flight outlasts a segment, so its effect falls into the next one",
}
"""Tunables that cannot take turns in one run, and why."""


class NoiseOf(Part):
    """How far two equally good arms wander apart, in units of the noise of a step; bench/tuning/twins.py measures it."""

    persistence: float = Field(default=0.9, ge=0, le=1)
    wandering: float = Field(default=0.2, ge=0, allow_inf_nan=False)


class Tuning(Part):
    """Without this section nothing is ever probed. `autonomy.probe` must be `act`, or a person has to ask for each probe."""

    design: Literal["inline", "spare", "switchback", "off"] = "inline"
    """Where probes run. inline: the run waits while its trainer trains the arms in turns with it, from a snapshot in memory. spare: a
    second process trains them, and the run goes on. switchback: the run itself takes turns between two values. off: none."""
    space: dict[str, float] = Field(min_length=1)
    """Tunable -> trust region: the largest factor of one probe, up or down."""
    miss_probability: float = Field(default=0.9, gt=0.5, lt=1)
    """A probe begins when the forecast says that the run misses its target with at least this probability."""
    on_alarm: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Detector -> tunables that can answer it; downwards is tried first then."""
    steps: int = Field(default=40, ge=8)
    """Optimizer steps of each arm."""
    arms: int = Field(default=2, ge=1, le=4)
    """Arms of a probe beside the run itself; a switchback has one, whatever stands here."""
    washout: int = Field(default=4, ge=0)
    """Of a switchback: first steps of each segment that are not read."""
    max_probes: int = Field(default=4, ge=0)
    cooldown_steps: int = Field(default=50, ge=0)
    """Steps of the run between two probes."""
    min_effect: float = Field(default=0.01, ge=0, lt=1)
    """Smallest advantage in pass rate by the end of a probe that is worth a change."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    noise: NoiseOf = NoiseOf()
    study: str = ""
    """Where the study is kept, by URL: sqlite:///FILE, postgresql://..., journal:FILE; by default beside the journal."""

    @field_validator("design", mode="before")
    @classmethod
    def _a_word_in_yaml(cls, value: object) -> object:
        """A bare `off` is a boolean in YAML."""
        return "off" if value is False else value

    @model_validator(mode="after")
    def _coherent(self) -> "Tuning":
        for name, factor in self.space.items():
            if name not in TUNABLES or name not in PROBED:
                raise Misplaced(("space", name), f"cannot be probed; allowed are {', '.join(PROBED)}")
            if not 1.1 < factor <= 3:
                raise Misplaced(("space", name), "the trust region must be a factor above 1.1 and at most 3")
            if self.design == "switchback" and name in CARRIED_OVER:
                raise Misplaced(("space", name), f"cannot be probed by switchback: {CARRIED_OVER[name]}")
        if self.design == "switchback" and self.steps % 2:
            raise Misplaced(("steps",), "must be even for a switchback: each value has two segments")
        if self.design == "switchback" and self.steps // 2 - self.washout < 4:
            raise Misplaced(("washout",), f"leaves fewer than 4 of a segment's {self.steps // 2} steps to be read")
        return self

    @property
    def run_steps(self) -> int:
        """Steps that the run itself takes while the arms take theirs."""
        return 2 * self.steps if self.design == "switchback" else self.steps

    @property
    def most_arms(self) -> int:
        """Arms of one probe beside the control."""
        return 1 if self.design == "switchback" else self.arms
