"""What the agent knows about decisions, as a fold over `control.jsonl`. Pure.

    started · received · answered · changed        records, in the order in which they happened
              |
        Memory.after(record)                       the only way in which memory changes

The running agent and a restarted one use the same fold, so a restart re-asserts exactly what was in force: tunables,
generation, epoch, answered decisions, rollbacks used, cooldown and leases. A decision that was received but not answered
when a process ended is closed as `failed` at the next start and never applied (`Memory.unanswered`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from controlplane.contract.documents import Ack, AckState, Action, Lease

FINAL = frozenset(AckState) - {AckState.accepted}


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    at: float
    """Unix seconds, for people."""


class Started(_Record):
    """A process started with these tunables in its recipe."""

    event: Literal["started"] = "started"
    incarnation: str
    values: dict[str, float]


class Received(_Record):
    """A document with a valid signature arrived. Written before the trainer can see it."""

    event: Literal["received"] = "received"
    decision_id: str
    generation: int
    epoch: int | None
    """Epoch of the document; None when it is addressed to another run or process, where it fences nobody off."""
    action: Action


class Unreadable(_Record):
    """Bytes that are no document, or a document with a wrong signature. Nothing in them is believed."""

    event: Literal["unreadable"] = "unreadable"
    reason: str


class Answered(_Record):
    """An ack, with what it did to the tunables."""

    event: Literal["answered"] = "answered"
    ack: Ack
    action: Action = Action.none
    source: Literal["controller", "lease"] = "controller"
    epoch: int | None = None
    """Epoch of the document; None when it did not come from the controller in charge."""
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    lease: Lease | None = None
    set: tuple[str, ...] = ()
    """Tunables that the document named."""
    handed_out_at: int = 0
    """Step of the boundary at which the trainer got the directive."""
    target_step: int | None = None
    """Step that a rollback went back to."""
    split: bool = False
    """The ranks of the trainer do not agree about the outcome."""


class Changed(_Record):
    """Tunables in force differ from those the agent knew: somebody changed them in the trainer or its recipe."""

    event: Literal["changed"] = "changed"
    before: dict[str, float]
    after: dict[str, float]
    step: int | None
    """None when it was noticed at the start of the process."""


Record = Started | Received | Unreadable | Answered | Changed
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="event")])


def parse_record(line: Mapping[str, Any]) -> Record:
    """One line of `control.jsonl`."""
    return _RECORD.validate_python(line)


@dataclass(frozen=True)
class Leased:
    """A tunable that goes back to `value` once `until_step` is past."""

    until_step: int
    value: float
    decision_id: str
    generation: int


@dataclass(frozen=True)
class Memory:
    """State of the protocol. `values` are the tunables in force as the agent knows them."""

    values: Mapping[str, float] = field(default_factory=dict)
    recipe: Mapping[str, float] = field(default_factory=dict)
    """Tunables as the trainer was started with."""
    epoch: int = 0
    """Highest controller epoch adopted."""
    newest_generation: int = 0
    """Highest generation answered within that epoch."""
    applied_generation: int = 0
    answers: Mapping[str, Ack] = field(default_factory=dict)
    """Final answer by decision id."""
    waiting: str | None = None
    """Accepted decision that waits for its boundary."""
    unanswered: Mapping[str, Received] = field(default_factory=dict)
    last_ack: Ack | None = None
    last_change: int | None = None
    """Step of the last change of a tunable by the controller; the cooldown counts from it."""
    rollbacks: int = 0
    """Rollbacks used up, the failed ones included."""
    rolled_back: int = 0
    """Rollbacks that were carried out."""
    leases: Mapping[str, Leased] = field(default_factory=dict)
    poisoned: str = ""
    """Why the process can no longer be trusted (a restore failed half-way, its ranks differ); empty when it can."""

    def after(self, record: Record) -> "Memory":
        """The memory once `record` has happened."""
        match record:
            case Started():
                # Half-restored state was in the memory of the process that is gone.
                values = {name: self.values.get(name, value) for name, value in record.values.items()}
                leases = {name: lease for name, lease in self.leases.items() if name in values}
                return replace(self, recipe=record.values, values=values, leases=leases, poisoned="", waiting=None)
            case Received():
                return self._received(record)
            case Changed():
                leases = {name: lease for name, lease in self.leases.items() if name not in record.after}
                return replace(self, values={**self.values, **record.after}, leases=leases)
            case Answered():
                return self._answered(record)._applied(record)
            case Unreadable():
                return self

    def _received(self, record: Received) -> "Memory":
        known = self
        if record.epoch is not None and record.epoch > self.epoch:
            # At once and not with the answer: whatever happens to this process, the old controller stays fenced off.
            # The new one goes on from what is in force; what the old one asked for in vain does not bind it.
            known = replace(self, epoch=record.epoch, newest_generation=self.applied_generation)
        if record.decision_id in self.answers:
            return known
        return replace(known, unanswered={**self.unanswered, record.decision_id: record})

    def _answered(self, record: Answered) -> "Memory":
        ack = record.ack
        known = replace(self, last_ack=ack)
        if record.epoch == self.epoch:
            known = replace(known, newest_generation=max(self.newest_generation, ack.generation))
        if ack.state is AckState.accepted:
            return replace(known, waiting=ack.decision_id)
        return replace(
            known,
            answers={**self.answers, ack.decision_id: ack},
            unanswered={key: value for key, value in self.unanswered.items() if key != ack.decision_id},
            waiting=None if self.waiting == ack.decision_id else self.waiting,
        )

    def _applied(self, record: Answered) -> "Memory":
        ack, rollback = record.ack, record.action is Action.rollback
        if record.split or (ack.state is AckState.failed and rollback):
            return replace(self, rollbacks=self.rollbacks + rollback, poisoned=ack.reason or "a rollback failed")
        values = {**self.values, **record.after}
        if ack.state is AckState.reverted:
            leases = {name: lease for name, lease in self.leases.items() if lease.decision_id != ack.decision_id}
            return replace(self, values=values, leases=leases)
        if ack.state is not AckState.applied:
            return replace(self, values=values)
        last_change, leases = self.last_change, dict(self.leases)
        if any(record.before.get(name) != value for name, value in record.after.items()):
            last_change = ack.at_step
        if record.target_step is not None:
            # Steps of a branch that was left do not count: leases keep what they had left, the cooldown starts anew.
            last_change, rewound = record.target_step, record.handed_out_at - record.target_step
            leases = {name: replace(lease, until_step=lease.until_step - rewound) for name, lease in leases.items()}
        leases = {name: lease for name, lease in leases.items() if name not in record.set}
        if record.lease:
            for name, value in record.lease.revert_to.items():
                leases[name] = Leased(record.lease.until_step, value, ack.decision_id, ack.generation)
        return replace(
            self,
            values=values,
            applied_generation=ack.generation,
            last_change=last_change,
            rollbacks=self.rollbacks + rollback,
            rolled_back=self.rolled_back + rollback,
            leases=leases,
        )

    def lapsed(self, step: int) -> dict[str, Leased]:
        """Leases to revert at `step`: those of the decision whose lease ended first, by tunable."""
        due = [lease for lease in self.leases.values() if step > lease.until_step]
        if not due:
            return {}
        first = min(due, key=lambda lease: (lease.until_step, lease.generation)).decision_id
        return {
            name: lease for name, lease in self.leases.items() if lease.decision_id == first and step > lease.until_step
        }


def recall(records: Iterable[Mapping[str, Any]]) -> Memory:
    """Memory from the lines of `control.jsonl`."""
    memory = Memory()
    for line in records:
        memory = memory.after(parse_record(line))
    return memory
