"""Make every decision of a journal again and compare: the proof that a decision follows from what was seen, bit for bit."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from controlplane.decide import Decision, Evaluator
from controlplane.journal import EntryKind, Journal
from controlplane.policy import Policy
from controlplane.snapshot import Snapshot


@dataclass(frozen=True)
class Difference:
    """A decision that came out otherwise: journal line, version that wrote it, as recorded, as made again."""

    seq: int
    version: str
    recorded: dict[str, Any]
    again: dict[str, Any]

    def fields(self) -> list[tuple[str, Any, Any]]:
        """(field, recorded, again) where the two differ."""
        names = sorted(self.recorded.keys() | self.again.keys())
        pairs = [(name, self.recorded.get(name), self.again.get(name)) for name in names]
        return [(name, one, other) for name, one, other in pairs if _text(one) != _text(other)]


@dataclass(frozen=True)
class Replay:
    """`looks` decisions were made again."""

    looks: int
    differences: tuple[Difference, ...]


def replay(journal: Journal) -> Replay:
    """Replay a whole journal, every controller start with the policy that it had.

    Raises:
        JournalError: the chain is broken.
    """
    looks, differences = 0, []
    for difference in again(journal):
        looks += 1
        if difference is not None:
            differences.append(difference)
    return Replay(looks, tuple(differences))


def again(journal: Journal) -> Iterator[Difference | None]:
    """Look by look: None where the decision came out the same. One look is in memory at a time, however long the run.

    Raises:
        JournalError: the chain is broken.
    """
    journal.verify()
    evaluator: Evaluator | None = None
    policy, version = None, ""
    for entry in journal.entries():
        if entry.kind is EntryKind.start:
            version = str(entry.body["version"])
            if policy != entry.body["policy_json"] or evaluator is None:
                policy = entry.body["policy_json"]
                evaluator = _recalled(journal, Policy.model_validate(policy), before=entry.seq)
        elif entry.kind is EntryKind.look and evaluator is not None:
            _, made = evaluator.look(Snapshot.model_validate(entry.body["snapshot"]))
            recorded, fresh = entry.body["decision"], made.model_dump(mode="json")
            yield None if _text(recorded) == _text(fresh) else Difference(entry.seq, version, recorded, fresh)


def _recalled(journal: Journal, policy: Policy, before: int) -> Evaluator:
    """What a controller that starts with this policy knows of the looks before it."""
    evaluator = Evaluator(policy)
    for entry in journal.entries(kind=EntryKind.look):
        if entry.seq >= before:
            break
        decision = Decision.model_validate(entry.body["decision"])
        evaluator.recall(Snapshot.model_validate(entry.body["snapshot"]), decision)
    return evaluator


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
