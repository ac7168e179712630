"""From decisions to notices, through real looks, and the controller with a Grafana that is not there."""

import math
from pathlib import Path

import pytest

from controlplane.contract.documents import Ack, AckState, Action, Setting, Target
from controlplane.contract.yamlfile import FileError
from controlplane.decide import Change, Decision, Kind
from controlplane.notify import Notice, Notifier, notifier_of
from controlplane.notify.channels import text_of
from controlplane.notify.notice import notice_of
from controlplane.snapshot import Snapshot
from tests.looks import Run
from tests.notify.stub import TOKEN, grafana_stub

CHANGE = Change(action=Action.rollback, target=Target(step=70, digest="d"), set={"lr_scale": Setting(scale=0.5)})
ACT = Decision(kind=Kind.act, reason="it fell", step=95, rule="collapse", change=CHANGE, decision_id="d1", generation=1)


class Outboxes(list[Notice]):
    """Stands for an outbox."""

    closed = False

    def offer(self, notice: Notice) -> bool:
        self.append(notice)
        return True

    def close(self) -> None:
        self.closed = True


def look(run: Run, state: AckState | None = None) -> Snapshot:
    run.last_ack = Ack(decision_id="d1", generation=1, state=state, at_step=96) if state else None
    return run.advance()


NOTHING = Decision(kind=Kind.nothing, reason="all is well")


def test_an_action_is_told_then_confirmed_then_judged() -> None:
    run, box = Run(step=94), Outboxes()
    notifier = Notifier("r", [box])  # type: ignore[list-item]
    notifier.look(look(run), ACT)
    assert [(n.key, n.result, n.until, n.action, n.change) for n in box] == [
        ("d1", "act", None, "rollback", "step 95 -> 70, lr_scale 1 -> 0.5")
    ]
    notifier.look(look(run, AckState.accepted), NOTHING)
    assert len(box) == 1
    confirmed = look(run, AckState.applied)
    notifier.look(confirmed, NOTHING)
    notifier.look(look(run, AckState.applied), NOTHING)
    assert [(n.result, n.until) for n in box[1:]] == [("applied", confirmed.at)]
    notifier.look(
        look(run, AckState.applied), Decision(kind=Kind.verdict, reason="it helped", decision_id="d1", helped=True)
    )
    assert [(n.verdict, n.helped, n.until) for n in box[2:]] == [("it helped", True, confirmed.at)]


def test_a_change_on_lease_is_told_again_when_it_is_taken_back() -> None:
    run, box = Run(step=94), Outboxes()
    notifier = Notifier("r", [box])  # type: ignore[list-item]
    notifier.look(look(run), ACT)
    notifier.look(look(run, AckState.applied), NOTHING)
    notifier.look(look(run, AckState.applied), Decision(kind=Kind.verdict, reason="it helped", decision_id="d1"))
    back = look(run, AckState.reverted)
    notifier.look(back, NOTHING)
    assert (box[-1].result, box[-1].until, box[-1].verdict) == ("reverted", back.at, "it helped")


@pytest.mark.parametrize("state", [AckState.rejected, AckState.expired, AckState.failed, AckState.reverted])
def test_an_action_that_came_to_nothing_ends_there(state: AckState) -> None:
    run, box = Run(), Outboxes()
    notifier = Notifier("r", [box])  # type: ignore[list-item]
    notifier.look(look(run), ACT)
    notifier.look(look(run, state), NOTHING)
    notifier.look(look(run, AckState.applied), NOTHING)
    assert [n.result for n in box] == ["act", state.value]
    notifier.close()
    assert box.closed


def test_a_controller_started_later_ends_what_an_earlier_one_began() -> None:
    run, box = Run(), Outboxes()
    notifier = Notifier("r", [box])  # type: ignore[list-item]
    notifier.recall(look(run), ACT)
    assert box == []
    notifier.look(look(run, AckState.applied), NOTHING)
    assert [n.result for n in box] == ["applied"]


@pytest.mark.parametrize("kind", [Kind.nothing, Kind.hold, Kind.verdict])
def test_nobody_is_told_of(kind: Kind) -> None:
    assert notice_of("r", Decision(kind=kind, reason="x"), None, 0.0) is None


def test_a_page_without_a_rule_has_a_key_of_its_own() -> None:
    told = notice_of("r", Decision(kind=Kind.page, reason="cannot see", rule="stale", step=7, branch=1), None, 1.0)
    assert told is not None
    assert (told.key, told.action, told.change, told.result) == ("r/1/7/stale/page", "page", "", "page")


def test_a_change_is_told_even_if_the_old_value_is_not_known() -> None:
    told = notice_of("r", ACT, None, 1.0)
    assert told is not None
    assert told.change == "step -> 70, lr_scale x 0.5"


def test_an_action_that_waited_for_approval_is_one_notice_that_changes(tmp_path: Path) -> None:
    run, box = Run(step=94), Outboxes()
    notifier = Notifier("r", [box])  # type: ignore[list-item]
    notifier.look(look(run), ACT.model_copy(update={"kind": Kind.waiting}))
    notifier.look(look(run), ACT.model_copy(update={"approved_by": "ada", "before": {"lr_scale": 0.8}}))
    notifier.look(look(run, AckState.applied), NOTHING)
    assert [(n.key, n.result) for n in box] == [("d1", "waiting"), ("d1", "act"), ("d1", "applied")]
    assert box[1].change.endswith("lr_scale 0.8 -> 0.4"), "the values on which it was decided"
    assert "approved by ada" in text_of(box[1])


def test_nobody_is_told_unless_the_environment_says_so(tmp_path: Path) -> None:
    count = lambda *_: None  # noqa: E731
    assert notifier_of("r", {}, count) is None
    with pytest.raises(FileError, match="SCALERL_GRAFANA_TOKEN"):
        notifier_of("r", {"SCALERL_GRAFANA_URL": "http://127.0.0.1:1"}, count)
    with pytest.raises(FileError, match="cannot be read"):
        notifier_of(
            "r",
            {"SCALERL_GRAFANA_URL": "http://127.0.0.1:1", "SCALERL_GRAFANA_TOKEN_FILE": str(tmp_path / "no")},
            count,
        )
    with pytest.raises(FileError, match=r"SCALERL_WEBHOOK_URL: .*must begin with http") as caught:
        notifier_of("r", {"SCALERL_WEBHOOK_URL": "s3cret"}, count)
    assert "s3cret" not in str(caught.value)


def test_from_a_look_to_an_annotation_with_the_token_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    results: list[tuple[str, str]] = []
    with grafana_stub() as stub:
        environment = {
            "SCALERL_GRAFANA_URL": stub.url,
            "SCALERL_GRAFANA_TOKEN_FILE": str(tmp_path / "token"),
            "SCALERL_WEBHOOK_URL": f"{stub.url}/hook/s3cret",
        }
        notifier = notifier_of("math", environment, lambda *result: results.append(result))
        assert notifier is not None
        run = Run(step=94, at=1.8e9)
        notifier.look(look(run), ACT)
        notifier.look(look(run, AckState.applied), NOTHING)
        notifier.close()
    (mark,) = stub.annotations.values()
    assert mark["timeEnd"] - mark["time"] == 1000
    assert {"run:math", "rule:collapse", "action:rollback", "result:applied"} <= set(mark["tags"])
    assert [hook["result"] for hook in stub.hooks] == ["act", "applied"]
    assert sorted(results) == [("grafana", "sent")] * 2 + [("webhook", "sent")] * 2
    assert stub.wrong == []
    assert not math.isnan(mark["time"])
