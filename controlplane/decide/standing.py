"""What earlier looks and decisions left behind: what waits, limits used, what was changed, what was already said.

Immutable; `decide` reads it, `Standing.after` and `Standing.heard` make the next one. Steps are counted as `progress`, over
all branches, so that a cooldown does not start anew when a rollback takes the step number back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import nan

from controlplane.contract.documents import Ack, AckState, Observed
from controlplane.decide.decision import Decision, Kind, Purpose

_ORDERS_KEPT = 64


@dataclass(frozen=True)
class Watch:
    """An applied action that waits for its verdict."""

    decision_id: str
    rule: str
    reference: float
    """Pass rate before the trouble began."""
    from_progress: int
    due_progress: int
    left_branch: int | None
    """The branch that a rollback gave up; None for other actions."""
    restored_step: int | None
    """The step that a rollback went back to; None for other actions."""
    purpose: Purpose = Purpose.answer
    before: Mapping[str, float] = field(default_factory=dict)
    """Values before the change and, read back, after it; empty for a lease, which ends by itself."""
    after: Mapping[str, float] = field(default_factory=dict)
    statistics: Mapping[str, float] = field(default_factory=dict)
    """What the detectors said when it was decided."""
    onset: int | None = None
    gain_per_step: float = 0.0
    """Change of the pass rate per step that the forecast before the action expected."""
    forked_from: int | None = None
    """Of an adoption: the step at which the adopted arm began, on the branch `forked_branch`."""
    forked_branch: int = 0


@dataclass(frozen=True)
class Changed:
    """A tunable that stands where the controller put it. `home` is the value before, to which recovery leads back."""

    home: float
    rule: str


@dataclass(frozen=True)
class Standing:
    """The memory of `decide`, rebuilt from the journal after a restart."""

    progress: int = 0
    branch: int = 0
    generation: int = 0
    """Highest generation issued."""
    acted: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Rule -> progress at each action that was issued and not refused."""
    rollbacks: tuple[int, ...] = ()
    """Progress at each rollback that was issued and not refused."""
    pending: Decision | None = None
    pending_reference: float = nan
    pending_gain: float = 0.0
    waiting: Decision | None = None
    """The action that waits for a person."""
    waiting_until: int = 0
    """Progress past which nobody is waited for."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rule -> progress at which its action was denied, not answered, or refused by the trainer."""
    watch: Watch | None = None
    revert: Watch | None = None
    """A change that did not help and is still in force."""
    failed: frozenset[str] = frozenset()
    """Rules whose last action did not help, in the episode that goes on."""
    changed: Mapping[str, Changed] = field(default_factory=dict)
    moved: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)
    """Tunable -> progress at its last decrease and at its last increase."""
    said: Mapping[str, int] = field(default_factory=dict)
    """Rule, or `stale` -> step at which its present episode was told to people."""
    refusal: Ack | None = None
    """Answer to the last action, if it was not applied and nobody has been told yet."""
    orders: tuple[str, ...] = ()
    """Orders of people that were carried out or refused, the newest last."""

    def after(
        self, decision: Decision, reference: float, gain_per_step: float = 0.0, expires_steps: int = 0
    ) -> "Standing":
        """The standing once `decision` has been made.

        `reference`: pass rate before the trouble. `gain_per_step`: what the forecast expects. `expires_steps`: how long a
        decision that needs an approval waits for it.
        """
        standing, rule = self, decision.rule
        if decision.purpose is Purpose.order and decision.decision_id:
            standing = replace(standing, orders=(*self.orders, decision.decision_id)[-_ORDERS_KEPT:])
        if rule and decision.step is not None and decision.kind in _TOLD:
            standing = replace(standing, said={**standing.said, rule: decision.step})
        if self.waiting is not None and decision.decision_id == self.waiting.decision_id:
            standing = replace(standing, waiting=None)
            if decision.kind is not Kind.act and rule:
                standing = replace(standing, dropped={**standing.dropped, rule: self.progress})
        match decision.kind:
            case Kind.act:
                return standing._issued(decision, reference, gain_per_step)
            case Kind.waiting:
                return replace(standing, waiting=decision, waiting_until=self.progress + expires_steps)
            case Kind.page if rule is None:
                return replace(standing, refusal=None)
            case Kind.verdict:
                return standing._judged(decision)
            case Kind.hold if decision.purpose is Purpose.revert:
                return replace(standing, revert=None)
        return standing

    def _issued(self, decision: Decision, reference: float, gain_per_step: float) -> "Standing":
        said = {rule: step for rule, step in self.said.items() if rule != decision.rule}
        standing = replace(
            self,
            said=said,  # what stands in the way of a next action is news again
            generation=decision.generation or self.generation,
            pending=decision,
            pending_reference=reference,
            pending_gain=gain_per_step,
            # What waited was about a run that is now changed in another way.
            waiting=None if decision.purpose is not Purpose.order else self.waiting,
            revert=None if decision.purpose is Purpose.revert else self.revert,
        )
        if decision.purpose is Purpose.answer and decision.rule:
            times = (*self.acted.get(decision.rule, ()), self.progress)
            standing = replace(standing, acted={**self.acted, decision.rule: times})
            if decision.change is not None and decision.change.target is not None:
                standing = replace(standing, rollbacks=(*self.rollbacks, self.progress))
        return standing

    def _judged(self, verdict: Decision) -> "Standing":
        watch = self.watch
        standing = replace(self, watch=None)
        if watch is None or verdict.helped is not False:
            return standing
        taken_back = watch.left_branch is None and bool(watch.after)
        changed = {
            # A way back that did harm has found its end: what it left is the new home.
            name: replace(c, home=watch.before[name])
            if watch.purpose is Purpose.recover and name in watch.before
            else c
            for name, c in self.changed.items()
        }
        return replace(
            standing,
            failed=self.failed | {watch.rule} if watch.purpose is Purpose.answer else self.failed,
            revert=watch if taken_back else None,
            changed=changed,
        )

    def heard(self, observed: Observed | None, verdict_after: int) -> "Standing":
        """The standing after reading what the trainer says became of the pending decision."""
        if observed is None:
            return self
        standing = replace(self, generation=max(self.generation, observed.applied_generation))
        pending, ack = self.pending, observed.last_ack
        if pending is None or ack is None or ack.decision_id != pending.decision_id or ack.state is AckState.accepted:
            return standing
        standing = replace(standing, pending=None)
        if ack.state not in (AckState.applied, AckState.reverted):
            return replace(standing, refusal=ack)._forget(pending)
        if pending.change is None or pending.purpose in (Purpose.order, Purpose.probe):
            return standing
        after = {name: ack.readback.get(name, s.value or nan) for name, s in pending.change.set.items()}
        standing = standing._applied(pending, after)
        if pending.purpose is Purpose.revert:
            return standing
        target, temporary = pending.change.target, pending.lease is not None
        watch = Watch(
            ack.decision_id,
            pending.rule or "",
            self.pending_reference,
            self.progress,
            self.progress + verdict_after,
            left_branch=pending.branch if target else None,
            restored_step=target.step if target else None,
            purpose=pending.purpose,
            before={} if temporary else pending.before,
            after={} if temporary else after,
            statistics=pending.evidence,
            onset=pending.onset,
            gain_per_step=self.pending_gain,
            forked_from=pending.forked_from,
            forked_branch=pending.branch,
        )
        return replace(standing, watch=watch)

    def _applied(self, decision: Decision, after: Mapping[str, float]) -> "Standing":
        """Remember what was changed, which way, and where it came from."""
        changed, moved = dict(self.changed), dict(self.moved)
        for name, value in after.items():
            before = decision.before.get(name, nan)
            down, up = moved.get(name, (None, None))
            moved[name] = (self.progress, up) if value < before else (down, self.progress)
            if decision.lease is not None:
                continue
            home = changed[name].home if name in changed else before
            if value == home:
                changed.pop(name, None)
            elif decision.purpose is not Purpose.revert or name in changed:
                changed[name] = Changed(home, changed[name].rule if name in changed else decision.rule or "")
        return replace(self, changed=changed, moved=moved)

    @property
    def rollback_to(self) -> int | None:
        """The step that the rollback off the present branch goes back to, confirmed already or not; None without one."""
        if self.pending is not None and self.pending.change is not None and self.pending.change.target is not None:
            return self.pending.change.target.step
        if self.pending is not None and self.pending.forked_from is not None:
            return self.pending.forked_from
        if self.watch and self.watch.forked_from is not None and self.watch.forked_branch == self.branch:
            return self.watch.forked_from
        return self.watch.restored_step if self.watch and self.watch.left_branch == self.branch else None

    @property
    def actions(self) -> int:
        """Actions of all rules that were issued and not refused."""
        return sum(map(len, self.acted.values()))

    @property
    def last_change(self) -> int | None:
        """Progress at the newest action of a rule; ways back do not count."""
        return max((times[-1] for times in self.acted.values() if times), default=None)

    def lost(self) -> "Standing":
        """The pending decision can no longer be applied: the trainer restarted, or its last step is past."""
        return replace(self, pending=None)._forget(self.pending) if self.pending else self

    def quiet(self, episodes: frozenset[str]) -> "Standing":
        """Forget what was said about episodes that are over, so that a new one is told again."""
        said = {rule: step for rule, step in self.said.items() if rule in episodes}
        failed = self.failed & episodes
        if len(said) == len(self.said) and failed == self.failed:
            return self
        return replace(self, said=said, failed=failed)

    def _forget(self, refused: Decision) -> "Standing":
        # An action that never happened must not use up a budget.
        if refused.purpose is not Purpose.answer:
            return self
        rule = refused.rule or ""
        was_rollback = refused.change is not None and refused.change.target is not None
        return replace(
            self,
            acted={**self.acted, rule: self.acted.get(rule, ())[:-1]},
            dropped={**self.dropped, rule: self.progress},  # but it waits before it tries again
            rollbacks=self.rollbacks[:-1] if was_rollback else self.rollbacks,
        )


_TOLD = (Kind.observe, Kind.advise, Kind.page, Kind.waiting)
