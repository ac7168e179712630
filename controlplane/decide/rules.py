"""The decision itself, as one pure function: gates in a fixed order, the first that has something to say decides.

    ended? -> a person's order? -> stale? -> branch? -> answer awaited? -> refused? -> verdict due? -> take back?
    -> approved, denied, late? -> which rules hold, the safest first -> way back -> nothing

Each gate that stops an action gives its reason; so does "nothing". Of rules that hold together the safer priority goes first,
then rollback, decrease, increase, and telling people; of two alike the one that changes more carefully.
"""

from collections.abc import Callable
from math import isfinite, nan

from controlplane.contract.documents import Action, Phase
from controlplane.decide.action import act_on, address, approved
from controlplane.decide.afterwards import take_back, verdict, way_back
from controlplane.decide.decision import Change, Decision, Kind, Purpose
from controlplane.decide.judgement import Judgement
from controlplane.decide.situation import Situation
from controlplane.decide.standing import Standing
from controlplane.decide.tuning import tuning
from controlplane.detect import Outcome
from controlplane.policy.models import Policy, Rule
from controlplane.snapshot import Snapshot

STALE = "stale"
EPISODE_ENDS_AFTER = 25
"""Steps of silence after which the same trouble is told again."""
_PRIORITY = ("safety", "efficiency", "tuning")
_CHANGES = (Kind.act, Kind.waiting)


def decide(policy: Policy, snapshot: Snapshot, judgement: Judgement, standing: Standing) -> Decision:
    """What to do about this look at the run. Pure and total: it always returns a decision with a reason."""
    now = Situation(policy, snapshot, judgement, standing)
    for gate in _GATES:
        if (decision := gate(now)) is not None:
            return decision
    return now.say(Kind.nothing, f"no rule holds; {_nearest(judgement)}")


def episodes(policy: Policy, judgement: Judgement) -> frozenset[str]:
    """Rules whose trouble is still there or was a moment ago, and `stale` while the data are too old.

    An episode lasts until all keys in `all` have been silent for a while: alarms flicker around a threshold, and a person
    is told once.
    """
    never = EPISODE_ENDS_AFTER + 1
    flicker = [
        name for name, config in policy.detectors.items() if config.kind != "stall"
    ]  # a step ends a stall for good
    lately = {name for name in flicker if judgement.since_breach.get(name, never) <= EPISODE_ENDS_AFTER}
    breached = {name for name, finding in judgement.findings.items() if finding.outcome is Outcome.breach}
    names = {rule.name for rule in policy.rules if not (lately | breached).isdisjoint(rule.when.all)}
    return frozenset(names | {STALE} if judgement.stale else names)


def _ended(now: Situation) -> Decision | None:
    observed = now.snapshot.observed
    if observed is None or observed.phase is not Phase.stopped:
        return None
    return now.say(Kind.nothing, f"the trainer has stopped at step {observed.step} of {observed.planned_steps}")


def _ordered(now: Situation) -> Decision | None:
    """A person's order is carried out past every rule, one at a time, and never twice."""
    if now.snapshot.observed is None or now.standing.pending is not None:
        return None
    orders = (o for o in now.snapshot.orders if o.action != "probe")  # what to probe, the tuner says
    order = next((o for o in orders if o.order_id not in now.standing.orders), None)
    if order is None:
        return None
    action = Action(order.action)
    words = f"{order.by} asks to {action.value}" + (f": {order.reason}" if order.reason else "")
    if action not in now.observed.actions:
        reason = f"{words}; this trainer cannot"
        return now.say(Kind.dropped, reason, purpose=Purpose.order, decision_id=order.order_id)
    decision = now.say(Kind.act, words, purpose=Purpose.order, change=Change(action=action), approved_by=order.by)
    return decision.model_copy(update={**address(order.order_id, now), "decision_id": order.order_id})


