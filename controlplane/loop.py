"""The reconcile loop: look at the run, judge, decide, write it down, publish, look again.

    source + observed.json -> snapshot -> Evaluator -> decision -> journal (fsync) -> desired.json -> the trainer's agent

Level-triggered: every look decides from what is true now and what the journal says was done. The controller holds no
state that the journal does not have, so it may be killed at any point: killed before the journal line, nothing was
decided; killed after it, the same document is published by the next start, and the agent applies a decision_id once.
"""

import hashlib
import logging
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Protocol

from controlplane import shortcut
from controlplane.agent import read_key
from controlplane.contract.documents import Desired, Observed
from controlplane.contract.rundir import RunDir
from controlplane.decide import Decision, Evaluator, Judgement, Kind, unsupported
from controlplane.detect import SERIES
from controlplane.journal import EntryKind, Journal, JournalError, LeaseLostError
from controlplane.policy import Policy
from controlplane.post import Post
from controlplane.shortcut import Action
from controlplane.snapshot import Snapshot, Wish
from controlplane.sources import MetricSource, QuerySource, SourceError
from controlplane.telemetry import Telemetry

log = logging.getLogger("controller")


LEASE_SECONDS = 60.0
"""A controller that has not written for so long has lost the run to whoever asks for it."""


class ControlError(Exception):
    """The controller cannot go on; one sentence."""


class Observer(Protocol):
    """Told of every look once it is on disk. Its methods must return at once and must not raise."""

    def recall(self, snapshot: Snapshot, decision: Decision) -> None:
        """A look of an earlier controller, from the journal."""
        ...

    def look(self, snapshot: Snapshot, decision: Decision) -> None: ...

    def close(self) -> None: ...


class Advisor(Protocol):
    """Wishes for probes; what it knows it has from the journal. An error of its own is logged and costs its wish."""

    def recall(self, trials: Sequence[Mapping[str, Any]]) -> None:
        """The trial lines of the journal, in order."""
        ...

    def wish(self, snapshot: Snapshot) -> Wish | None: ...

    def look(self, snapshot: Snapshot, judgement: Judgement, decision: Decision) -> Sequence[Any]:
        """What was decided; the trials that begin with it, for the journal."""
        ...

    def over(self, snapshot: Snapshot) -> Sequence[Any]:
        """Trials that have ended, for the journal."""
        ...

    def tell(self, trials: Sequence[Any]) -> None:
        """They are in the journal."""
        ...


