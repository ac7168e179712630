"""What the tuner wishes for, as a decision: after every rule, and only as far as the policy lets it. Pure."""

from controlplane.contract.documents import Action, Probe
from controlplane.decide.action import address
from controlplane.decide.decision import Change, Decision, Kind, Purpose
from controlplane.decide.situation import Situation
from controlplane.policy.models import TUNING, Autonomy, Family


def tuning(now: Situation) -> Decision | None:
    """A probe begins, is ruled on, or what it proved is adopted; None where nothing is wished for."""
    wish, tuning_ = now.snapshot.wish, now.policy.tuning
    if wish is None or tuning_ is None:
        return None
    begins = isinstance(wish.probe, Probe)
    may = now.policy.allows(frozenset({Family.probe}))
    if Action.probe not in now.observed.actions:
        return now.say(Kind.hold, "this trainer runs no probes", TUNING)
    if begins and now.step < now.policy.observe_until_step:
        return now.say(Kind.hold, f"no probe before step {now.policy.observe_until_step}", TUNING)
    if begins and may is not Autonomy.act and not wish.asked_by:
        return now.say(Kind.hold, f"{wish.reason}, but autonomy lets nobody but a person begin a probe", TUNING)
    if begins and Family.probe in now.policy.approval.required_for and not wish.asked_by:
        return now.say(Kind.hold, f"{wish.reason}, but a person has to ask for it: scalerl probe", TUNING)
    for name, setting in wish.set.items():
        clamp, value = now.policy.clamps.get(name), setting.value
        if clamp is None or value is None or not clamp.min <= value <= clamp.max:
            return now.say(Kind.hold, f"{name} is wished for outside its clamp", TUNING)
    change = Change(action=Action.probe if wish.probe else Action.none, probe=wish.probe, set=wish.set)
    purpose = Purpose.adopt if wish.set else Purpose.probe
    addressed = address(f"{TUNING}/{wish.wish_id}", now)
    if wish.order_id:
        addressed["decision_id"] = wish.order_id
    return now.say(
        Kind.act,
        f"{change.sentence()}: {wish.reason}",
        TUNING,
        purpose=purpose,
        change=change,
        before={name: now.observed.tunables[name].value for name in wish.set},
        evidence=wish.evidence,
        onset=now.step,  # an adoption is held against what the run would have done from here on
        forked_from=wish.from_step if purpose is Purpose.adopt else None,
        approved_by=wish.asked_by,
        **addressed,
    )
