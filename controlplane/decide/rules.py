"""The decision itself, as one pure function.

    stale? -> ended? -> pending? -> verdict due? -> which rules hold? -> warm-up, limits, cooldown, target, clamps -> autonomy

Each gate that stops an action gives its reason; so does "nothing". Priority among rules that hold: rollback, then
decrease, then increase, then page.
"""

from math import isfinite

from controlplane.contract.documents import Action, CheckpointState, Health, Observed, Phase, Setting, Target
from controlplane.decide.decision import Change, Decision, Kind, decision_id
from controlplane.decide.judgement import Judgement
from controlplane.decide.standing import Standing
from controlplane.detect import Finding, Outcome
from controlplane.policy.models import Autonomy, Policy, Rule
from controlplane.snapshot import Snapshot

STALE = "stale"
EXPIRES_AFTER_STEPS = 25
"""Steps after which an unread directive is void: older evidence is no reason to change a run."""


def decide(policy: Policy, snapshot: Snapshot, judgement: Judgement, standing: Standing) -> Decision:
    """What to do about this look at the run. Pure and total: it always returns a decision with a reason."""
    observed, step, branch = snapshot.observed, judgement.step, judgement.branch

    def say(kind: Kind, reason: str, rule: Rule | None = None, **more: object) -> Decision:
        name = rule.name if rule else None
        return Decision(kind=kind, reason=reason, step=step, branch=branch, rule=name, **more)  # type: ignore[arg-type]

    if observed is not None and observed.phase is Phase.stopped:
        return say(Kind.nothing, f"the trainer has stopped at step {observed.step} of {observed.planned_steps}")
    if judgement.stale:
        if STALE in standing.said or judgement.blind_seconds <= policy.freshness.max_age_seconds:
            return say(Kind.hold, judgement.stale)
        return Decision(kind=Kind.page, reason=judgement.stale, step=step or 0, branch=branch, rule=STALE)
    if step is None or observed is None:
        return say(Kind.hold, "no step has been seen yet")
    if standing.watch is not None and standing.watch.left_branch == branch:
        return say(Kind.hold, "the rollback is confirmed; waiting for the first step of the new branch")
    if observed.branch != branch:
        return say(Kind.hold, f"the trainer is on branch {observed.branch}, its metrics still on branch {branch}")
    if standing.pending is not None and standing.pending.change is not None:
        return say(Kind.hold, f"waiting for the trainer to confirm: {standing.pending.change.sentence()}")
    if (refusal := standing.refusal) is not None:
        reason = f"the trainer did not carry out the last action ({refusal.state}): {refusal.reason}"
        return Decision(kind=Kind.page, reason=reason, step=step, branch=branch, decision_id=refusal.decision_id)
    if (verdict := _verdict(policy, judgement, standing)) is not None:
        return verdict

    holding = [rule for rule in policy.rules if _holds(rule, judgement)]
    if not holding:
        return say(Kind.nothing, f"no rule holds; {_nearest(judgement)}")
    rule = min(holding, key=_priority)
    why = "; ".join(_evidence(name, judgement) for name in _keys(rule, judgement))
    if rule.name in standing.said and not rule.then.families:
        return say(Kind.hold, f"{rule.name} still holds, told at step {standing.said[rule.name]}", rule)
    if not rule.then.families:
        kind, text = (Kind.page, why) if rule.then.page else (Kind.advise, f"{rule.then.advise} ({why})")
        return say(kind, f"{rule.name}: {text}", rule)
    if step < policy.observe_until_step:  # people may be told of anything at any time; the run is not touched yet
        return say(
            Kind.hold,
            f"{rule.name} holds ({why}), but the policy only observes until step {policy.observe_until_step}",
            rule,
        )
    return _act(policy, rule, why, observed, judgement, standing)


def _act(
    policy: Policy, rule: Rule, why: str, observed: Observed, judgement: Judgement, standing: Standing
) -> Decision:
    """A rule holds that would change the run: limits, target and clamps, then as far as autonomy allows."""
    step, told = judgement.step, rule.name in standing.said
    assert step is not None

    def say(kind: Kind, reason: str, **more: object) -> Decision:
        return Decision(kind=kind, reason=reason, step=step, branch=judgement.branch, rule=rule.name, **more)  # type: ignore[arg-type]

    def stuck(reason: str) -> Decision:
        """The rule may not act and a person has to know; told once per episode."""
        return say(Kind.hold if told else Kind.page, f"{rule.name} holds ({why}), but {reason}")

    times = standing.acted.get(rule.name, ())
    if times and standing.progress - times[-1] < rule.limits.cooldown_steps:
        left = rule.limits.cooldown_steps - (standing.progress - times[-1])
        return say(Kind.hold, f"{rule.name} holds ({why}), but cools down for {left} more steps")
    if len(times) >= rule.limits.max_per_run:
        return stuck(f"it has already acted {len(times)} times in this run; a person has to look")
    onset = min((f.onset for f in _findings(rule, judgement) if f.onset is not None), default=step)
    target = None
    if rule.then.rollback:
        if Action.rollback not in observed.actions:
            return stuck("this trainer cannot roll back")
        if observed.rollbacks_left <= 0:
            return stuck("the trainer's own guard rails allow no further rollback")
        latest = onset - rule.then.rollback.before_onset_steps
        checkpoint = newest_good(observed.checkpoints, latest)
        if checkpoint is None:
            return stuck(f"no checkpoint up to step {latest} has been proved good")
        target = Target(step=checkpoint.step, digest=checkpoint.digest)
    settings, problem = _settings(policy, rule, observed)
    if problem:
        return stuck(problem)
    change = Change(action=Action.rollback if target else Action.none, target=target, set=settings)
    evidence = {name: f.statistic for name, f in judgement.findings.items() if isfinite(f.statistic)}
    autonomy = policy.allows(rule.then.families)
    if autonomy is not Autonomy.act:
        kind = Kind.advise if autonomy is Autonomy.advise else Kind.observe
        if told:
            return say(Kind.hold, f"{rule.name} still holds, told at step {standing.said[rule.name]}")
        return say(kind, f"would {change.sentence()}: {why}", change=change, onset=onset, evidence=evidence)
    generation = max(standing.generation, observed.applied_generation) + 1
    return say(
        Kind.act,
        f"{change.sentence()}: {why}",
        change=change,
        onset=onset,
        evidence=evidence,
        generation=generation,
        base_generation=observed.applied_generation,
        expires_at_step=observed.step + EXPIRES_AFTER_STEPS,
        decision_id=decision_id(observed.run_uid, generation, rule.name, judgement.branch, step),
    )


