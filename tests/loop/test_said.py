"""What people say reaches the trainer through the controller, once, written down, whatever dies on the way."""

from pathlib import Path

from controlplane.contract.approvals import Approval, Order
from controlplane.contract.documents import AckState, Desired
from controlplane.contract.rundir import read_lines
from controlplane.decide import Kind
from controlplane.journal import EntryKind
from controlplane.policy.models import Approval as Approvals
from controlplane.policy.models import Family
from controlplane.post import say
from controlplane.replay import replay
from controlplane.sim.faults import lr_fault
from tests.loop.simulated import Bench


def ordered(bench: Bench, action: str, name: str) -> None:
    say(bench.rundir, Order(order_id=name, action=action, by="ann", at=bench.trainer.now, reason="lunch"))  # type: ignore[arg-type]


def steps(bench: Bench, number: int) -> None:
    for _ in range(number):
        bench.step()


def test_a_person_pauses_and_resumes_a_run_that_is_only_observed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1, at_most="observe")
    steps(bench, 5)
    ordered(bench, "pause", "o1")
    steps(bench, 4)
    assert bench.trainer.paused
    step = bench.trainer.step_number
    ordered(bench, "resume", "o2")
    steps(bench, 4)
    assert not bench.trainer.paused
    assert bench.trainer.step_number > step
    acts = bench.of(Kind.act)
    assert [(d.decision_id, "ann" in d.reason) for d in acts] == [("o1", True), ("o2", True)]
    assert list(bench.rundir.said.iterdir()) == []
    assert replay(bench.journal).differences == ()
    bench.close()


def test_a_controller_killed_at_any_look_carries_an_order_out_once(tmp_path: Path) -> None:
    for kill_at in range(4):
        bench = Bench(tmp_path / str(kill_at), 1, at_most="observe")
        steps(bench, 3)
        ordered(bench, "checkpoint", "save")
        for look in range(5):
            if look == kill_at:
                bench.kill()
                bench.controller = bench.start()
            bench.step()
        acks = [line["ack"] for line in read_lines(bench.rundir.control_log) if line["event"] == "answered"]
        assert [(ack["decision_id"], ack["state"]) for ack in acks] == [("save", AckState.applied)]
        looks = [e.body["decision"] for e in bench.journal.entries(kind=EntryKind.look)]
        assert [d["decision_id"] for d in looks if d["kind"] == "act"] == ["save"]
        assert Desired.model_validate_json(bench.rundir.desired.read_bytes()).decision_id == "save"
        bench.close()


def test_an_action_that_needs_a_person_waits_for_the_answer_and_is_then_carried_out_once(tmp_path: Path) -> None:
    for verdict in ("approve", "deny"):
        bench = Bench(tmp_path / verdict, 1, (lr_fault(60, 20, steps=200),), planned=120)
        policy = bench.controller._policy
        bench.controller._policy = policy.model_copy(update={"approval": Approvals(required_for=tuple(Family))})
        bench.controller.attach()
        while not bench.of(Kind.waiting):
            bench.step()
        (asked,) = bench.of(Kind.waiting)
        steps(bench, 3)
        assert bench.of(Kind.act) == []
        assert asked.decision_id is not None
        say(bench.rundir, Approval(decision_id=asked.decision_id, answer=verdict, by="ann", at=bench.trainer.now))  # type: ignore[arg-type]
        steps(bench, 6)
        assert len(bench.of(Kind.act)) == (1 if verdict == "approve" else 0)
        assert bench.trainer.branch == (1 if verdict == "approve" else 0)
        assert any("ann" in decision.reason or decision.approved_by == "ann" for decision in bench.decisions)
        bench.close()
