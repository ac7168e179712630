"""From a rule that holds to a change of the run: limits, capability, target, clamps and pace, autonomy, approval. Pure.

Each thing in the way gives its reason. A value that leaves here is inside clamps and pace; the agent checks again.
"""

from dataclasses import dataclass
from math import isfinite

from controlplane.contract.documents import Action, CheckpointState, Health, Lease, Observed, Setting, Target
from controlplane.contract.tunables import TUNABLES
from controlplane.decide.decision import Change, Decision, Kind, Purpose, decision_id
from controlplane.decide.situation import Situation
from controlplane.policy.models import LEARNING_RATE, Autonomy, Policy, Rule

EXPIRES_AFTER_STEPS = 25
"""Steps after which an unread directive is void: older evidence is no reason to change a run."""


@dataclass(frozen=True)
class Obstacle:
    """Why a change cannot be. `unable`: the trainer cannot do such a thing at all, so a person is advised instead."""

    reason: str
    unable: bool = False
    patience: bool = False
    """It goes away by waiting, so nobody has to be told."""


def act_on(rule: Rule, now: Situation) -> Decision:
    """A rule holds that would change the run."""
    policy, standing = now.policy, now.standing
    why, told = now.why(rule), rule.name in standing.said
    onset = now.onset(rule)
    change, lease, obstacle = _change(rule, onset, now)
    obstacle = _limits(rule, now) or obstacle
    before = {name: now.observed.tunables[name].value for name in change.set} if change else {}
    more = {"change": change, "onset": onset, "evidence": now.statistics, "before": before, "lease": lease}
    if obstacle is not None:
        kind = Kind.hold if told or obstacle.patience else Kind.advise if obstacle.unable else Kind.page
        return now.say(kind, f"{rule.name} holds ({why}), but {obstacle.reason}", rule)
    assert change is not None
    autonomy = Autonomy.observe if rule.dry_run else policy.allows(rule.then.families)
    if autonomy is not Autonomy.act:
        if told:
            return now.say(Kind.hold, f"{rule.name} still holds, told at step {standing.said[rule.name]}", rule)
        kind = Kind.advise if autonomy is Autonomy.advise else Kind.observe
        dry = " (dry run)" if rule.dry_run else ""
        return now.say(kind, f"would {change.sentence()}{dry}: {why}", rule, **more)
    if rule.then.families & set(policy.approval.required_for):
        wait = policy.approval.expires_steps
        reason = f"waits {wait} steps for approval to {change.sentence()}: {why}"
        return now.say(Kind.waiting, reason, rule, **more, decision_id=_id(rule.name, now))
    return now.say(Kind.act, f"{change.sentence()}: {why}", rule, **more, **address(rule.name, now))


def approved(waiting: Decision, by: str, now: Situation) -> Decision:
    """The waiting decision as an action, if it can still be done."""
    assert waiting.change is not None
    target, tunables = waiting.change.target, now.observed.tunables
    for name, value in waiting.before.items():
        if name not in tunables or tunables[name].value != value:
            reason = f"{waiting.rule}: {by}, but {name} was changed since it was proposed"
            return now.say(Kind.dropped, reason, waiting.rule, decision_id=waiting.decision_id)
    if target is not None and not any(
        c.step == target.step and c.digest == target.digest and c.health is Health.good
        for c in now.observed.checkpoints
    ):
        reason = f"{waiting.rule}: {by}, but the checkpoint of step {target.step} is no longer there or good"
        return now.say(Kind.page, reason, waiting.rule, decision_id=waiting.decision_id)
    lease = waiting.lease
    if lease is not None and target is None:  # it lasts as long as it was meant to, from now on
        lease = lease.model_copy(update={"until_step": lease.until_step + now.step - (waiting.step or now.step)})
    return waiting.model_copy(
        update={
            "kind": Kind.act,
            "lease": lease,
            "reason": f"{waiting.change.sentence()}: {by}, for what was found at step {waiting.step}",
            "step": now.step,
            "approved_by": by,
            **address(waiting.rule or "", now),
            "decision_id": waiting.decision_id,
        }
    )


