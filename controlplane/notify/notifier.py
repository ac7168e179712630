"""From looks of the controller to notices. Called after the journal is on disk; returns at once, whatever the others do."""

from collections.abc import Sequence

from controlplane.contract.documents import AckState
from controlplane.decide import Decision, Kind
from controlplane.notify.notice import Notice, notice_of
from controlplane.notify.outbox import Outbox
from controlplane.snapshot import Snapshot

OPEN = 64
"""Actions whose answer or verdict may still come; older ones are let go."""
LOST = frozenset({AckState.rejected.value, AckState.expired.value, AckState.failed.value, AckState.reverted.value})
"""Answers after which nothing more comes."""


class Notifier:
    """Watches the looks of one run and tells every outbox what people want to know."""

    def __init__(self, run: str, outboxes: Sequence[Outbox]) -> None:
        self._run, self._outboxes = run, outboxes
        self._open: dict[str, Notice] = {}

    def recall(self, snapshot: Snapshot, decision: Decision) -> None:
        """Take over a look that was told when it happened: its action may still get an answer or a verdict."""
        self._changes(snapshot, decision)

    def look(self, snapshot: Snapshot, decision: Decision) -> None:
        """Take over one look and tell of it."""
        for notice in self._changes(snapshot, decision):
            for outbox in self._outboxes:
                outbox.offer(notice)

    def _changes(self, snapshot: Snapshot, decision: Decision) -> list[Notice]:
        """What is new: the answer to an action, its verdict, the decision itself."""
        found = self._answer(snapshot)
        if decision.kind is Kind.verdict and decision.decision_id in self._open:
            judged = self._open[decision.decision_id].judged(decision)
            self._open[judged.key] = judged  # kept: a lease may still end
            found.append(judged)
        notice = notice_of(self._run, decision, snapshot.observed, snapshot.at)
        if notice is not None:
            found.append(notice)
            if decision.kind is Kind.act:
                self._open[notice.key] = notice
                if len(self._open) > OPEN:
                    self._open.pop(next(iter(self._open)))
        return found

    def _answer(self, snapshot: Snapshot) -> list[Notice]:
        ack = snapshot.observed.last_ack if snapshot.observed else None
        before = self._open.get(ack.decision_id) if ack else None
        if ack is None or before is None or (after := before.answered(ack, snapshot.at)) is before:
            return []
        self._open[after.key] = after
        if after.result in LOST:
            del self._open[after.key]
        return [after]

    def close(self) -> None:
        """Deliver what is waiting, for a few seconds at most."""
        for outbox in self._outboxes:
            outbox.close()
