"""What people say reaches the trainer through the controller, once, written down, whatever dies on the way."""

from pathlib import Path

from controlplane.contract.approvals import Order
from controlplane.contract.documents import AckState, Desired
from controlplane.contract.rundir import read_lines
from controlplane.decide import Kind
from controlplane.journal import EntryKind
from controlplane.post import say
from controlplane.replay import replay
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
