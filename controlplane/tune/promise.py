"""What a probe can find and what it gives up, said before it begins. Pure."""

from collections.abc import Sequence

from controlplane.contract.documents import Design, Observed
from controlplane.policy.tuning import Tuning
from controlplane.snapshot import Snapshot
from controlplane.tune.evidence import Noise
from controlplane.tune.planner import detectable, information
from controlplane.tune.switchback import Turns, segments
from controlplane.tune.switchback import information as of_turns

POWER = 0.8


def promise(tuning: Tuning, snapshot: Snapshot, observed: Observed, arms: int) -> str:
    """For people: the advantage that is found with probability `POWER`, and the price."""
    rate = snapshot.metrics.get("rl_rollout_pass_ratio", 0.5)
    samples = sum(v for k, v in snapshot.metrics.items() if k.startswith("rl_rollout_samples_total"))
    steps = snapshot.metrics.get("rl_trainer_steps_total", 0.0)
    if not steps or not samples:
        return f"{tuning.steps} steps per arm"
    spread, n = max(rate * (1 - rate), 0.02), samples / steps
    if tuning.design == Design.switchback:  # prompts are not shared; at worst, their completions are all alike
        prompts = observed.tunables["prompts_per_step"].value if "prompts_per_step" in observed.tunables else n
        known = of_turns(turns_of(tuning, segments("", "arm")), noise_of(tuning))
        step_sd = (spread / prompts) ** 0.5
    else:
        known, step_sd = information(tuning.steps, noise_of(tuning)), (2 * spread / n) ** 0.5
    effect = detectable(known, step_sd, arms, tuning.confidence, POWER)
    return f"{tuning.steps} steps per arm find an advantage of {effect:.3f} with probability {POWER}, {price(tuning, arms)}"


def price(tuning: Tuning, arms: int) -> str:
    """What a probe gives up at most, whatever comes out."""
    match Design(tuning.design):
        case Design.inline:
            return f"and the run waits for up to {arms * tuning.steps} steps"
        case Design.spare:
            return f"for up to {(arms + 1) * tuning.steps} steps of spare capacity"
        case Design.switchback:
            return f"and {tuning.steps} steps of the run are taken with the other value"


def noise_of(tuning: Tuning) -> Noise:
    """How far equally good trainings wander apart, as the policy declares."""
    return Noise(tuning.noise.persistence, tuning.noise.wandering)


def turns_of(tuning: Tuning, order: Sequence[str]) -> Turns:
    """The segments of a switchback."""
    return Turns(tuple(order), tuning.steps * 2 // len(order), tuning.washout)
