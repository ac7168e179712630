"""Where a probe may look: relative steps around what is in force, inside the clamps. Pure.

A tunable's coordinate is z = ln(value / value in force): the same step means the same in every run and at every time, so probes
of other runs, and of this one before it moved, say something about the next. Optuna never sees an absolute value; the clamps
are applied here, after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log

from controlplane.contract.tunables import TUNABLES

LEAST_STEP = log(1.1)
LEAST_SHARE = 1 / 3
"""A smaller relative step, or a smaller share of the trust region, is not worth a probe: its effect cannot be told from none. On the
tiny run a factor of 3 gained 0.18 in 60 steps, and what the judge finds there is 0.07."""


@dataclass(frozen=True)
class Axis:
    """One tunable that may be probed, with its clamps (policy and trainer together) and the value in force."""

    name: str
    current: float
    low: float
    high: float
    trust: float = 1.5
    """Largest factor of one probe, up or down."""

    def value(self, z: float) -> float:
        """The value at relative step `z`, inside trust region and clamps, whole where the tunable is."""
        reach = log(self.trust)
        wanted = self.current * exp(min(max(z, -reach), reach))
        value = min(max(wanted, self.low), self.high)
        return float(round(value)) if TUNABLES[self.name].whole else value

    def step(self, value: float) -> float:
        """The relative step to a value."""
        return log(value / self.current)

    def violation(self, z: float) -> float:
        """How far the wanted value lies beyond the clamps, as a relative step; 0 or less is inside (Optuna's convention)."""
        wanted = self.current * exp(z)
        return max(log(self.low / wanted) if self.low > 0 else -1.0, log(wanted / self.high))

    def worth(self, z: float) -> bool:
        """Whether the step, once inside the clamps, is large enough to be measured."""
        value = self.value(z)
        return value > 0 and abs(self.step(value)) >= max(LEAST_STEP, LEAST_SHARE * log(self.trust)) - 1e-9


def directions(axis: Axis, unstable: bool) -> tuple[float, ...]:
    """The first steps to try: to both edges of the trust region, and after instability downwards alone."""
    reach = log(axis.trust)
    steps = (-reach,) if unstable else (reach, -reach)
    return tuple(z for z in steps if axis.worth(z))


def axes(
    in_force: Mapping[str, float], clamps: Mapping[str, tuple[float, float]], wanted: Mapping[str, float]
) -> dict[str, Axis]:
    """The axes that can be probed. `wanted`: tunable -> trust factor; one that is not in force or stands at 0 has no axis."""
    return {
        name: Axis(name, in_force[name], *clamps[name], trust=trust)
        for name, trust in wanted.items()
        if name in clamps and in_force.get(name, 0.0) > 0
    }
