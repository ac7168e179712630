"""A machine that plays network, disk, people and bad luck against the real controller, agent, journal and transport.

Invariants of the design that a controller, an agent and a simulated trainer can break; the trainer's own (a prompt once
per epoch, no stale sample, no non-finite checkpoint) are held by tests/trainer:

1 no action on missing, stale or NaN data      4 rollback only to a good checkpoint, with a change, limited
2 on disk before published, nothing repeated   8 every decision again from the journal, bit for bit
3 values inside the clamps                     9 nothing without the key, nothing from a fenced controller

`SCALERL_MACHINE_EXAMPLES=10000 pytest tests/machine` is the nightly profile.
"""

import os
from collections import Counter

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controlplane.contract.approvals import Approval, Order
from controlplane.contract.documents import Desired, Health, Observed, Said, Setting
from controlplane.contract.rundir import write_atomic
from controlplane.decide import Decision, Kind, Purpose
from controlplane.journal import EntryKind, Journal
from controlplane.post import say
from controlplane.replay import replay
from controlplane.sim.faults import lr_fault, nan, stall
from tests.machine.world import ORDERS, POLICY, RAILS, World

EXAMPLES = int(os.environ.get("SCALERL_MACHINE_EXAMPLES", "12"))
CRASHES = (
    "before the journal", "after the journal", "between journal and document", "after the line of the publication",
)  # fmt: skip


