"""What every transport of documents must do. Directory and HTTP, one list of rules."""

import pytest

from controlplane.contract.documents import AckState, Observed
from tests.agent.house import desired, state
from tests.post.conftest import DirectoryLine, HttpLine, Line, wait_for


def applied(line: Line, agent: object, decision: str = "d1", **changes: object) -> None:
    """One decision there and its answer back."""
    document = desired(agent, decision, **{"scale": 0.5, **changes})  # type: ignore[arg-type]
    line.publish(document)
    directive = agent.boundary(state(agent))  # type: ignore[attr-defined,arg-type]
    assert directive is not None
    agent.acknowledge(directive, AckState.applied, 10, directive.values)  # type: ignore[attr-defined]


def test_a_decision_goes_there_and_its_answer_comes_back(line: Line) -> None:
    agent = line.agent()
    assert agent.boundary(state(agent)) is None
    assert line.observed().step == 10
    applied(line, agent)
    ack = line.observed().last_ack
    assert ack is not None
    assert (ack.decision_id, ack.state, ack.readback) == ("d1", AckState.applied, {"lr_scale": 0.5})


def test_a_decision_is_carried_out_once_however_often_it_arrives(line: Line) -> None:
    agent = line.agent()
    agent.boundary(state(agent))
    applied(line, agent)
    for issued in (1.0, 2.0):
        line.publish(desired(agent, scale=0.5, issued_at=issued))
        assert agent.boundary(state(agent)) is None
    assert agent.values["lr_scale"] == 0.5


def test_the_newest_observed_document_is_the_one_that_is_seen(line: Line) -> None:
    agent = line.agent()
    for step in range(1, 6):
        agent.boundary(state(agent, step))
        assert line.observed().step == step


@pytest.mark.parametrize(
    ("bytes_", "reason"),
    [
        (b"\xff\x00", "not JSON"),
        (b'{"decision_id": "d9"}', "Field required"),
        (b"[" * 1000, "not JSON"),
        (b"x" * 300_000, "larger"),
    ],
)
def test_bytes_that_are_no_document_are_answered_and_change_nothing(line: Line, bytes_: bytes, reason: str) -> None:
    agent = line.agent()
    agent.boundary(state(agent))
    line.theirs.desired.write_bytes(bytes_)
    assert agent.boundary(state(agent, 11)) is None
    ack = line.observed().last_ack
    assert ack is not None
    assert ack.state is AckState.rejected
    assert reason in ack.reason
    applied(line, agent)


def test_a_document_of_somebody_without_the_key_is_refused(line: Line) -> None:
    agent = line.agent()
    agent.boundary(state(agent))
    forged = desired(agent, scale=0.5).signed(b"x" * 32)
    assert line.post.publish(forged)
    assert agent.boundary(state(agent)) is None
    ack = line.observed().last_ack
    assert ack is not None
    assert "signature" in ack.reason


def test_while_the_controller_is_away_training_goes_on_and_then_everything_is_delivered(line: Line) -> None:
    agent = line.agent()
    agent.boundary(state(agent))
    applied(line, agent)
    line.cut()
    for step in range(11, 15):
        assert agent.boundary(state(agent, step)) is None
    assert agent.values["lr_scale"] == 0.5
    line.mend()

    def delivered() -> bool:
        agent.boundary(state(agent, 15))
        return line.observed().step == 15

    wait_for(delivered)
    applied(line, agent, "d2", generation=2, base_generation=1)


def test_a_restarted_trainer_is_the_same_run_and_old_documents_are_refused(line: Line) -> None:
    agent = line.agent()
    agent.boundary(state(agent))
    late = desired(agent, scale=0.5)
    agent.close()
    again = line.agent()
    line.publish(late)
    assert again.boundary(state(again)) is None
    ack = line.observed().last_ack
    assert ack is not None
    assert "incarnation" in ack.reason
    applied(line, again, "d2", generation=2)


def test_the_end_of_a_run_is_told(line: Line) -> None:
    agent = line.agent()
    agent.boundary(state(agent))
    agent.close()
    assert line.observed().phase == "stopped"


def test_the_transports_show_the_same_documents(tmp_path_factory: pytest.TempPathFactory) -> None:
    seen: list[Observed] = []
    for kind in (DirectoryLine, HttpLine):
        line = kind(tmp_path_factory.mktemp("line"))
        agent = line.agent()
        agent.boundary(state(agent))
        applied(line, agent)
        observed = line.observed()
        seen.append(observed.model_copy(update={"incarnation": "", "written_at": 0.0}))
        if isinstance(line, HttpLine):
            line.server.stop()
    assert seen[0] == seen[1]
