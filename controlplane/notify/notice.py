"""What others are told about a decision, and how it changes when the trainer answers. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from controlplane.contract.documents import Ack, AckState, Observed
from controlplane.decide import Decision, Kind

TOLD = frozenset({Kind.act, Kind.advise, Kind.observe, Kind.page, Kind.waiting, Kind.dropped})
"""Kinds of decision that others hear of; a verdict changes what was told before."""


@dataclass(frozen=True)
class Notice:
    """One decision for people. The same `key` again means: this replaces what was told before."""

    key: str
    run: str
    at: float
    """Unix seconds of the decision."""
    kind: str
    """act, advise, observe, page, waiting (for approval) or dropped."""
    result: str
    """The kind, until the trainer answers: then applied, rejected, expired, reverted or failed."""
    rule: str
    action: str
    """rollback, tune, another order to the trainer, or page."""
    change: str
    """Old -> new value of everything that changes."""
    reason: str
    step: int | None
    branch: int
    until: float | None = None
    """When it was confirmed or reverted."""
    approved_by: str = ""
    verdict: str = ""
    helped: bool | None = None

    def answered(self, ack: Ack, at: float) -> "Notice":
        """The same after the trainer's answer, or unchanged while that is not final or known already."""
        if ack.decision_id != self.key or ack.state is AckState.accepted or ack.state.value == self.result:
            return self
        return replace(self, result=ack.state.value, until=at)

    def judged(self, decision: Decision) -> "Notice":
        """The same after its verdict."""
        return replace(self, verdict=decision.reason, helped=decision.helped)


def notice_of(run: str, decision: Decision, observed: Observed | None, at: float) -> Notice | None:
    """What is told about a decision; None when nobody is."""
    if decision.kind not in TOLD:
        return None
    place = f"{run}/{decision.branch}/{decision.step}/{decision.rule}/{decision.kind.value}"
    return Notice(
        key=decision.decision_id or place,
        run=run,
        at=at,
        kind=decision.kind.value,
        result=decision.kind.value,
        rule=decision.rule or decision.purpose.value,
        action=_action(decision),
        change=_change(decision, observed),
        reason=decision.reason,
        step=decision.step,
        branch=decision.branch,
        approved_by=decision.approved_by,
    )


def _action(decision: Decision) -> str:
    change = decision.change
    if decision.kind is Kind.page or change is None:
        return "page"
    return "tune" if change.action.value == "none" else change.action.value


def _change(decision: Decision, observed: Observed | None) -> str:
    if decision.change is None:
        return ""
    parts = []
    if decision.change.target is not None:
        here = "" if observed is None else f"{observed.step} "
        parts.append(f"step {here}-> {decision.change.target.step}")
    now = {name: tunable.value for name, tunable in observed.tunables.items()} if observed else {}
    in_force: Mapping[str, float] = {**now, **decision.before}
    for name, setting in decision.change.set.items():
        if name in in_force:
            parts.append(f"{name} {in_force[name]:g} -> {setting.resolve(in_force[name]):g}")
        else:
            parts.append(f"{name} -> {setting.value:g}" if setting.value is not None else f"{name} x {setting.scale:g}")
    return ", ".join(parts)
