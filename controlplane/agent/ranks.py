"""One change on all ranks of a trainer, or on none.

    rank 0   Agent.boundary  --broadcast: proposal, or nothing-->   every rank validates against its own state and rails
             every rank      --all_agree-->  unanimous: the directive is handed out, everywhere at this boundary
                                             otherwise: handed out nowhere, answered `rejected`
    then     acknowledge     --broadcast: outcome and read-back of rank 0-->  every rank compares with its own
             every rank      --all_agree-->  the same everywhere: acknowledged as it is
                                             otherwise: `failed`, and the process is poisoned: only stop is accepted

`Ranks` is all that the agent needs of torch.distributed, Ray or MPI. Both methods are collective: every rank calls them the
same number of times in the same order, which `Agent` and `Follower` see to. A rank that dies takes the collective
down with it; the decision is then closed as `failed` at the next start.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from pydantic import TypeAdapter

from controlplane.agent.boundary import BoundaryState, Directive
from controlplane.agent.guardrails import GuardRails
from controlplane.contract.documents import AckState, Action, Health, Phase, Target
from controlplane.contract.reports import CheckpointReport, EvalReport, StepReport

log = logging.getLogger(__name__)

MESSAGE_BYTES = 4096
"""Largest message, so that an implementation can use a buffer of fixed size and one collective."""

Check = Callable[[Directive], str]
"""Why this rank cannot carry out a directive, in one sentence; empty when it can."""


class Ranks(Protocol):
    """The processes that must change together."""

    def broadcast(self, message: bytes) -> bytes:
        """What rank 0 passes, on every rank; at most `MESSAGE_BYTES`. What other ranks pass does not count."""

    def all_agree(self, yes: bool) -> bool:
        """Whether every rank says yes; the same answer on every rank."""


@dataclass(frozen=True)
class Proposal:
    """What the ranks vote on: a directive, and the state of rank 0 that it was admitted for."""

    step: int
    branch: int
    values: Mapping[str, float]
    directive: Directive


_PROPOSAL = TypeAdapter(Proposal)


class Alone:
    """A trainer of one process."""

    def broadcast(self, message: bytes) -> bytes:
        return message

    def all_agree(self, yes: bool) -> bool:
        return yes


def anything(_: Directive) -> str:
    """The check of a rank that has nothing to object."""
    return ""


class Lead:
    """Rank 0's half of the protocol."""

    def __init__(self, ranks: Ranks, check: Check) -> None:
        self._ranks, self._check = ranks, check

    def start(self, values: Mapping[str, float]) -> None:
        """Every rank begins with the values of rank 0."""
        self._ranks.broadcast(json.dumps(dict(values)).encode())

    def propose(self, directive: Directive | None, state: BoundaryState) -> str:
        """Put a directive, or none, to the vote; why it may not be handed out, empty when it may."""
        message = b""
        if directive is not None:
            brief = replace(directive, reason=directive.reason[:300])
            message = _PROPOSAL.dump_json(Proposal(state.step, state.branch, dict(state.values), brief))
        too_large = len(message) > MESSAGE_BYTES
        self._ranks.broadcast(b"" if too_large else message)
        if directive is None:
            return ""
        if too_large:
            return "the decision is too large to be put to the ranks"
        objection = self._check(directive)
        if self._ranks.all_agree(not objection):
            return ""
        return objection or "another rank of the trainer refuses it"

    def settle(self, state: AckState, readback: Mapping[str, float]) -> bool:
        """Whether the outcome is the same on every rank."""
        self._ranks.broadcast(_outcome(state, readback))
        return self._ranks.all_agree(True)


class Follower:
    """Stands in for the agent on every rank but 0: the same calls, at the same places.

    Args:
        ranks: the same group as that of rank 0.
        rails, actions: as on rank 0; they come from the same recipe.
        check: what only this rank can know, for example that its shard of a checkpoint is there.
    """

    def __init__(self, ranks: Ranks, rails: GuardRails, actions: tuple[Action, ...], check: Check = anything) -> None:
        self._ranks, self._rails, self._actions, self._check = ranks, rails, actions, check
        self._values: dict[str, float] = json.loads(ranks.broadcast(b""))
        self._poisoned = False

    @property
    def values(self) -> dict[str, float]:
        """Tunables to begin with: those of rank 0."""
        return dict(self._values)

    def boundary(self, state: BoundaryState) -> Directive | None:
        """What to do at this step boundary, if anything: what rank 0 proposes and every rank accepts."""
        message = self._ranks.broadcast(b"")
        if not message:
            return None
        proposal = _PROPOSAL.validate_json(message)
        directive = proposal.directive
        objection = self._objection(proposal, state)
        if objection:
            log.warning("control: this rank refuses decision %s: %s", directive.decision_id, objection)
        return directive if self._ranks.all_agree(not objection) else None

    def acknowledge(
        self, directive: Directive, state: AckState, at_step: int, readback: Mapping[str, float], reason: str = ""
    ) -> None:
        """What became of a directive on this rank; compared with rank 0."""
        theirs = self._ranks.broadcast(b"")
        same = theirs == _outcome(state, readback)
        if not self._ranks.all_agree(same):
            self._poisoned = True
        if not same:
            log.error(
                "control: decision %s came out otherwise on this rank (%s %s)", directive.decision_id, state, reason
            )

    def _objection(self, proposal: Proposal, state: BoundaryState) -> str:
        directive = proposal.directive
        if self._poisoned and not (directive.action is Action.stop and not directive.values):
            return "the ranks differ since an earlier decision; only stop is accepted"
        if (proposal.step, proposal.branch) != (state.step, state.branch):
            return (
                f"rank 0 is at step {proposal.step}, branch {proposal.branch}; this one at {state.step}, {state.branch}"
            )
        if proposal.values != dict(state.values):
            return "its tunables differ from those of rank 0"
        if directive.action is not Action.none and directive.action not in self._actions:
            return f"action {directive.action} is not supported here"
        for name, value in (item for values in (directive.values, *directive.arms.values()) for item in values.items()):
            if name not in state.values or self._rails.inside(name, value) != value:
                return f"{name} = {value:g} is not inside the guard rails of this rank"
        if (target := directive.target) is not None and not _has(target, state):
            return f"the checkpoint of step {target.step} is not here, or not proved good"
        return self._check(directive)

    # What only rank 0 tells the world.

    def phase(self, phase: Phase) -> None:
        """Nothing."""

    def step(self, report: StepReport) -> None:
        """Nothing."""

    def evaluation(self, report: EvalReport) -> None:
        """Nothing."""

    def checkpoint(self, report: CheckpointReport) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _has(target: Target, state: BoundaryState) -> bool:
    return any(
        c.step == target.step and c.digest == target.digest and c.health is Health.good for c in state.checkpoints
    )


def _outcome(state: AckState, readback: Mapping[str, float]) -> bytes:
    return json.dumps([state.value, {name: float(readback[name]) for name in sorted(readback)}]).encode()
