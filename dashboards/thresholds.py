"""What the policy says, as limits to draw. The numbers are those of the alert rules, so a line and its alert agree."""

from dataclasses import dataclass

from controlplane.alerts.limits import SIDES, limits
from controlplane.policy import Policy
from controlplane.policy.detectors import Threshold
from dashboards.panel import Limit


@dataclass(frozen=True)
class Limits:
    """The limits of one policy."""

    policy: Policy

    def of(self, signal: str) -> Limit | None:
        """The limit on the signal itself; None where the policy judges it by what is usual for the run, or not at all."""
        if signal in SIDES:
            return Limit(getattr(limits(self.policy), signal), above=SIDES[signal] == "above")
        for detector in self.policy.detectors.values():
            if isinstance(detector, Threshold) and detector.signal == signal:
                value = detector.above if detector.above is not None else detector.below
                assert value is not None
                return Limit(value, above=detector.above is not None)
        return None

    @property
    def freshness(self) -> Limit:
        """Age in seconds past which the controller does not act on a sample."""
        return Limit(self.policy.freshness.max_age_seconds)