def _stale(now: Situation) -> Decision | None:
    judgement, freshness = now.judgement, now.policy.freshness
    if judgement.stale:
        seen = now.snapshot
        there = seen.observed is not None and seen.sampled_at is not None
        unread = not there or not isfinite(seen.metrics.get("rl_trainer_global_step", nan))
        brief = unread and judgement.blind_seconds <= freshness.max_age_seconds  # no reason to wake anybody yet
        if STALE in now.standing.said or brief or freshness.on_stale == "hold":
            return now.say(Kind.hold, judgement.stale)
        return now.say(Kind.page, judgement.stale, STALE).model_copy(update={"step": now.step})
    if judgement.step is None:
        return now.say(Kind.hold, "no step has been seen yet")
    return None


def _between_branches(now: Situation) -> Decision | None:
    branch, watch = now.judgement.branch, now.standing.watch
    if watch is not None and watch.left_branch == branch:
        return now.say(Kind.hold, "the rollback is confirmed; waiting for the first step of the new branch")
    if now.observed.branch != branch:
        reason = f"the trainer is on branch {now.observed.branch}, its metrics still on branch {branch}"
        return now.say(Kind.hold, reason)
    return None


def _unanswered(now: Situation) -> Decision | None:
    pending, refusal = now.standing.pending, now.standing.refusal
    if pending is not None and pending.change is not None:
        return now.say(Kind.hold, f"waiting for the trainer to confirm: {pending.change.sentence()}")
    if refusal is not None:
        reason = f"the trainer did not carry out the last action ({refusal.state}): {refusal.reason}"
        return now.say(Kind.page, reason, decision_id=refusal.decision_id)
    return None


def _approval(now: Situation) -> Decision | None:
    """What became of the decision that waits for a person; None while it still waits, or nothing does."""
    waiting = now.standing.waiting
    if waiting is None or waiting.change is None:
        return None

    def drop(kind: Kind, reason: str) -> Decision:
        words = f"{waiting.rule}: {reason}"
        return now.say(kind, words, waiting.rule, change=waiting.change, decision_id=waiting.decision_id)

    if waiting.rule not in {rule.name for rule in now.policy.rules}:
        reason = f"the policy no longer has the rule {waiting.rule}, whose action waited for approval"
        return now.say(Kind.dropped, reason, change=waiting.change, decision_id=waiting.decision_id)
    if waiting.branch != now.judgement.branch:
        return drop(Kind.dropped, "the run has gone to another branch since it was proposed")
    answers = [a for a in now.snapshot.approvals if a.decision_id == waiting.decision_id]
    for answer in answers:
        if answer.answer == "deny":  # of two people who disagree the more careful one is heard
            return drop(Kind.dropped, f"denied by {answer.by}" + (f": {answer.reason}" if answer.reason else ""))
    if answers:
        return approved(waiting, f"approved by {answers[0].by}", now)
    if now.standing.progress <= now.standing.waiting_until:
        return None
    late = f"nobody answered within {now.policy.approval.expires_steps} steps"
    match now.policy.approval.on_timeout:
        case "act":
            return approved(waiting, late, now)
        case "page":
            return drop(Kind.page, f"{late}; it was to {waiting.change.sentence()}")
    return drop(Kind.dropped, late)


def _rules(now: Situation) -> Decision | None:
    """The safest rule that holds and has something to do; the others are named with why they were passed over."""
    holding = sorted((rule for rule in now.policy.rules if now.holds(rule)), key=_rank)
    if not holding:
        return None
    considered = [(rule, _consider(rule, holding[:index], now)) for index, rule in enumerate(holding)]
    chosen = next((pair for pair in considered if pair[1].kind is not Kind.hold), considered[0])
    if chosen[1].kind is Kind.hold and not any(rule.then.families for rule in holding) and (back := way_back(now)):
        return back  # what people were told of already does not keep the run from its way back
    also = tuple(f"{rule.name}: {decision.reason}" for rule, decision in considered if rule is not chosen[0])
    return chosen[1].model_copy(update={"also": also})


