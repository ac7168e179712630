"""The numbers of the alert rules, taken from a policy: one number, one home.

An alert that mirrors a detector of the policy has the detector's threshold. What no detector of the policy names has the
number here. Rules show literal numbers, so that a person reads them and a test can hold them; a policy that changed since
shows in `rl_policy_threshold`.
"""

from dataclasses import dataclass

from controlplane.policy import Policy
from controlplane.policy.detectors import Stall, Threshold


@dataclass(frozen=True)
class Limits:
    """Thresholds, in the unit of their signal, with the number that holds where the policy names none."""

    pass_rate: float = 0.60
    """The users' own rule (a warning). A healthy 8B run lives between .40 and .61, hence the warm-up in the alert."""
    gen_length: float = 15_000
    truncation: float = 0.10
    utilization: float = 0.70
    zero_variance: float = 0.80
    mismatch_kl: float = 0.05
    entropy: float = 0.05
    checkpoint_age: float = 7200.0
    """Two save intervals of a large run."""
    stall_times: float = 10.0
    stall_seconds: float = 600.0
    blind_seconds: float = 60.0
    policy: str = ""


SIDES = {
    "pass_rate": "below",
    "gen_length": "above",
    "truncation": "above",
    "utilization": "below",
    "zero_variance": "above",
    "mismatch_kl": "above",
    "entropy": "below",
    "checkpoint_age": "above",
}


def limits(policy: Policy) -> Limits:
    """The numbers of a policy. Of several detectors of one signal the most sensitive counts: people hear first."""
    found: dict[str, float] = {}
    for signal, side in SIDES.items():
        numbers = [
            number
            for detector in policy.detectors.values()
            if isinstance(detector, Threshold) and detector.signal == signal
            if (number := getattr(detector, side)) is not None
        ]
        if numbers:
            found[signal] = min(numbers) if side == "above" else max(numbers)
    stalls = [detector for detector in policy.detectors.values() if isinstance(detector, Stall)]
    if stalls:
        found["stall_times"] = min(stall.times for stall in stalls)
        found["stall_seconds"] = min(stall.seconds for stall in stalls)
    found["blind_seconds"] = policy.freshness.max_age_seconds
    return Limits(**found, policy=policy.name)
