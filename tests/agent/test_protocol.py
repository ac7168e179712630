"""The protocol under everything that a bad network, a bad controller and a crashing trainer can do to it."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from controlplane.agent import BoundaryState, Directive
from controlplane.agent.memory import recall
from controlplane.contract.documents import AckState, Action, Desired, Lease, Setting, Target
from controlplane.contract.rundir import RunDir, read_lines
from tests.agent.house import GOOD, RAILS, VALUES, MemoryMailbox, desired, make_agent, send

RAILS_WITH_COOLDOWN = RAILS.model_copy(update={"cooldown_steps": 2})
TO_GOOD = {"action": Action.rollback, "target": Target(step=3, digest="good-3")}


class Protocol(RuleBasedStateMachine):
    """One run: documents of every kind arrive in any order, boundaries happen, processes die."""

    def __init__(self) -> None:
        super().__init__()
        self.rundir = RunDir(Path(tempfile.mkdtemp()))
        self.mailbox = MemoryMailbox()
        self.values = dict(VALUES)
        self.step, self.branch = 10, 0
        self.documents: dict[str, Desired] = {}
        self.handed_out: list[str] = []
        self.epochs = [0]
        self.leases: dict[str, tuple[int, float]] = {}
        self.rollbacks = 0
        self.poisoned = False
        self.open()

    def open(self) -> None:
        self.agent = make_agent(self.rundir, self.mailbox, rails=RAILS_WITH_COOLDOWN)
        self.values = self.agent.values
        self.poisoned = False

    def teardown(self) -> None:
        self.agent.close()
        shutil.rmtree(self.rundir.root)

    # The controller, sane and otherwise

    @rule(
        generation=st.integers(-2, 3),
        base=st.sampled_from([0, 0, 0, 0, -1, 1]),
        epoch=st.sampled_from([0, 0, 0, 0, 1, -1]),
        start=st.integers(-1, 3),
        lifetime=st.integers(-2, 8),
        setting=st.none()
        | st.builds(Setting, scale=st.floats(0.01, 100))
        | st.builds(Setting, value=st.floats(-50, 50)),
        name=st.sampled_from(sorted(VALUES)),
        lease=st.none() | st.integers(0, 6),
        rollback=st.sampled_from([False, False, False, True]),
        stranger=st.sampled_from([False] * 9 + [True]),
    )
    def publish(
        self,
        generation: int,
        base: int,
        epoch: int,
        start: int,
        lifetime: int,
        setting: Setting | None,
        name: str,
        lease: int | None,
        rollback: bool,
        stranger: bool,
    ) -> None:
        """A document, more or less right. Whatever lay in the mailbox before is lost."""
        applied = self.agent._memory.applied_generation
        based = max(0, applied + base)
        document = desired(
            self.agent,
            f"d{len(self.documents) + 1}",
            epoch=max(0, self.epochs[-1] + epoch),
            generation=max(based + 1, self.agent._memory.newest_generation + generation),
            base_generation=based,
            apply_from_step=max(0, self.step + start),
            expires_at_step=max(0, self.step + lifetime),
            set={name: setting} if setting else {},
            lease=None if lease is None else Lease(until_step=self.step + lease, revert_to={name: VALUES[name]}),
            **(TO_GOOD if rollback else {}),
            **({"incarnation": "stranger"} if stranger else {}),
        )
        self.documents[document.decision_id] = document
        send(self.mailbox, self.rundir, document)

    @rule(pick=st.randoms(use_true_random=False))
    def deliver_an_old_document_again(self, pick: "st.Random") -> None:  # type: ignore[name-defined]
        """A late, duplicate or reordered one, readdressed to the process that runs now."""
        if self.documents:
            old = pick.choice(list(self.documents.values()))
            send(self.mailbox, self.rundir, old.model_copy(update={"incarnation": self.agent.incarnation}))

    @rule(data=st.binary(max_size=20))
    def deliver_rubbish(self, data: bytes) -> None:
        self.mailbox.desired = data

    # The trainer

    @rule(answer=st.sampled_from(["applied"] * 5 + ["rejected", "failed", "crash"]), steps=st.integers(0, 2))
    def boundary(self, answer: str, steps: int) -> None:
        self.step += steps
        boundary = BoundaryState(self.step, self.branch, float(self.step), dict(self.values), (GOOD,))
        before = self.agent._memory
        directive = self.agent.boundary(boundary)
        lapsed = {name for name, (until, _) in self.leases.items() if self.step > until}
        if directive is None:
            assert not lapsed, "a lease has lapsed and nothing is done about it"
            return
        revert = directive.decision_id in before.answers
        if revert:
            self.check_revert(directive, lapsed)
        else:
            self.check_document(directive, lapsed)
        if answer == "crash":
            self.rollbacks += directive.action is Action.rollback
            self.open()
        else:
            self.answer(directive, AckState(answer), revert)

    def check_revert(self, directive: Directive, lapsed: set[str]) -> None:
        assert directive.values
        assert directive.values.keys() <= lapsed
        assert directive.action is Action.none
        for name, value in directive.values.items():
            assert value == self.leases[name][1]

    def check_document(self, directive: Directive, lapsed: set[str]) -> None:
        document = self.documents[directive.decision_id]
        assert directive.decision_id not in self.handed_out, "a decision is handed out twice"
        self.handed_out.append(directive.decision_id)
        assert document.epoch >= max(self.epochs), "a lower epoch was applied"
        self.epochs.append(document.epoch)
        assert document.apply_from_step <= self.step <= document.expires_at_step
        assert document.base_generation == self.agent._memory.applied_generation
        assert lapsed <= {*document.set, *(document.lease.revert_to if document.lease else ())}
        assert not self.poisoned
        if directive.action is Action.rollback:
            assert self.rollbacks < RAILS.max_rollbacks
        for name, value in directive.values.items():
            bounds, now = RAILS.of(name), self.values[name]
            assert bounds.min <= value <= bounds.max
            assert now / 2 - 1e-9 <= value <= max(now * 2, now + 1) + 1e-9 or abs(value - now) <= 1

    def answer(self, directive: Directive, state: AckState, revert: bool) -> None:
        if state is AckState.applied:
            self.values |= directive.values
            if directive.action is Action.rollback:
                rewound = self.step - GOOD.step
                self.leases = {name: (until - rewound, value) for name, (until, value) in self.leases.items()}
                self.step, self.branch = GOOD.step, self.branch + 1
            self.note_leases(directive, revert)
        self.rollbacks += directive.action is Action.rollback and state is not AckState.rejected
        self.poisoned |= directive.action is Action.rollback and state is AckState.failed
        readback = {name: self.values[name] for name in directive.values}
        self.agent.acknowledge(directive, state, self.step, readback, "as the test wants it")

    def note_leases(self, directive: Directive, revert: bool) -> None:
        for name in directive.values:
            self.leases.pop(name, None)
        document = self.documents[directive.decision_id]
        if document.lease and not revert:
            for name, value in document.lease.revert_to.items():
                self.leases[name] = (document.lease.until_step, value)

    @rule()
    def restart(self) -> None:
        pending = self.agent._memory.unanswered
        self.rollbacks += sum(open_.action is Action.rollback for open_ in pending.values())
        self.open()

    # What always holds

    @invariant()
    def values_are_inside_the_rails_and_known(self) -> None:
        assert self.agent.values == self.values
        for name, value in self.values.items():
            assert RAILS.of(name).min <= value <= RAILS.of(name).max

    @invariant()
    def epoch_and_rollbacks_never_go_back(self) -> None:
        memory = self.agent._memory
        assert memory.epoch >= max(self.epochs)
        self.epochs.append(memory.epoch)
        assert memory.rollbacks == self.rollbacks

    @invariant()
    def memory_is_what_the_journal_says(self) -> None:
        assert recall(read_lines(self.rundir.control_log)) == self.agent._memory


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