class Machine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.forged: set[str] = set()
        self.people = 0

    @initialize(steps=st.integers(9, 16))
    def begin(self, steps: int) -> None:
        self.world.seat()
        for _ in range(steps):
            self.world.trainer.step()
            self._look(0)

    # The run goes on

    @rule(steps=st.integers(1, 5), watched=st.booleans())
    def steps(self, steps: int, watched: bool) -> None:
        for _ in range(steps):
            self.world.trainer.step()
            if watched:
                self._look(0)

    @rule(fault=st.sampled_from(("nan", "nan", "nans", "lr", "stall")))
    def breaks(self, fault: str) -> None:
        at = self.world.trainer.step_number + 1
        script = {"nan": nan(at), "nans": nan(at, 4), "lr": lr_fault(at, 8, 4), "stall": stall(at, 300)}
        self.world.trainer.inject(script[fault])
        self.world.trainer.step()
        self._look(0)

    @rule(times=st.integers(1, 2), lost=st.booleans())
    def breaks_again_and_again(self, times: int, lost: bool) -> None:
        """The same trouble, each time the run is on its feet again: what is limited comes to its limit. `lost`: the first
        answer to it stays on the way."""
        self.world.seats[-1].post.loses = lost
        for _ in range(times):
            self.world.trainer.inject(nan(self.world.trainer.step_number + 1))
            for _ in range(5):
                self.world.trainer.step()
                self._look(0)

    @rule(
        mode=st.sampled_from(("missing", "stale", "late", "late", "nan")),
        fault=st.sampled_from(("nan", "lr")),
        seen=st.booleans(),
    )
    def breaks_in_the_dark(self, mode: str, fault: str, seen: bool) -> None:
        """The trouble comes while nobody sees the run as it is, or it has just been `seen` when that begins."""
        at = self.world.trainer.step_number + 1
        self.world.trainer.inject(nan(at, 2) if fault == "nan" else lr_fault(at, 8, 4))
        if seen:
            self.world.trainer.step()
            self._look(0)
        self.world.source.mode = mode
        for _ in range(3):
            self.world.trainer.step()
            self._look(0)

    # Looks

    @rule(which=st.integers(0, 2))
    def tick(self, which: int) -> None:
        self._look(which)

    @rule(mode=st.sampled_from(("good", "good", "good", "missing", "stale", "late", "nan")))
    def scrape(self, mode: str) -> None:
        self.world.source.mode = mode

    # Controllers come, go and overlap

    @rule(where=st.sampled_from(CRASHES))
    def controller_dies(self, where: str) -> None:
        seat = self.world.seats[-1]
        if seat.alive:
            seat.journal.dies = where
            self._look(0)
            seat.journal.dies = ""

    @rule(what=st.sampled_from(("starts", "starts", "is killed", "dies after publishing", "loses a publication")))
    def controller(self, what: str) -> None:
        newest = self.world.seats[-1]
        if what == "starts":
            self.world.seat()  # the one before does not know yet
            self._published_again()
        elif what == "is killed" and newest.alive:
            newest.kill()
        elif what == "dies after publishing":
            newest.post.dies = True
        elif what == "loses a publication":
            newest.post.loses = True

    @rule(what=st.sampled_from(("trainer restarts", "clock jumps", "forged word", "forged document")), data=st.data())
    def bad_luck(self, what: str, data: st.DataObject) -> None:
        if what == "trainer restarts":
            self.world.trainer.restart()
        elif what == "clock jumps":
            jump = data.draw(st.sampled_from((-86_400.0, -90.0, -1.0, 30.0, 90.0, 86_400.0)))
            self.world.seats[-1].offset += jump
        else:
            self._forges(told=what == "forged word")

    # Documents and acknowledgements get lost, come twice, come late

    @precondition(lambda self: self.world.documents)
    @rule(data=st.data())
    def document_comes_again(self, data: st.DataObject) -> None:
        newest = sorted(self.world.documents.values(), key=lambda d: (-d.epoch, -d.generation, d.decision_id))
        self.world.arrive(data.draw(st.sampled_from(newest)))

    @precondition(lambda self: self.world.underway)
    @rule(late=st.booleans())
    def publication_arrives_after_all(self, late: bool) -> None:
        """Late: when its step has passed; a trainer that is paused, or has ended, never gets there."""
        document, trainer = self.world.underway.pop(), self.world.trainer
        while late and trainer.step_number <= document.expires_at_step and not trainer.paused and trainer.step():
            pass
        self.world.documents.setdefault(document.decision_id, document)
        self.world.arrive(document)

    @rule()
    def old_controller_writes_past_the_lease(self) -> None:
        """It was between its look and its document when the next one took over; what it writes fits but for the epoch."""
        seen, name = self.world.seen(), f"fenced-{len(self.forged)}"
        if seen.epoch < 2:
            return
        self.forged.add(name)
        self.world.arrive(self._document(seen, name, seen.epoch - 1).signed(self._key()))

    @rule(lost=st.booleans(), steps=st.integers(0, 2), data=st.data())
    def acknowledgement_is_late_or_lost(self, lost: bool, steps: int, data: st.DataObject) -> None:
        """The controller sees no observed document, or an older one, and later the newest again."""
        place, older = self.world.rundir.observed, data.draw(st.sampled_from(range(len(self.world.observed))))
        newest = place.read_bytes()
        if lost:
            place.unlink()
        else:
            place.write_bytes(self.world.observed[older])
        self._look(0, unseen=lost)
        place.write_bytes(newest)
        for _ in range(steps):
            self.world.trainer.step()

    # People, and those who would like to be

    @rule(
        word=st.sampled_from(
            ("approve", "approve", "deny", "approve something else", "pause", "resume", "resume", "checkpoint")
        )
    )
    def people_say(self, word: str) -> None:
        if word in ORDERS:
            self.people += 1
            self._says(Order(order_id=f"order-{self.people}", action=word, by="ann", at=self._now()))
            return
        waiting = self.world.seats[-1].controller._evaluator.standing.waiting
        known = waiting.decision_id if waiting is not None and "else" not in word else "no-such-decision"
        answer = "deny" if word == "deny" else "approve"
        self._says(Approval(decision_id=str(known), answer=answer, by="ann", at=self._now()))

    def _forges(self, told: bool) -> None:
        seen, name = self.world.seen(), f"forged-{len(self.forged)}"
        self.forged.add(name)
        key = b"\1" * 32
        if told:
            word = Order(order_id=name, action="checkpoint", by="mallory", at=self._now())
            said = Said(run_uid=seen.run_uid, word=word).signed(key)
            write_atomic(self.world.rundir.said / f"{name}.json", said.model_dump_json())
            return
        self.world.arrive(self._document(seen, name, seen.epoch).signed(key))

    def _document(self, seen: Observed, name: str, epoch: int) -> Desired:
        """What would be applied now if it came from the right hand."""
        return Desired(
            run_uid=seen.run_uid,
            incarnation=seen.incarnation,
            epoch=epoch,
            generation=seen.applied_generation + 100,
            base_generation=seen.applied_generation,
            decision_id=name,
            issued_at=0.0,
            expires_at_step=seen.step + 100,
            set={"lr_scale": Setting(value=0.9)},
            reason="trust me",
        )

    # What must hold

    @invariant()
    def values_are_inside_the_clamps(self) -> None:
        values = self.world.trainer.values
        for name, clamp in POLICY.clamps.items():
            assert clamp.min <= values[name] <= clamp.max, (name, values)

    @invariant()
    def nothing_happens_twice_unsigned_late_or_from_a_fenced_controller(self) -> None:
        self.world.note()
        answers = self.world.answers()
        applied = [each for each in answers if each["ack"]["state"] == "applied" and each["source"] == "controller"]
        ids = Counter(each["ack"]["decision_id"] for each in applied)
        assert not ids or max(ids.values()) == 1, ids
        assert self.forged.isdisjoint(ids)
        epochs = [each["epoch"] for each in applied]
        assert epochs == sorted(epochs), epochs
        for each in applied:
            document = self.world.documents.get(each["ack"]["decision_id"])
            if document is not None:
                assert each["handed_out_at"] <= document.expires_at_step, each
                assert document.verified(self._key()), each

    @invariant()
    def rollbacks_go_to_good_checkpoints_change_something_and_are_limited(self) -> None:
        rollbacks = self.world.trainer.rollbacks
        assert len(rollbacks) <= min(RAILS.max_rollbacks, POLICY.budget.max_rollbacks)
        for health, before, asked in rollbacks:
            assert health is Health.good
            assert any(before[name] != value for name, value in asked.items()), (before, asked)

    @invariant()
    def no_rule_acts_more_often_than_it_may(self) -> None:
        done = Counter(decision.rule for decision in self._applied() if decision.purpose is Purpose.answer)
        for rule_ in POLICY.rules:
            assert done[rule_.name] <= rule_.limits.max_per_run, (rule_.name, done)
        assert done.total() <= POLICY.budget.max_actions

    @invariant()
    def a_lease_that_is_over_has_been_taken_back(self) -> None:
        """Unless something newer holds the value, or a rollback has moved the steps that it counts in."""
        answers = self.world.answers()
        for index, each in enumerate(answers):
            if each["lease"] is None or each["ack"]["state"] != "applied":
                continue
            later = answers[index + 1 :]
            if any(one["after"] != one["before"] or one["action"] == "rollback" for one in later):
                continue
            step, until = self.world.trainer.step_number, each["lease"]["until_step"]
            assert step <= until + 1, (step, each)

    @invariant()
    def what_is_published_was_written_down_before(self) -> None:
        if not self.world.rundir.desired.exists():
            return
        document = Desired.model_validate_json(self.world.rundir.desired.read_bytes())
        if document.decision_id in self.forged:
            return
        journal = self.world.journal()
        published = {e.body["decision_id"] for e in journal if e.kind is EntryKind.published}
        assert self.world.documents.keys() - self.forged <= published
        decided = {e.body["decision"]["decision_id"] for e in journal if e.kind is EntryKind.look}
        assert document.decision_id in published
        assert document.decision_id in decided

    def teardown(self) -> None:
        try:
            self._every_decision_comes_out_again()
        finally:
            self.world.close()

    def _every_decision_comes_out_again(self) -> None:
        if not self.world.rundir.journal.exists():
            return
        journal = Journal(self.world.rundir.journal, read_only=True)
        try:
            journal.verify()
            assert list(journal.entries()) == self.world.journal()  # nothing that was read has changed since
            result = replay(journal)
        finally:
            journal.close()
        assert result.differences == (), [d.fields() for d in result.differences[:3]]

    # Helpers

    def _look(self, which: int, unseen: bool = False) -> None:
        """The newest controller but `which` looks, if it lives."""
        seats = self.world.seats
        if which >= len(seats) or not seats[-1 - which].alive:
            return
        seat, mode = seats[-1 - which], self.world.source.mode
        before = self.world.trainer.now + seat.offset
        evaluator = seat.controller._evaluator
        result = seat.tick()
        if result is None:
            return
        judgement, decision = result
        if decision.kind is Kind.act and decision.purpose is not Purpose.order:
            age = before - self.world.source.seen_at
            assert age <= POLICY.freshness.max_age_seconds, (mode, age, decision)
            assert not unseen, decision
            assert decision.decision_id
        long_blind = judgement.stale and judgement.blind_seconds > POLICY.freshness.max_age_seconds
        ended = decision.kind is Kind.act or "has stopped" in decision.reason
        if long_blind and not ended:
            assert "stale" in evaluator.standing.said or decision.rule == "stale", decision

    def _applied(self) -> list[Decision]:
        """What controllers decided and the trainer carried out, in order."""
        decided = {
            entry.body["decision"]["decision_id"]: entry.body["decision"]
            for entry in self.world.journal()
            if entry.kind is EntryKind.look and entry.body["decision"]["decision_id"]
        }
        done = [each["ack"] for each in self.world.answers() if each["source"] == "controller"]
        ids = [ack["decision_id"] for ack in done if ack["state"] == "applied" and ack["decision_id"] in decided]
        return [Decision.model_validate(decided[name]) for name in ids]

    def _published_again(self) -> None:
        """A controller that starts publishes what still waits for an answer: nothing is lost by a crash."""
        seat = self.world.seats[-1]
        pending = seat.controller._evaluator.standing.pending if seat.alive else None
        if pending is not None:
            assert (
                Desired.model_validate_json(self.world.rundir.desired.read_bytes()).decision_id == pending.decision_id
            )

    def _says(self, word: Approval | Order) -> None:
        say(self.world.rundir, word)

    def _now(self) -> float:
        return self.world.trainer.now + self.world.seats[-1].offset

    def _key(self) -> bytes:
        return bytes.fromhex(self.world.rundir.key.read_text().strip())


Machine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink) if EXAMPLES > 100 else (Phase.explicit, Phase.generate),
    derandomize=EXAMPLES <= 100,
)
TestMachine = Machine.TestCase