def put(values: dict[str, float], reason: str, rule: str, purpose: Purpose, now: Situation) -> Decision:
    """An action that only sets values: a revert, or a step of recovery."""
    change = Change(set={name: Setting(value=value) for name, value in values.items()})
    before = {name: now.observed.tunables[name].value for name in values}
    return now.say(
        Kind.act,
        f"{change.sentence()}: {reason}",
        rule,
        purpose=purpose,
        change=change,
        before=before,
        evidence=now.statistics,
        onset=now.step,
        **address(f"{rule}/{purpose.value}", now),
    )


def address(key: str, now: Situation) -> dict[str, int | str]:
    """What makes a decision a document: generations, expiry, id."""
    return {
        "generation": _generation(now),
        "base_generation": now.observed.applied_generation,
        "expires_at_step": now.observed.step + EXPIRES_AFTER_STEPS,
        "decision_id": _id(key, now),
    }


def newest_good(checkpoints: tuple[CheckpointState, ...], latest: int) -> CheckpointState | None:
    """The newest checkpoint that later health proved good, not after step `latest`."""
    good = [c for c in checkpoints if c.health is Health.good and c.step <= latest]
    return max(good, key=lambda c: (c.branch, c.step), default=None)


def unsupported(policy: Policy, observed: Observed) -> tuple[str, ...]:
    """What a policy would do and this trainer cannot: one sentence each. Such rules advise a person instead."""
    found = []
    for rule in policy.rules:
        if rule.then.rollback and Action.rollback not in observed.actions:
            found.append(f"{rule.name}: this trainer cannot roll back")
        for name in (*rule.then.scale, *rule.then.set):
            if (problem := _incapable(name, observed)) is not None:
                found.append(f"{rule.name}: {problem.reason}")
    return tuple(found)


def _generation(now: Situation) -> int:
    return max(now.standing.generation, now.observed.applied_generation) + 1


def _id(key: str, now: Situation) -> str:
    return decision_id(now.observed.run_uid, _generation(now), key, now.judgement.branch, now.step)


def _limits(rule: Rule, now: Situation) -> Obstacle | None:
    """Cooldown, budgets and earlier failures of a rule."""
    standing, limits, budget = now.standing, rule.limits, now.policy.budget
    times = standing.acted.get(rule.name, ())
    asked = standing.dropped.get(rule.name)
    last = max((*times[-1:], *(() if asked is None else (asked,))), default=None)
    if last is not None and (left := limits.cooldown_steps - (standing.progress - last)) > 0:
        return Obstacle(f"cools down for {left} more steps", patience=True)
    watch = standing.watch
    if watch is not None and not rule.then.rollback and (watch.rule == rule.name or rule.priority != "safety"):
        left = max(watch.due_progress - standing.progress, 1)
        return Obstacle(f"the action of {watch.rule} is judged first, in {left} steps", patience=True)
    if rule.name in standing.failed:
        return Obstacle("its last action did not help; a person has to look")
    if len(times) >= limits.max_per_run:
        return Obstacle(f"it has already acted {len(times)} times in this run; a person has to look")
    if rule.then.rollback and len(standing.rollbacks) >= budget.max_rollbacks:
        return Obstacle(f"all {budget.max_rollbacks} rollbacks of the budget are used up; a person has to look")
    if standing.actions >= budget.max_actions:
        return Obstacle(f"all {budget.max_actions} actions of the budget are used up; a person has to look")
    return None


