"""The agent: what a trainer calls on rank 0 to be watched and steered. It owns no loop and never stops the trainer's.

    for each optimiser step:
        agent.step(report)                                   -> /metrics
        directive = agent.boundary(state)                    <- newest valid document, or a lapsed lease
        if directive: ... carry it out ...; agent.acknowledge(directive, AckState.applied, step, readback)

Every change of the protocol's state is a record in `control.jsonl`, folded by `Memory`; a restarted agent folds the same
file and re-asserts what was in force. A decision is applied at most once: a document names the process start
(`incarnation`) it is meant for, so a new process refuses what an old one was handed, and a decision id that was ever
answered is only answered again, in the same way.
"""

import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace

from controlplane.agent import restart
from controlplane.agent.answers import HandedOut, ack_of, answered, observed
from controlplane.agent.boundary import BoundaryState, Directive
from controlplane.agent.checks import check_answer, check_values
from controlplane.agent.exporter import Exporter, trainer_metrics
from controlplane.agent.exposition import Store
from controlplane.agent.gpus import GpuReader
from controlplane.agent.guardrails import GuardRails, Refusal, Situation, Wait, admit
from controlplane.agent.mailbox import Courier, DirectoryMailbox, Journal, Mailbox, ensure_key
from controlplane.agent.memory import Answered, Changed, Memory, Record, Started, recall
from controlplane.agent.ranks import Alone, Check, Lead, Ranks, anything
from controlplane.contract.documents import AckState, Action, Desired, Phase
from controlplane.contract.metrics import GPU
from controlplane.contract.reports import CheckpointReport, EvalReport, StepReport
from controlplane.contract.rundir import RunDir, RunInfo, read_lines, write_atomic

log = logging.getLogger(__name__)


