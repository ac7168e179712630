import json
import logging
import time
import urllib.request
from typing import Any

import pytest

from controlplane.agent import Agent, Directive, DirectoryMailbox, read_key, restart
from controlplane.contract.documents import Ack, AckState, Action, Lease, Observed, Phase, Setting, Target
from controlplane.contract.rundir import RunDir, write_atomic
from tests.agent.house import GOOD, RAILS, VALUES, MemoryMailbox, desired, make_agent, report, send, state

TO_GOOD: dict[str, Any] = {"action": Action.rollback, "target": Target(step=3, digest="good-3")}


def hand_out(agent: Agent, mailbox: MemoryMailbox, rundir: RunDir, step: int = 10, **changes: Any) -> Directive:
    send(mailbox, rundir, desired(agent, **changes))
    directive = agent.boundary(state(agent, step))
    assert directive is not None, mailbox.observed
    return directive


def apply(agent: Agent, directive: Directive, step: int = 10) -> None:
    agent.acknowledge(directive, AckState.applied, step, directive.values)


def last_ack(mailbox: MemoryMailbox) -> Ack:
    assert mailbox.observed is not None
    assert mailbox.observed.last_ack is not None
    return mailbox.observed.last_ack


def test_nothing_asked_nothing_changed(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    agent = make_agent(rundir, mailbox)
    assert agent.boundary(state(agent)) is None
    assert mailbox.observed is not None
    assert mailbox.observed.incarnation == agent.incarnation
    assert {name: tunable.value for name, tunable in mailbox.observed.tunables.items()} == VALUES
    assert mailbox.observed.tunables["lr_scale"].max == RAILS.bounds["lr_scale"].max
    assert mailbox.observed.rollbacks_left == 2


def test_a_change_is_handed_out_once_read_back_and_acknowledged(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    agent = make_agent(rundir, mailbox)
    directive = hand_out(agent, mailbox, rundir, scale=0.01)
    assert directive.values == {"lr_scale": 0.5}
    apply(agent, directive)
    assert agent.values["lr_scale"] == 0.5
    assert mailbox.observed is not None
    assert mailbox.observed.applied_generation == 1
    assert mailbox.observed.epoch == 1
    assert last_ack(mailbox).readback == {"lr_scale": 0.5}
    assert agent.boundary(state(agent, 11)) is None


def test_the_same_decision_again_gets_the_first_answer_again(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    agent = make_agent(rundir, mailbox)
    apply(agent, hand_out(agent, mailbox, rundir, scale=0.5))
    mailbox.desired = b"something else"
    agent.boundary(state(agent, 11))
    assert last_ack(mailbox).state is AckState.rejected
    send(mailbox, rundir, desired(agent, scale=0.5, issued_at=5.0))
    assert agent.boundary(state(agent, 12)) is None
    assert (last_ack(mailbox).decision_id, last_ack(mailbox).state) == ("d1", AckState.applied)


def test_an_unacknowledged_directive_is_not_followed_by_another(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    agent = make_agent(rundir, mailbox)
    first = hand_out(agent, mailbox, rundir, scale=0.5)
    send(mailbox, rundir, desired(agent, "d2", generation=2, base_generation=1, scale=0.5))
    assert agent.boundary(state(agent, 11)) is None
    apply(agent, first, 11)
    second = agent.boundary(state(agent, 12))
    assert second is not None
    assert second.decision_id == "d2"


def test_a_document_for_later_is_accepted_and_applied_at_its_step(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    agent = make_agent(rundir, mailbox)
    send(mailbox, rundir, desired(agent, scale=0.5, apply_from_step=12))
    assert agent.boundary(state(agent, 10)) is None
    assert last_ack(mailbox).state is AckState.accepted
    assert agent.boundary(state(agent, 11)) is None
    assert agent.boundary(state(agent, 12)) is not None


def test_a_newer_document_supersedes_one_that_waits(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    agent = make_agent(rundir, mailbox)
    send(mailbox, rundir, desired(agent, "d1", scale=0.5, apply_from_step=12))
    agent.boundary(state(agent, 10))
    apply(agent, hand_out(agent, mailbox, rundir, 11, decision_id="d2", generation=2, scale=0.9), 11)
    assert agent.boundary(state(agent, 12)) is None
    assert agent.values["lr_scale"] == 0.9


def test_a_refused_newer_document_leaves_the_waiting_one(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    agent = make_agent(rundir, mailbox)
    send(mailbox, rundir, desired(agent, "d1", scale=0.5, apply_from_step=12))
    agent.boundary(state(agent, 10))
    send(mailbox, rundir, desired(agent, "d2", generation=2, scale=0.9, incarnation="old"))
    assert agent.boundary(state(agent, 11)) is None
    directive = agent.boundary(state(agent, 12))
    assert directive is not None
    assert directive.decision_id == "d1"


def test_unreadable_and_forged_documents_are_counted_reported_and_not_believed(
    rundir: RunDir, mailbox: MemoryMailbox
) -> None:
    agent = make_agent(rundir, mailbox)
    mailbox.desired = b"{"
    assert agent.boundary(state(agent, 10)) is None
    assert last_ack(mailbox).reason == "the document is not JSON"
    mailbox.desired = desired(agent, scale=0.5, epoch=9).signed(b"x" * 32).model_dump_json().encode()
    assert agent.boundary(state(agent, 11)) is None
    assert (last_ack(mailbox).decision_id, last_ack(mailbox).at_step) == ("d1", 11)
    assert 'rl_trainer_control_messages_total{state="rejected"} 2.0' in agent.store.text()
    # The real decision of that id is not burned by the forgery, nor is its epoch adopted.
    assert hand_out(agent, mailbox, rundir, scale=0.5).decision_id == "d1"


def test_a_mailbox_that_fails_does_not_stop_training(rundir: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MemoryMailbox):
        def fetch(self) -> bytes | None:
            raise OSError("the network is gone")

    agent = make_agent(rundir, Broken())
    with caplog.at_level(logging.WARNING):
        assert agent.boundary(state(agent)) is None
    assert "the network is gone" in caplog.text


def test_a_lapsed_lease_reverts_by_itself(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    agent = make_agent(rundir, mailbox)
    lease = Lease(until_step=15, revert_to={"lr_scale": 1.0})
    apply(agent, hand_out(agent, mailbox, rundir, scale=0.5, lease=lease))
    assert agent.boundary(state(agent, 15)) is None
    revert = agent.boundary(state(agent, 16))
    assert revert is not None
    assert revert.values == {"lr_scale": 1.0}
    apply(agent, revert, 16)
    assert last_ack(mailbox).state is AckState.reverted
    assert agent.values["lr_scale"] == 1.0
    assert agent.boundary(state(agent, 17)) is None
    assert 'changes_total{source="lease"} 1.0' in agent.store.text()


def test_a_change_without_a_lease_makes_the_leased_tunable_permanent(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    agent = make_agent(rundir, mailbox)
    apply(agent, hand_out(agent, mailbox, rundir, scale=0.5, lease=Lease(until_step=15, revert_to={"lr_scale": 1.0})))
    apply(agent, hand_out(agent, mailbox, rundir, 12, decision_id="d2", generation=2, base_generation=1, scale=1.5), 12)
    assert agent.boundary(state(agent, 16)) is None
    assert agent.values["lr_scale"] == 0.75


def test_an_old_controller_stays_fenced_off_after_a_crash(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    first = make_agent(rundir, mailbox)
    hand_out(first, mailbox, rundir, scale=0.5, epoch=2)  # the process dies before it is acknowledged
    second = make_agent(rundir, mailbox)
    send(mailbox, rundir, desired(second, "d2", epoch=1, scale=0.5))
    assert second.boundary(state(second, 11)) is None
    assert last_ack(mailbox).reason == "epoch 1 is fenced off; a controller with epoch 2 is in charge"


def test_a_new_controller_is_not_bound_by_what_the_old_one_asked_for_in_vain(
    rundir: RunDir, mailbox: MemoryMailbox
) -> None:
    agent = make_agent(rundir, mailbox)
    send(mailbox, rundir, desired(agent, "d9", epoch=1, generation=9, base_generation=4, scale=0.5))
    assert agent.boundary(state(agent)) is None
    assert hand_out(agent, mailbox, rundir, 11, decision_id="d1", epoch=2, generation=1, scale=0.5)


def test_a_revert_that_failed_is_tried_again(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    agent = make_agent(rundir, mailbox)
    lease = Lease(until_step=15, revert_to={"lr_scale": 1.0})
    apply(agent, hand_out(agent, mailbox, rundir, scale=0.5, lease=lease))
    revert = agent.boundary(state(agent, 16))
    assert revert is not None
    agent.acknowledge(revert, AckState.failed, 16, {"lr_scale": 0.5}, "busy")
    assert agent.boundary(state(agent, 17)) == revert


def test_a_renewal_at_the_last_moment_keeps_the_leased_value(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    agent = make_agent(rundir, mailbox)
    apply(agent, hand_out(agent, mailbox, rundir, scale=0.5, lease=Lease(until_step=15, revert_to={"lr_scale": 1.0})))
    renewal = Lease(until_step=30, revert_to={"lr_scale": 1.0})
    directive = hand_out(agent, mailbox, rundir, 16, decision_id="d2", generation=2, base_generation=1, lease=renewal)
    assert directive.decision_id == "d2"
    apply(agent, directive, 16)
    assert agent.boundary(state(agent, 30)) is None
    assert agent.boundary(state(agent, 31)) is not None


def test_documents_about_something_else_do_not_hold_up_a_revert(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    agent = make_agent(rundir, mailbox)
    apply(agent, hand_out(agent, mailbox, rundir, scale=0.5, lease=Lease(until_step=15, revert_to={"lr_scale": 1.0})))
    other = {"max_staleness": Setting(value=7)}
    revert = hand_out(agent, mailbox, rundir, 16, decision_id="d2", generation=2, base_generation=1, set=other)
    assert revert.values == {"lr_scale": 1.0}
    apply(agent, revert, 16)
    after = agent.boundary(state(agent, 17))
    assert after is not None
    assert after.values == {"max_staleness": 7.0}


def test_a_rollback_rebases_leases_and_counts(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    agent = make_agent(rundir, mailbox)
    apply(agent, hand_out(agent, mailbox, rundir, scale=0.5, lease=Lease(until_step=15, revert_to={"lr_scale": 1.0})))
    rollback = hand_out(agent, mailbox, rundir, 12, decision_id="d2", generation=2, base_generation=1, **TO_GOOD)
    apply(agent, rollback, 3)
    assert mailbox.observed is not None
    assert mailbox.observed.rollbacks_left == 1
    assert 'rl_trainer_rollbacks_total{reason="controller"} 1.0' in agent.store.text()
    assert agent.boundary(state(agent, 6, branch=1)) is None
    assert agent.boundary(state(agent, 7, branch=1)) is not None  # three steps were left, as before


def test_a_failed_rollback_poisons_the_process_until_it_is_restarted(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    agent = make_agent(rundir, mailbox)
    rollback = hand_out(agent, mailbox, rundir, **TO_GOOD)
    agent.acknowledge(rollback, AckState.failed, 10, {}, "rank 3 could not read its shard")
    send(mailbox, rundir, desired(agent, "d2", generation=2, scale=0.5))
    assert agent.boundary(state(agent, 11)) is None
    assert last_ack(mailbox).reason == (
        "only stop is accepted until the trainer is restarted: rank 3 could not read its shard"
    )
    assert (
        hand_out(agent, mailbox, rundir, 12, decision_id="d3", generation=3, action=Action.stop).action is Action.stop
    )
    again = make_agent(rundir, mailbox)
    assert hand_out(again, mailbox, rundir, decision_id="d4", generation=4, scale=0.5)
    assert mailbox.observed is not None
    assert mailbox.observed.rollbacks_left == 1


def test_a_restarted_trainer_goes_on_with_what_was_in_force(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    first = make_agent(rundir, mailbox)
    lease = Lease(until_step=15, revert_to={"lr_scale": 1.0})
    apply(first, hand_out(first, mailbox, rundir, scale=0.5, epoch=4, lease=lease))
    second = make_agent(rundir, mailbox)
    assert second.incarnation != first.incarnation
    assert second.values["lr_scale"] == 0.5
    assert second.boundary(state(second, 12)) is None
    assert (last_ack(mailbox).decision_id, last_ack(mailbox).state) == ("d1", AckState.applied)
    assert mailbox.observed is not None
    assert (mailbox.observed.applied_generation, mailbox.observed.epoch) == (1, 4)
    revert = second.boundary(state(second, 16))
    assert revert is not None
    assert revert.values == {"lr_scale": 1.0}


def test_a_decision_handed_out_before_a_crash_is_failed_and_never_applied(
    rundir: RunDir, mailbox: MemoryMailbox
) -> None:
    first = make_agent(rundir, mailbox)
    hand_out(first, mailbox, rundir, scale=0.5, **TO_GOOD)
    second = make_agent(rundir, mailbox)
    assert second.values == VALUES
    assert second.boundary(state(second, 11)) is None
    assert (last_ack(mailbox).decision_id, last_ack(mailbox).state) == ("d1", AckState.failed)
    assert mailbox.observed is not None
    assert mailbox.observed.rollbacks_left == 1
    send(mailbox, rundir, desired(second, scale=0.5))  # the same decision, addressed to the new process
    assert second.boundary(state(second, 12)) is None
    assert last_ack(mailbox).state is AckState.failed


def test_an_edited_recipe_wins_over_what_was_applied(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    first = make_agent(rundir, mailbox)
    apply(first, hand_out(first, mailbox, rundir, scale=0.5))
    second = make_agent(rundir, mailbox, values={**VALUES, "lr_scale": 0.8})
    assert second.values["lr_scale"] == 0.8
    assert 'changes_total{source="user"} 1.0' in second.store.text()
    third = make_agent(rundir, mailbox, values={**VALUES, "lr_scale": 0.8})
    assert third.values["lr_scale"] == 0.8


def test_a_change_made_in_the_trainer_is_seen_and_ends_the_lease(rundir: RunDir, mailbox: MemoryMailbox) -> None:
    agent = make_agent(rundir, mailbox)
    apply(agent, hand_out(agent, mailbox, rundir, scale=0.5, lease=Lease(until_step=15, revert_to={"lr_scale": 1.0})))
    by_hand = {**VALUES, "lr_scale": 0.7}
    agent.boundary(state(agent, 11, values=by_hand))
    assert agent.values == by_hand
    assert agent.boundary(state(agent, 16)) is None
    assert make_agent(rundir, mailbox).values == by_hand


@pytest.mark.parametrize(
    ("answer", "readback", "error"),
    [
        (AckState.accepted, {"lr_scale": 0.5}, ValueError),
        (AckState.expired, {"lr_scale": 0.5}, ValueError),
        (AckState.applied, {}, ValueError),
        (AckState.applied, {"lr_scale": float("nan")}, ValueError),
        (AckState.applied, {"lr_scale": 0.5, "temperature": 1.0}, ValueError),
    ],
)
def test_a_wrong_acknowledgement_raises_and_can_be_repeated(
    rundir: RunDir, mailbox: MemoryMailbox, answer: AckState, readback: dict[str, float], error: type[Exception]
) -> None:
    agent = make_agent(rundir, mailbox)
    directive = hand_out(agent, mailbox, rundir, scale=0.5)
    with pytest.raises(error):
        agent.acknowledge(directive, answer, 10, readback)
    apply(agent, directive)
    with pytest.raises(RuntimeError, match="d1 is not handed out"):
        apply(agent, directive)


def test_wrong_tunables_are_refused_at_the_start(rundir: RunDir) -> None:
    with pytest.raises(ValueError, match="unknown tunable 'lr'"):
        make_agent(rundir, values={"lr": 1.0})
    with pytest.raises(ValueError, match=r"lr_scale is 9, outside its guard rails 0\.1 to 4"):
        make_agent(rundir, values={**VALUES, "lr_scale": 9.0})
    with pytest.raises(ValueError, match="guard rails name max_staleness"):
        make_agent(rundir, values={"lr_scale": 1.0})


def test_with_thread_server_and_directory_a_document_comes_round(rundir: RunDir) -> None:
    agent = make_agent(rundir, port=0, poll_seconds=0.005)
    target = json.loads(rundir.target.read_text())
    assert target == [{"targets": [f"127.0.0.1:{agent.port}"], "labels": {"job": "scalerl-trainer", "run": "tiny"}}]
    agent.step(report())
    text = urllib.request.urlopen(f"http://127.0.0.1:{agent.port}/metrics", timeout=10).read().decode()
    assert "rl_trainer_steps_total 1.0" in text
    write_atomic(rundir.desired, desired(agent, scale=0.5).signed(read_key(rundir)).model_dump_json())
    directive = None
    for _ in range(2000):
        directive = directive or agent.boundary(state(agent))
        if directive:
            break
        time.sleep(0.005)
    assert directive is not None
    apply(agent, directive)
    agent.close()
    agent.close()
    observed = Observed.model_validate_json(rundir.observed.read_bytes())
    assert observed.phase is Phase.stopped
    assert observed.applied_generation == 1
    assert not rundir.target.exists()


def test_the_key_never_shows(rundir: RunDir) -> None:
    mailbox = DirectoryMailbox(rundir)
    agent = make_agent(rundir, mailbox)  # type: ignore[arg-type]
    agent.boundary(state(agent))
    secret = rundir.key.read_text().strip()
    assert secret not in agent.store.text() + rundir.observed.read_text() + rundir.control_log.read_text()


def test_a_trainer_that_rolls_back_by_ending_is_answered_for_by_the_next_process(
    rundir: RunDir, mailbox: MemoryMailbox
) -> None:
    def leaves(decision: str, generation: int) -> None:
        agent = make_agent(rundir, mailbox)
        target = Target(step=GOOD.step, digest=GOOD.digest)
        more = {"generation": generation, "base_generation": agent._memory.applied_generation, "scale": 0.5}
        send(mailbox, rundir, desired(agent, decision, action="rollback", target=target, **more))
        directive = agent.boundary(state(agent))
        assert directive is not None
        assert agent.leave(directive, "save-3") == 85

    leaves("first", 1)
    agent = make_agent(rundir, mailbox, resumed_at=GOOD.step)
    agent.boundary(state(agent, GOOD.step))
    assert mailbox.observed is not None
    assert mailbox.observed.last_ack is not None
    assert mailbox.observed.last_ack.state is AckState.applied
    assert (agent.values["lr_scale"], agent.rolled_back) == (0.5, 1)
    assert not rundir.resume.exists()

    leaves("second", 2)
    elsewhere = make_agent(rundir, mailbox, resumed_at=9)
    elsewhere.boundary(state(elsewhere, 9))
    ack = mailbox.observed.last_ack
    assert ack is not None
    assert (ack.decision_id, ack.state) == ("second", AckState.failed)
    assert "was to come up again at step 3, and came up at step 9" in ack.reason
    assert (elsewhere.values["lr_scale"], elsewhere.rolled_back) == (0.5, 1)
    assert mailbox.observed.rollbacks_left == 0


def test_a_message_to_the_supervisor_that_the_key_did_not_sign_is_not_believed(
    rundir: RunDir, mailbox: MemoryMailbox
) -> None:
    agent = make_agent(rundir, mailbox)
    target = Target(step=GOOD.step, digest=GOOD.digest)
    send(mailbox, rundir, desired(agent, action="rollback", target=target, scale=0.5))
    directive = agent.boundary(state(agent))
    assert directive is not None
    agent.leave(directive, "save-3")
    rundir.resume.write_text(rundir.resume.read_text().replace("save-3", "save-9"))
    assert restart.read(rundir) is None
    again = make_agent(rundir, mailbox, resumed_at=GOOD.step)
    again.boundary(state(again))
    assert mailbox.observed is not None
    assert mailbox.observed.last_ack is not None
    assert mailbox.observed.last_ack.state is AckState.failed