def newest_good(checkpoints: tuple[CheckpointState, ...], latest: int) -> CheckpointState | None:
    """The newest checkpoint that later health proved good, not after step `latest`."""
    good = [c for c in checkpoints if c.health is Health.good and c.step <= latest]
    return max(good, key=lambda c: (c.branch, c.step), default=None)


def _settings(policy: Policy, rule: Rule, observed: Observed) -> tuple[dict[str, Setting], str]:
    """New values inside the clamps, and what stands in the way if nothing would change."""
    settings: dict[str, Setting] = {}
    for name in (*rule.then.scale, *rule.then.set):
        current = observed.tunables.get(name)
        if current is None:
            return {}, f"this trainer has no tunable {name}"
        if current.capability != "runtime":
            return {}, f"this trainer cannot change {name} while it runs"
        wanted = current.value * rule.then.scale[name] if name in rule.then.scale else rule.then.set[name]
        clamp = policy.clamps[name]
        value = min(max(wanted, clamp.min, current.min), clamp.max, current.max)
        if value != current.value:
            settings[name] = Setting(value=value)
    if not settings:
        names = ", ".join((*rule.then.scale, *rule.then.set))
        return {}, f"{names} cannot be changed further inside its clamps, so the run would meet the same end"
    return settings, ""


def _verdict(policy: Policy, judgement: Judgement, standing: Standing) -> Decision | None:
    watch = standing.watch
    if watch is None or standing.progress < watch.due_progress:
        return None
    recent = judgement.pass_rate_since(watch.from_progress + policy.verdict.grace_steps)
    if recent is None:
        return None
    value, margin = recent
    helped = value >= watch.reference - margin
    comparison = f"pass rate {value:.2f} against {watch.reference:.2f} before the trouble"
    reason = f"the action of {watch.rule} {'helped' if helped else 'did not help'}: {comparison}"
    evidence = {"pass_rate": value, "reference": watch.reference, "margin": margin}
    return Decision(
        kind=Kind.verdict,
        reason=reason,
        step=judgement.step,
        branch=judgement.branch,
        rule=watch.rule,
        helped=helped,
        evidence=evidence,
        decision_id=watch.decision_id,
    )


def _breached(name: str, judgement: Judgement) -> bool:
    return judgement.findings[name].outcome is Outcome.breach


def _holds(rule: Rule, judgement: Judgement) -> bool:
    return all(_breached(name, judgement) for name in rule.when.all) and (
        not rule.when.any or bool(_recent(rule, judgement))
    )


def _recent(rule: Rule, judgement: Judgement) -> list[str]:
    """Detectors of `any` that are or were in alarm not long ago."""
    never = rule.when.within_steps + 1
    return [name for name in rule.when.any if judgement.since_breach.get(name, never) <= rule.when.within_steps]


def episodes(policy: Policy, judgement: Judgement) -> frozenset[str]:
    """Rules whose trouble is still there, and `stale` while the data are too old.

    An episode lasts as long as any of the keys in `all` stands: the others may flicker, and a person is told once.
    """
    names = {rule.name for rule in policy.rules if any(_breached(name, judgement) for name in rule.when.all)}
    return frozenset(names | {STALE} if judgement.stale else names)


def _priority(rule: Rule) -> int:
    if rule.then.rollback:
        return 0
    if any(factor < 1 for factor in rule.then.scale.values()):
        return 1
    return 2 if rule.then.scale or rule.then.set else 3


def _keys(rule: Rule, judgement: Judgement) -> list[str]:
    """Detectors that made the rule hold."""
    return [*rule.when.all, *_recent(rule, judgement)]


def _evidence(name: str, judgement: Judgement) -> str:
    ago = judgement.since_breach.get(name, 0)
    return f"{name}: {judgement.findings[name].detail}" if not ago else f"{name}: in alarm {ago} steps ago"


def _findings(rule: Rule, judgement: Judgement) -> list[Finding]:
    return [judgement.findings[name] for name in _keys(rule, judgement)]


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