class Agent:
    """Exporter, mailbox and guard rails of one trainer process. All methods belong to the training thread.

    Args:
        rundir: where the run lives; `control/key` and `target.json` are written here.
        info: identity of the run.
        values: every tunable of this trainer as its recipe has it.
        rails: the limits that no controller can loosen.
        actions: what the trainer can carry out.
        host: interface of `/metrics`; anything but loopback shows the metrics to the network.
        port: 0 takes a free port, None serves nothing (and writes no target file).
        mailbox: transport of the documents; the control directory when None.
        token_limit: longest completion in tokens, added to the length buckets.
        poll_seconds: how often the mailbox is looked at, in a thread; None looks at each boundary instead, which
            makes a simulation deterministic and has no place in a real run.
        clock: Unix seconds; a simulation passes its own.
        ranks: the other processes of this trainer; each of them has a `Follower`.
        check: what stands in the way of a directive on this rank, beyond the rails; nothing by default.
        resumed_at: step of the checkpoint that this process has started from, where the trainer rolls back by ending (`leave`).

    Raises:
        ValueError: a tunable is unknown or outside its rails, or a file in the control directory is damaged.
    """

    def __init__(
        self,
        rundir: RunDir,
        info: RunInfo,
        values: Mapping[str, float],
        rails: GuardRails,
        actions: tuple[Action, ...],
        *,
        host: str = "127.0.0.1",
        port: int | None = 0,
        mailbox: Mailbox | None = None,
        token_limit: int | None = None,
        poll_seconds: float | None = 0.1,
        clock: Callable[[], float] = time.time,
        ranks: Ranks | None = None,
        check: Check = anything,
        resumed_at: int | None = None,
    ) -> None:
        check_values(values, rails)
        self.incarnation = str(uuid.uuid4())
        self._rundir, self._info, self._rails, self._actions, self._clock = rundir, info, rails, actions, clock
        self._pending: dict[str, Desired] = {}
        self._out: HandedOut | None = None
        self._state: BoundaryState | None = None
        self._closed = False

        key = ensure_key(rundir)
        journal = Journal(rundir.control_log)
        self.store = Store((*trainer_metrics(token_limit), *GPU))
        self._gpus = GpuReader(self.store)
        self._exporter = Exporter(self.store, info, self.incarnation, clock)
        self._courier = Courier(
            mailbox or DirectoryMailbox(rundir),
            journal,
            key,
            (info.run_uid, self.incarnation),
            clock,
            on_unreadable=lambda: self.store.inc("rl_trainer_control_messages_total", state="rejected"),
        )
        self._memory = Memory()
        self._restart(values, resumed_at)
        self._last_ack = self._memory.last_ack
        self._lead = Lead(ranks or Alone(), check)
        self._lead.start(self.values)
        self.port = self._serve(host, port)
        self._threaded = poll_seconds is not None
        if poll_seconds is not None:
            self._courier.start(poll_seconds)
            self._gpus.start()

    @property
    def values(self) -> dict[str, float]:
        """Tunables in force; at the start of a process, those that the trainer has to begin with."""
        return dict(self._memory.values)

    @property
    def rolled_back(self) -> int:
        """Rollbacks of this run so far: the branch, for a trainer that does not count its own."""
        return self._memory.rolled_back

    def phase(self, phase: Phase) -> None:
        """The trainer does something else now."""
        self._exporter.phase(phase)

    def step(self, report: StepReport) -> None:
        """An optimiser step has ended."""
        if (busy := self._gpus.utilization()) is not None:
            report = replace(report, utilization={**report.utilization, "process": busy})
        self._exporter.step(report)

    def evaluation(self, report: EvalReport) -> None:
        """A held-out evaluation has ended."""
        self._exporter.evaluation(report)

    def checkpoint(self, report: CheckpointReport) -> None:
        """A checkpoint was written, or could not be."""
        self._exporter.checkpoint(report)

    def boundary(self, state: BoundaryState) -> Directive | None:
        """What to do at this step boundary, if anything. Memory only: never waits for disk or network.

        A directive has to be acknowledged before the next one is handed out. While paused, call this again and again.
        """
        if state.values.keys() != self._memory.values.keys():
            raise ValueError(
                f"boundary names the tunables {sorted(state.values)}, the agent {sorted(self._memory.values)}"
            )
        self._state = state
        if not self._threaded:
            self._courier.turn(self._courier.collect)
        self._notice_changes(state)
        directive = self._agreed(self._decide(state), state)
        self._exporter.retained(state.checkpoints)
        self._exporter.tunables(state.values)
        self._publish()
        return directive

    def acknowledge(
        self, directive: Directive, state: AckState, at_step: int, readback: Mapping[str, float], reason: str = ""
    ) -> None:
        """What became of a directive: applied, rejected or failed, with the values in force after it.

        Written to the journal and flushed to the disk, then shown. A failed rollback poisons this process, and so do ranks
        that differ: only `stop` is accepted after it, because nobody knows what is in force.

        Raises:
            RuntimeError: this directive was not handed out, or was acknowledged before.
            ValueError: the state is not one a trainer can give, or `readback` is wrong or incomplete.
        """
        out = self._out
        if out is None or out.directive.decision_id != directive.decision_id:
            raise RuntimeError(f"acknowledge: decision {directive.decision_id} is not handed out")
        check_answer(out.directive, state, readback, self._memory.values)
        split = not self._lead.settle(state, readback)
        if split:
            state, reason = AckState.failed, f"the ranks of the trainer differ after it; rank 0 says {state}: {reason}"
        answer = answered(out, state, at_step, readback, reason, self._memory.values, self._rails, self._clock())
        self._record(answer.model_copy(update={"split": split}))
        self._out = None
        try:
            self._courier.flush()
        except OSError as error:
            log.warning("control journal: %s; the courier tries again", error)
        if self._state is not None:
            self._state = replace(self._state, values=self.values)
        self._exporter.tunables(self._memory.values)
        self._publish()
        self._courier.wake()

    def leave(self, directive: Directive, checkpoint: str) -> int:
        """Carry out a rollback by ending: the exit code with which the trainer has to end now, in place of `acknowledge`.

        `scalerl supervise` then starts it again from `checkpoint`, which is what its own resume flag takes, and the agent
        of the new process answers the decision. If that process comes up elsewhere, or none does, the rollback has failed.

        Raises:
            RuntimeError: this directive was not handed out.
            ValueError: it is not a rollback.
            OSError: it could not be written down; acknowledge it as failed.
        """
        out = self._out
        if out is None or out.directive.decision_id != directive.decision_id:
            raise RuntimeError(f"leave: decision {directive.decision_id} is not handed out")
        if directive.target is None:
            raise ValueError("leave: only a rollback needs the trainer to be started again")
        self._courier.flush()
        restart.write(self._rundir, self._info.run_uid, directive, checkpoint, out.step)
        return restart.RESUME_EXIT

    def close(self) -> None:
        """Say that the trainer has stopped, and take down server and target file. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self.phase(Phase.stopped)
        if self._state is not None:
            self._state = replace(self._state, phase=Phase.stopped)
            self._publish()
        self._courier.stop()
        self._gpus.stop()
        if self.port:
            self.store.close()
            self._rundir.target.unlink(missing_ok=True)

    # Start

    def _restart(self, values: Mapping[str, float], resumed_at: int | None) -> None:
        """Fold the journal, close what the last process left open, and settle which values are in force."""
        memory = self._memory = recall(read_lines(self._rundir.control_log))
        step = memory.last_ack.at_step if memory.last_ack else 0
        left = restart.read(self._rundir)
        for open_ in memory.unanswered.values():
            self._record(restart.closing(open_, left, resumed_at, memory.values, step, self._clock()))
        self._record(Started(at=self._clock(), incarnation=self.incarnation, values=dict(values)))
        # A person who edits the recipe means it; otherwise what was applied last goes on, inside the rails of today.
        kept = {name: self._rails.inside(name, value) for name, value in self._memory.values.items()}
        edited = {name: value for name, value in values.items() if memory.recipe.get(name, value) != value}
        self._change({**kept, **edited}, step=None)
        self._exporter.tunables(self._memory.values)
        self.store.set("rl_trainer_control_generation", self._memory.applied_generation)
        self._courier.flush()
        self._rundir.resume.unlink(missing_ok=True)  # answered, and on the disk

    def _serve(self, host: str, port: int | None) -> int:
        if port is None:
            return 0
        port = self.store.serve(host, port)
        labels = {"job": "scalerl-trainer", "run": self._info.name}
        write_atomic(self._rundir.target, json.dumps([{"targets": [f"{host}:{port}"], "labels": labels}]) + "\n")
        return port

    # Boundary

    def _decide(self, state: BoundaryState) -> Directive | None:
        self._receive(state)
        if self._out is not None:
            log.warning("control: decision %s is not acknowledged yet", self._out.directive.decision_id)
            return None
        desired, directive = self._newest_valid(state)
        reverted = self._lapsed(state)
        if reverted and not (desired and directive and reverted.values.keys() <= _touched(desired)):
            self._out = HandedOut(reverted, None, state.step)
            return reverted
        if desired and directive:
            del self._pending[desired.decision_id]
            self._out = HandedOut(directive, desired, state.step)
        return directive

    def _agreed(self, directive: Directive | None, state: BoundaryState) -> Directive | None:
        """The directive, if every rank of the trainer accepts it; otherwise it is answered and handed out nowhere."""
        objection = self._lead.propose(directive, state)
        if not objection:
            return directive
        out, self._out = self._out, None
        if out is not None and out.desired is not None:
            self._refuse(out.desired, Refusal(objection), state.step)
        else:
            log.warning("control: a lease cannot be reverted yet: %s", objection)
        return None

    def _receive(self, state: BoundaryState) -> None:
        if complaint := self._courier.complaint():
            self._last_ack = complaint.model_copy(update={"at_step": state.step})
        for desired, received in self._courier.take():
            self._memory = self._memory.after(received)
            if answer := self._memory.answers.get(desired.decision_id):
                self._last_ack = answer
            elif self._out is None or self._out.directive.decision_id != desired.decision_id:
                self._pending.setdefault(desired.decision_id, desired)

    def _newest_valid(self, state: BoundaryState) -> tuple[Desired | None, Directive | None]:
        """Answer every document but the newest valid one. Returns it, with its directive when its step has come."""
        chosen: Desired | None = None
        directive: Directive | None = None
        for desired in sorted(self._pending.values(), key=lambda each: (-each.epoch, -each.generation)):
            situation = Situation(self._info.run_uid, self.incarnation, self._actions, state, self._memory)
            verdict = admit(desired, situation, self._rails)
            if chosen and not isinstance(verdict, Refusal):
                verdict = Refusal(f"superseded by decision {chosen.decision_id} with generation {chosen.generation}")
            if isinstance(verdict, Refusal):
                del self._pending[desired.decision_id]
                self._refuse(desired, verdict, state.step)
                continue
            chosen = desired
            if isinstance(verdict, Directive):
                directive = verdict
            elif isinstance(verdict, Wait) and self._memory.waiting != desired.decision_id:
                reason = f"waits for step {desired.apply_from_step}"
                ack = ack_of(desired, AckState.accepted, state.step, reason)
                self._record(Answered(at=self._clock(), ack=ack, action=desired.action, epoch=desired.epoch))
        return chosen, directive

    def _refuse(self, desired: Desired, refusal: Refusal, step: int) -> None:
        ack = ack_of(desired, refusal.state, step, refusal.reason)
        epoch = None if refusal.fenced else desired.epoch
        self._record(Answered(at=self._clock(), ack=ack, action=desired.action, epoch=epoch))

    def _lapsed(self, state: BoundaryState) -> Directive | None:
        """The directive that sets back what a lease without renewal has changed."""
        lapsed = self._memory.lapsed(state.step)
        if not lapsed:
            return None
        lease = next(iter(lapsed.values()))
        return Directive(
            decision_id=lease.decision_id,
            generation=lease.generation,
            values={name: self._rails.inside(name, leased.value) for name, leased in lapsed.items()},
            reason=f"the lease of decision {lease.decision_id} ended at step {lease.until_step} without renewal",
        )

    def _notice_changes(self, state: BoundaryState) -> None:
        if self._out is None:
            self._change(state.values, step=state.step)

    def _change(self, values: Mapping[str, float], step: int | None) -> None:
        """Record tunables that somebody other than the controller has changed."""
        before = {name: value for name, value in self._memory.values.items() if values[name] != value}
        if before:
            after = {name: values[name] for name in before}
            self._record(Changed(at=self._clock(), before=before, after=after, step=step))
            self._exporter.tunables(after)
            self._exporter.changed(after, "user")

    # Answers

    def _record(self, record: Record) -> None:
        """The one way in which the state of the protocol changes: remember, journal, show."""
        self._memory = self._memory.after(record)
        self._courier.record(record)
        if not isinstance(record, Answered):
            return
        self._last_ack = record.ack
        rolled_back = record.target_step is not None
        self._exporter.answered(record.ack.state, self._memory.applied_generation, rolled_back)
        changed = [name for name, value in record.after.items() if record.before.get(name) != value]
        self._exporter.changed(changed, record.source)

    def _publish(self) -> None:
        if self._state is not None:
            seen = (self._state, self._memory, self._last_ack, self._rails, self._actions)
            self._courier.post(observed(self._info, self.incarnation, *seen, self._clock()))
        if not self._threaded:
            self._courier.turn(self._courier.deliver)


def _touched(desired: Desired) -> set[str]:
    return {*desired.set, *(desired.lease.revert_to if desired.lease else ())}