class Controller:
    """Attached to one run. `tick` is one look; `run` repeats it."""

    def __init__(
        self,
        rundir: RunDir,
        policy: Policy,
        policy_text: str,
        source: MetricSource,
        journal: Journal,
        clock: Callable[[], float] = time.time,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._rundir, self._policy, self._source, self._journal, self._clock = rundir, policy, source, journal, clock
        self._post, self._lease_seconds = Post(rundir), lease_seconds
        self._evaluator = Evaluator(policy)
        self._epoch = 0
        self._telemetry: Telemetry | None = None
        self._action: Action | None = None
        self._since_shortcut = 0
        self._policy_text = policy_text
        self._observers: list[Observer] = []
        self._advisor: Advisor | None = None

    @property
    def policy_hash(self) -> str:
        """First 12 hex digits of the policy's content, comments left out."""
        return hashlib.sha256(self._policy.model_dump_json().encode()).hexdigest()[:12]

    def attach(self) -> None:
        """Take the lease, rebuild the state from the journal, and publish again what still waits for an answer.

        Publishing twice is harmless: the document names the incarnation that it was decided on, and the agent applies a
        decision_id once.

        Raises:
            LeaseHeldError: another controller leads this run.
            ControlError: the journal belongs to another run.
        """
        run_uid = self._rundir.read_info().run_uid if self._rundir.info.exists() else ""
        before = self._journal.newest(EntryKind.start)
        if before and run_uid and before.body["run_uid"] not in ("", run_uid):
            raise ControlError(f"{self._journal.name} belongs to run {before.body['run_uid']}, not to {run_uid}")
        observed, _ = self._post.observed()
        seen = max(observed.epoch if observed else 0, int(before.body["epoch"]) if before else 0)
        self._epoch = self._journal.lead(self._lease_seconds, above=seen)
        self._evaluator = Evaluator(self._policy)
        unanswered = self._recall()
        body = {
            "run_uid": run_uid,
            "epoch": self._epoch,
            "policy": self._policy.name,
            "policy_hash": self.policy_hash,
            "policy_text": self._policy_text,
            "policy_json": self._policy.model_dump(mode="json"),
            "version": version("scalerl"),
            "python": platform.python_version(),
        }
        self._journal.append([(EntryKind.start, body)], self._clock())
        log.info("epoch %d, policy %s (%s), %s", self._epoch, self._policy.name, self.policy_hash, self._autonomy())
        for sentence in unsupported(self._policy, observed) if observed else ():
            log.warning("%s; a person is advised instead", sentence)
        if unanswered is not None:
            self._publish(*unanswered)

    def export(self, port: int = 0) -> int:
        """Serve the controller's own metrics on loopback; the port."""
        name = self._rundir.read_info().name if self._rundir.info.exists() else self._rundir.root.name
        self._telemetry = Telemetry(self._rundir, self._policy, self.policy_hash, name, port)
        return self._telemetry.port

    def tick(self) -> tuple[Judgement, Decision]:
        """One look. The decision is on disk before anything is published."""
        snapshot = self._look()
        started = time.perf_counter()
        judgement, decision = self._evaluator.look(snapshot)
        seconds = time.perf_counter() - started
        begun = self._advisor.look(snapshot, judgement, decision) if self._advisor is not None else []
        rows = [(EntryKind.trial, trial.model_dump(mode="json")) for trial in begun]
        line, *_ = self._journal.append([(EntryKind.look, _body(snapshot, judgement, decision)), *rows], snapshot.at)
        if decision.decision_id in {order.order_id for order in snapshot.orders}:
            self._post.done(str(decision.decision_id))
        if decision.kind is Kind.act:
            self._action = (decision, snapshot.observed)
            self._publish(decision, snapshot.observed)
        self._since_shortcut += 1
        if self._since_shortcut >= shortcut.EVERY:
            shortcut.save(self._rundir.shortcut, self._evaluator, self._action, line)
            self._since_shortcut = 0
        if self._telemetry is not None:
            self._telemetry.record(snapshot, judgement, decision, self._evaluator.standing, seconds)
        for observer in self._observers:
            observer.look(snapshot, decision)
        self._close_trials(snapshot)
        return judgement, decision

    def advised_by(self, advisor: Advisor) -> None:
        """Ask `advisor` in every look what it would have."""
        self._advisor = advisor

    def _close_trials(self, snapshot: Snapshot) -> None:
        """Arms that have ended: into the journal first, then to the study."""
        trials = self._advisor.over(snapshot) if self._advisor is not None else ()
        if trials and self._advisor is not None:
            rows = [(EntryKind.trial, trial.model_dump(mode="json")) for trial in trials]
            self._journal.append(rows, snapshot.at)
            try:
                self._advisor.tell(trials)
            except Exception as error:  # the journal has them: the next start tells the study
                log.warning("the study could not be told: %s", error)

    def _wished(self, snapshot: Snapshot) -> Snapshot:
        if self._advisor is None:
            return snapshot
        try:
            wish = self._advisor.wish(snapshot)
        except Exception as error:  # a broken study must not stop a guard
            log.warning("no wish from the tuner: %s", error)
            return snapshot
        return snapshot if wish is None else snapshot.model_copy(update={"wish": wish})

    def watched_by(self, observer: Observer) -> None:
        """Tell `observer` of every look from now on, and close it at the end."""
        self._observers.append(observer)

    def told(self, channel: str, result: str) -> None:
        """Count what became of a notice; may be called from any thread."""
        if self._telemetry is not None:
            self._telemetry.told(channel, result)

    def run(
        self,
        interval: float,
        stop: threading.Event,
        port: int | None = None,
        pause: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        """Look every `interval` seconds until `stop` is set or the trainer has ended; metrics on `port` while leading.

        `pause` waits for `stop` or so many seconds, or shorter if it knows of a reason.

        A controller that loses its lease, or cannot write its journal, does nothing from that moment on but try to take
        the lease again; when it gets it, it carries on from the journal.
        """
        told = ""
        while not stop.is_set():
            started = time.monotonic()
            try:
                if not self._journal.leads:
                    self.attach()
                    if port is not None:
                        log.info("metrics on http://127.0.0.1:%d/metrics", self.export(port))
                _, decision = self.tick()
            except JournalError as error:
                self._journal.resign()
                self._silence()
                if told != (told := str(error).partition(";")[0]):  # after it stands what changes every time
                    log.warning("read-only, tries again every %g s: %s", interval, error)
            else:
                if decision.reason != told and decision.kind is not Kind.nothing:
                    log.info("step %s %s: %s", decision.step, decision.kind.value, decision.reason)
                told = decision.reason
            if (observed := self._post.observed()[0]) is not None and observed.finished:
                break
            pause(stop, max(0.0, interval - (time.monotonic() - started)))
        self._end("asked to stop" if stop.is_set() else "the run has ended")

    def _end(self, reason: str) -> None:
        if self._journal.leads:
            try:
                self._journal.append([(EntryKind.stop, {"reason": reason})], self._clock())
            except JournalError as error:
                log.warning("the end could not be written down: %s", error)
            self._journal.resign()
        for observer in self._observers:
            observer.close()
        self._silence()

    def _silence(self) -> None:
        """Stop exporting: only who leads a run speaks for it."""
        if self._telemetry is not None:
            self._telemetry.close()
            self._telemetry = None

    def _look(self) -> Snapshot:
        errors: list[str] = []
        sampled_at, metrics, signals = None, {}, {}
        try:
            sample = self._source.read(SERIES)
            sampled_at, metrics = sample.at, sample.values
            signals = self._signals()
        except SourceError as error:
            errors.append(str(error))
        observed, problem = self._post.observed()
        at = self._clock()
        approvals, orders = self._post.said(at)
        snapshot = Snapshot(
            at=at,
            sampled_at=sampled_at,
            metrics=metrics,
            observed=observed,
            signals=signals,
            errors=(*errors, problem) if problem else tuple(errors),
            approvals=approvals,
            orders=orders,
        )
        return self._wished(snapshot)

    def _signals(self) -> dict[str, float]:
        queries = self._policy.queries
        if not queries:
            return {}
        if not isinstance(self._source, QuerySource):
            raise SourceError(f"signal {next(iter(queries))} has a query, which needs --prometheus")
        return self._source.ask(queries)

    def _recall(self) -> Action | None:
        """Feed the journal to the evaluator; the action that still waits for an answer, with what it was decided on."""
        self._action, after, count = None, 0, 0
        if found := shortcut.load(self._rundir.shortcut, self._evaluator, self._journal):
            self._evaluator, self._action, after = found.evaluator, found.action, found.seq
        for entry in self._journal.entries(after=after, kind=EntryKind.look):
            snapshot = Snapshot.model_validate(entry.body["snapshot"])
            decision = Decision.model_validate(entry.body["decision"])
            self._evaluator.recall(snapshot, decision)
            self._action = (decision, snapshot.observed) if decision.kind is Kind.act else self._action
            count += 1
            if count % shortcut.EVERY == 0:
                shortcut.save(self._rundir.shortcut, self._evaluator, self._action, entry)
        if after or count:
            log.info("carries on from the journal; %d looks folded%s", count, " after a shortcut" if after else "")
        self._since_shortcut = count % shortcut.EVERY
        self._recall_trials()
        action = self._action
        return action if action and self._evaluator.standing.pending == action[0] else None

    def _recall_trials(self) -> None:
        if self._advisor is None:
            return
        bodies = [entry.body for entry in self._journal.entries(kind=EntryKind.trial)]
        try:
            self._advisor.recall(bodies)
        except Exception as error:  # probes can wait; the guard cannot
            log.warning("the study of this run cannot be used: %s", error)

    def _publish(self, decision: Decision, observed: Observed | None) -> None:
        if observed is None or decision.change is None or decision.decision_id is None or decision.generation is None:
            return
        document = Desired(
            run_uid=observed.run_uid,
            incarnation=observed.incarnation,
            epoch=self._epoch,
            generation=decision.generation,
            base_generation=decision.base_generation or 0,
            decision_id=decision.decision_id,
            issued_at=self._clock(),
            expires_at_step=decision.expires_at_step or observed.step,
            set=decision.change.set,
            lease=decision.lease,
            action=decision.change.action,
            target=decision.change.target,
            probe=decision.change.probe,
            reason=decision.reason,
            evidence=decision.evidence,
        ).signed(self._key())
        body = {
            "decision_id": document.decision_id,
            "document": document.model_dump(mode="json", exclude={"signature"}),
        }
        self._journal.append([(EntryKind.published, body)], self._clock())
        if not self._post.publish(document):
            raise LeaseLostError(f"a controller with an epoch above {self._epoch} has published; this one is read-only")

    def _key(self) -> bytes:
        try:
            return read_key(self._rundir)
        except (OSError, ValueError) as error:
            raise ControlError(f"changing a run needs the key that its trainer wrote: {error}") from None

    def _autonomy(self) -> str:
        if not self._policy.autonomy:
            return "observes only"
        return ", ".join(f"{family.value}: {level.name}" for family, level in self._policy.autonomy.items())


def _body(snapshot: Snapshot, judgement: Judgement, decision: Decision) -> dict[str, Any]:
    body: dict[str, Any] = {
        "snapshot": snapshot.model_dump(mode="json"),
        "decision": decision.model_dump(mode="json"),
        "findings": {name: {**asdict(f), "outcome": f.outcome.value} for name, f in judgement.findings.items()},
    }
    if judgement.forecast_is_new and judgement.forecast is not None:
        body["forecast"] = judgement.forecast.model_dump(mode="json")
    return body
