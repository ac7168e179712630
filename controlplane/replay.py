"""Make every decision of a journal again and compare: the proof that a decision follows from what was seen, bit for bit."""

import json
from dataclasses import dataclass
from typing import Any

from controlplane.decide import Decision, Evaluator
from controlplane.journal import EntryKind, Journal
from controlplane.policy import Policy
from controlplane.snapshot import Snapshot


@dataclass(frozen=True)
class Replay:
    """`looks` decisions were made again; `differences` lists (journal line, recorded, made again) where they differ."""

    looks: int
    differences: tuple[tuple[int, dict[str, Any], dict[str, Any]], ...]


def replay(journal: Journal) -> Replay:
    """Replay a whole journal, every controller start with the policy that it had.

    Raises:
        JournalError: the chain is broken.
    """
    journal.verify()
    history: list[tuple[Snapshot, Decision]] = []
    differences = []
    evaluator: Evaluator | None = None
    for entry in journal.entries():
        if entry.kind is EntryKind.start:
            evaluator = Evaluator(Policy.model_validate(entry.body["policy_json"]))
            for snapshot, decision in history:
                evaluator.recall(snapshot, decision)
        elif entry.kind is EntryKind.look and evaluator is not None:
            snapshot = Snapshot.model_validate(entry.body["snapshot"])
            _, again = evaluator.look(snapshot)
            recorded, made = entry.body["decision"], again.model_dump(mode="json")
            if json.dumps(recorded, sort_keys=True) != json.dumps(made, sort_keys=True):
                differences.append((entry.seq, recorded, made))
            history.append((snapshot, Decision.model_validate(recorded)))
    return Replay(len(history), tuple(differences))