def _consider(rule: Rule, safer: list[Rule], now: Situation) -> Decision:
    standing, then = now.standing, rule.then
    why = now.why(rule)
    if not then.families:
        if rule.name in standing.said:
            return now.say(Kind.hold, f"{rule.name} still holds, told at step {standing.said[rule.name]}", rule)
        if then.page and not rule.dry_run:
            return now.say(Kind.page, f"{rule.name}: {why}", rule)
        words = f"{then.advise} ({why})" if then.advise else f"would call a person: {why}"
        return now.say(Kind.observe if rule.dry_run else Kind.advise, f"{rule.name}: {words}", rule)
    if now.step < now.policy.observe_until_step:  # people may be told at any time; the run is not touched yet
        until = f"the policy only observes until step {now.policy.observe_until_step}"
        return now.say(Kind.hold, f"{rule.name} holds ({why}), but {until}", rule)
    waiting = standing.waiting
    if waiting is not None and waiting.rule == rule.name:
        left = standing.waiting_until - standing.progress
        return now.say(Kind.hold, f"{rule.name} waits {left} more steps for approval", rule)
    decision = act_on(rule, now)
    if decision.kind not in _CHANGES or decision.change is None:
        return decision
    if waiting is not None and _rank(rule) >= _rank(_named(waiting.rule, now)):
        return now.say(Kind.hold, f"{rule.name} holds ({why}), but {waiting.rule} waits for approval", rule)
    blockers = [other.name for other in safer if other.then.families]
    rises = any((s.value or 0) > decision.before.get(n, 0) for n, s in decision.change.set.items())
    if blockers and rises and decision.change.target is None:
        return now.say(Kind.hold, f"{rule.name} holds ({why}), but nothing is raised while {blockers[0]} holds", rule)
    return decision


def _half_way(now: Situation) -> Decision | None:
    """A rule with its first key and without a second: a near miss that belongs into the log."""
    for rule in now.policy.rules:
        if rule.when.any and now.first_key(rule):
            keys = "; ".join(f"{name}: {now.finding(name).detail}" for name in rule.when.all)
            reason = f"{rule.name} lacks its second key ({keys}); none of {', '.join(rule.when.any)} was in alarm"
            return now.say(Kind.hold, f"{reason} within {rule.when.within_steps} steps", rule)
    return None


_GATES: tuple[Callable[[Situation], Decision | None], ...] = (
    _ended,
    _ordered,
    _stale,
    _between_branches,
    _unanswered,
    verdict,
    take_back,
    _approval,
    _rules,
    _half_way,
    way_back,
    tuning,
)


def _rank(rule: Rule) -> tuple[int, int, float]:
    then = rule.then
    if then.rollback:
        kind = 0
    elif any(factor < 1 for factor in then.scale.values()):
        kind = 1
    else:
        kind = 2 if then.scale or then.set else 3
    return (
        len(_PRIORITY) if kind == 3 else _PRIORITY.index(rule.priority),
        kind,
        min(then.scale.values(), default=1.0),
    )


def _named(name: str | None, now: Situation) -> Rule:
    return next(rule for rule in now.policy.rules if rule.name == name)


def _nearest(judgement: Judgement) -> str:
    """The detector closest to its limit, so that a near miss can be seen in the log."""
    shares = {
        name: abs(f.statistic / f.threshold)
        for name, f in judgement.findings.items()
        if f.outcome is Outcome.ok and f.threshold and isfinite(f.statistic)
    }
    if not shares:
        return "the detectors are still learning what is usual"
    name = max(sorted(shares), key=lambda key: shares[key])  # sorted: ties must not depend on the order of a file
    finding = judgement.findings[name]
    return f"closest is {name} at {finding.statistic:.2g} of {finding.threshold:.2g}"