def _change(rule: Rule, onset: int, now: Situation) -> tuple[Change | None, Lease | None, Obstacle | None]:
    target = None
    if rule.then.rollback:
        if Action.rollback not in now.observed.actions:
            return None, None, Obstacle("this trainer cannot roll back", unable=True)
        if now.observed.rollbacks_left <= 0:
            return None, None, Obstacle("the trainer's own guard rails allow no further rollback")
        latest = onset - rule.then.rollback.before_onset_steps
        checkpoint = newest_good(now.observed.checkpoints, latest)
        if checkpoint is None:
            return None, None, Obstacle(f"no checkpoint up to step {latest} has been proved good")
        target = Target(step=checkpoint.step, digest=checkpoint.digest)
    settings: dict[str, Setting] = {}
    held: Obstacle | None = None
    for name in (*rule.then.scale, *rule.then.set):
        value, obstacle = _value(name, rule, now)
        if obstacle is not None and not obstacle.patience:
            return None, None, obstacle
        held = obstacle or held
        if value is not None:
            settings[name] = Setting(value=value)
    if not settings:
        names = ", ".join((*rule.then.scale, *rule.then.set))
        stuck = Obstacle(f"{names} cannot be changed further inside its clamps, so the run would meet the same end")
        return None, None, held or stuck
    change = Change(action=Action.rollback if target else Action.none, target=target, set=settings)
    return change, _lease(rule, change, now), None


def _lease(rule: Rule, change: Change, now: Situation) -> Lease | None:
    if rule.then.for_steps is None:
        return None
    start = change.target.step if change.target else now.observed.step
    revert_to = {name: now.observed.tunables[name].value for name in change.set}
    return Lease(until_step=start + rule.then.for_steps, revert_to=revert_to)


def _incapable(name: str, observed: Observed) -> Obstacle | None:
    current = observed.tunables.get(name)
    if current is None:
        return Obstacle(f"this trainer has no tunable {name}", unable=True)
    if current.capability != "runtime":
        return Obstacle(f"this trainer cannot change {name} while it runs", unable=True)
    return None


def _value(name: str, rule: Rule, now: Situation) -> tuple[float | None, Obstacle | None]:
    """The new value of a tunable; None where it stays as it is."""
    if (problem := _incapable(name, now.observed)) is not None:
        return None, problem
    current = now.observed.tunables[name].value
    wanted = current * rule.then.scale[name] if name in rule.then.scale else rule.then.set[name]
    value = within(name, wanted, now)
    if value == current:
        return None, None
    left = 0 if rule.then.rollback else too_soon(name, value < current, now)
    if left > 0:
        return None, Obstacle(f"{name} was changed lately and may move again in {left} steps", patience=True)
    return value, None


def within(name: str, wanted: float, now: Situation) -> float:
    """The value nearest to `wanted` inside pace, clamps and the trainer's own bounds; rounded where the tunable is whole."""
    state, clamp = now.observed.tunables[name], now.policy.clamps[name]
    current = state.value
    value = wanted
    if current > 0 and clamp.decrease and value < current:
        value = max(value, current * clamp.decrease.max_step)
    if current > 0 and clamp.increase and value > current:
        value = min(value, current * clamp.increase.max_step)
    if name == "lr_scale" and (rate := now.policy.clamps.get(LEARNING_RATE)) is not None:
        real = now.snapshot.metrics.get("rl_trainer_learning_rate", 0.0)
        if isfinite(real) and real > 0:
            # While warm-up is below the range nothing may lower the rate further, and the other way round.
            value = min(max(value, min(current, current * rate.min / real)), max(current, current * rate.max / real))
    low, high = max(clamp.min, state.min), min(clamp.max, state.max)
    if not low <= current <= high:
        low, high = min(low, current), max(high, current)  # a value set by a person outside is not pulled in by force
    value = min(max(value, low), high)
    return float(round(value)) if TUNABLES[name].whole else value


def too_soon(name: str, down: bool, now: Situation) -> int:
    """Steps until a tunable may move again in this direction; an increase also waits for the last decrease."""
    clamp, (fell, rose) = now.policy.clamps[name], now.standing.moved.get(name, (None, None))
    pace = clamp.decrease if down else clamp.increase
    times = [at for at in ((fell,) if down else (fell, rose)) if at is not None]
    return pace.min_gap_steps - (now.standing.progress - max(times)) if pace and times else 0
