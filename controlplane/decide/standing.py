"""What earlier looks and decisions left behind: pending action, limits used, what was already said.

Immutable; `rules.decide` reads it, `Standing.after` makes the next one. Steps are counted as `progress`, over all branches,
so that a cooldown does not start anew when a rollback takes the step number back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from controlplane.contract.documents import Ack, AckState, Observed
from controlplane.decide.decision import Decision, Kind


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


@dataclass(frozen=True)
class Standing:
    """The memory of `decide`, rebuilt from the journal after a restart."""

    progress: int = 0
    branch: int = 0
    generation: int = 0
    """Highest generation issued."""
    acted: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Rule -> progress at each action that was issued and not refused."""
    pending: Decision | None = None
    pending_reference: float = 0.0
    watch: Watch | None = None
    said: Mapping[str, int] = field(default_factory=dict)
    """Rule, or `stale` -> step at which its present episode was told to people."""
    refusal: Ack | None = None
    """Answer to the last action, if it was not applied and nobody has been told yet."""

    def after(self, decision: Decision, reference: float) -> "Standing":
        """The standing once `decision` has been made; `reference` is the pass rate before the trouble."""
        standing = self
        if (
            decision.kind in (Kind.observe, Kind.advise, Kind.act, Kind.page)
            and decision.rule
            and decision.step is not None
        ):
            standing = replace(standing, said={**standing.said, decision.rule: decision.step})
        if decision.kind is Kind.act and decision.rule and decision.generation is not None:
            times = (*standing.acted.get(decision.rule, ()), self.progress)
            standing = replace(
                standing,
                generation=decision.generation,
                acted={**standing.acted, decision.rule: times},
                pending=decision,
                pending_reference=reference,
            )
        if decision.kind is Kind.page and decision.rule is None:
            standing = replace(standing, refusal=None)
        if decision.kind is Kind.verdict:
            standing = replace(standing, watch=None)
        return standing

    def heard(self, observed: Observed | None, verdict_after: int) -> "Standing":
        """The standing after reading what the trainer says became of the pending decision."""
        if observed is None:
            return self
        standing = replace(self, generation=max(self.generation, observed.applied_generation))
        pending, ack = self.pending, observed.last_ack
        if pending is None or ack is None or ack.decision_id != pending.decision_id or ack.state is AckState.accepted:
            return standing
        standing = replace(standing, pending=None)
        if ack.state is AckState.applied:
            due = self.progress + verdict_after
            target = pending.change.target if pending.change else None
            watch = Watch(
                ack.decision_id,
                pending.rule or "",
                self.pending_reference,
                self.progress,
                due,
                left_branch=pending.branch if target else None,
                restored_step=target.step if target else None,
            )
            return replace(standing, watch=watch)
        return replace(standing, refusal=ack)._forget(pending)

    @property
    def rollback_to(self) -> int | None:
        """The step that the rollback off the present branch goes back to, confirmed already or not; None without one."""
        if self.pending is not None and self.pending.change is not None and self.pending.change.target is not None:
            return self.pending.change.target.step
        return self.watch.restored_step if self.watch and self.watch.left_branch == self.branch else None

    def lost(self) -> "Standing":
        """The pending decision can no longer be applied: the trainer restarted, or its last step is past."""
        return replace(self, pending=None)._forget(self.pending) if self.pending else self

    def quiet(self, episodes: frozenset[str]) -> "Standing":
        """Forget what was said about episodes that are over, so that a new one is told again."""
        kept = {rule: step for rule, step in self.said.items() if rule in episodes}
        return replace(self, said=kept) if len(kept) < len(self.said) else self

    def _forget(self, refused: Decision) -> "Standing":
        # An action that never happened must not use up the budget of its rule.
        rule = refused.rule or ""
        return replace(self, acted={**self.acted, rule: self.acted.get(rule, ())[:-1]})
