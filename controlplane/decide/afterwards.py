"""What comes after an action: its verdict, taking back what did not help, and the way back to the values before. Pure."""

from math import isfinite, isnan

from controlplane.decide.action import put, too_soon, within
from controlplane.decide.decision import Decision, Kind, Purpose
from controlplane.decide.situation import Situation
from controlplane.decide.standing import Watch
from controlplane.policy.models import TUNING, Autonomy, Family, Rule


def verdict(now: Situation) -> Decision | None:
    """What the watched action was worth, once enough steps have passed. None while it is too early, or nothing is watched.

    It helped if the pass rate is where the forecast before the trouble expected it (where it was, without a forecast), and
    the alarm that it answered is over or at least weaker.
    """
    watch, judgement = now.standing.watch, now.judgement
    if watch is None or now.standing.progress < watch.due_progress:
        return None
    since = watch.from_progress + now.policy.verdict.grace_steps
    recent = judgement.pass_rate_since(since)
    if recent is None:
        return None
    value, margin = recent
    expected = watch.reference
    if watch.onset is not None and not isnan(expected):
        middle = now.step - (now.standing.progress - since) / 2  # the readings lie around here
        expected = min(max(expected + watch.gain_per_step * (middle - watch.onset), 0.0), 1.0)
    kept = isnan(expected) or value >= expected - margin
    stands = _still_stands(watch, now)
    helped = kept and not stands
    level = f"pass rate {value:.2f}"
    if not isnan(expected):
        source = "forecast from before the trouble" if watch.gain_per_step else "before the trouble"
        level += f" against {expected:.2f} {source}"
    what = {Purpose.recover: "the way back", Purpose.adopt: "the adoption"}.get(watch.purpose, "the action")
    reason = f"{what} of {watch.rule} {'helped' if helped else 'did not help'}: {level}{stands}"
    if watch.purpose is Purpose.recover and helped:
        reason = f"{what} of {watch.rule} did no harm: {level}"
    evidence = {"pass_rate": value, "reference": expected, "margin": margin}
    return now.say(
        Kind.verdict,
        reason,
        watch.rule,
        helped=helped,
        evidence={name: number for name, number in evidence.items() if isfinite(number)},
        decision_id=watch.decision_id,
        purpose=watch.purpose,
    )


def _still_stands(watch: Watch, now: Situation) -> str:
    """The alarm that the action answered, if it is as strong as it was; empty if not."""
    rule = next((r for r in now.policy.rules if r.name == watch.rule), None)
    if rule is None or watch.purpose is not Purpose.answer:
        return ""
    for name in rule.when.all:
        finding, then = now.finding(name), watch.statistics.get(name)
        if not now.breached(name) or then is None:
            continue
        if abs(finding.statistic - finding.threshold) >= abs(then - finding.threshold):
            return f", and {name} stands as before ({finding.detail})"
    return ""


def take_back(now: Situation) -> Decision | None:
    """Put a change that did not help back to the values before it."""
    watch = now.standing.revert
    if watch is None or not now.policy.verdict.revert:
        return None
    tunables = now.observed.tunables
    ours = {
        n: watch.before[n]
        for n, v in watch.after.items()
        if n in watch.before and n in tunables and tunables[n].value == v
    }
    rises = any(value > tunables[n].value for n, value in ours.items())
    if rises and any(r.then.families and r.name != watch.rule and now.holds(r) for r in now.policy.rules):
        return None  # nothing is raised while something else is wrong; it waits
    if not ours:
        reason = f"the change of {watch.rule} did not help, but its values are no longer in force"
        return now.say(Kind.hold, reason, watch.rule, purpose=Purpose.revert)
    if _may(watch.rule, now) is not Autonomy.act:
        reason = f"the change of {watch.rule} did not help; the policy no longer lets the controller take it back"
        return now.say(Kind.hold, reason, watch.rule, purpose=Purpose.revert)
    return put(ours, f"takes back what {watch.rule} changed, for it did not help", watch.rule, Purpose.revert, now)


def way_back(now: Situation) -> Decision | None:
    """One step of a changed tunable towards the value before, after enough quiet steps."""
    if now.standing.watch is not None or now.standing.waiting is not None:
        return None  # one thing at a time: what is being judged must not be mixed with a second change
    for name, changed in now.standing.changed.items():
        rule = next((r for r in now.policy.rules if r.name == changed.rule), None)
        state = now.observed.tunables.get(name)
        if rule is None or rule.recover is None or state is None or name not in now.policy.clamps:
            continue
        up = changed.home > state.value
        step = rule.recover.step if up else 1 / rule.recover.step
        wanted = min(state.value * step, changed.home) if up else max(state.value * step, changed.home)
        value = within(name, wanted, now)
        if value == state.value or _may(rule.name, now) is not Autonomy.act or rule.dry_run:
            continue
        if _quiet(rule, now) < rule.recover.after_quiet_steps or too_soon(name, not up, now) > 0:
            continue
        reason = f"{_quiet(rule, now)} quiet steps after {rule.name}; back towards {changed.home:g}"
        return put({name: value}, reason, rule.name, Purpose.recover, now)
    return None


def _quiet(rule: Rule, now: Situation) -> int:
    """Steps since the last alarm of a rule, the last action of any rule and the last step back."""
    last = now.standing.last_change or 0
    since = [now.judgement.since_breach[n] for n in rule.when.all if n in now.judgement.since_breach]
    moved = [
        at for name in (*rule.then.scale, *rule.then.set) for at in now.standing.moved.get(name, ()) if at is not None
    ]
    return min([now.standing.progress - max([last, *moved]), *since])


def _may(name: str, now: Situation) -> Autonomy:
    if name == TUNING:
        return now.policy.allows(frozenset({Family.probe}))
    rule = next((r for r in now.policy.rules if r.name == name), None)
    return now.policy.allows(rule.then.families) if rule else Autonomy.observe
