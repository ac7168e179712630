"""What the supervisor does when a trainer has ended: as a table."""

import pytest

from controlplane.agent.restart import RESUME_EXIT
from controlplane.contract.documents import Resume, Target
from controlplane.supervise.plan import Again, End, Exit, History, Limits, after

LIMITS = Limits(crashes=3, rollbacks=2, first_wait=1.0, longest_wait=5.0, stable_seconds=600.0)


def resume(decision: str = "d1") -> Resume:
    return Resume(
        run_uid="r",
        decision_id=decision,
        generation=1,
        target=Target(step=20, digest="x"),
        checkpoint="save-20",
        values={},
        handed_out_at=30,
        reason="because",
    )


def ended(code: int, **changes: object) -> Exit:
    return Exit(**{"code": code, "seconds": 10.0, "progressed": False, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("code", "stopping"), [(0, False), (2, False), (-15, True), (1, True), (RESUME_EXIT, True)])
def test_an_end_that_was_meant_is_the_end(code: int, stopping: bool) -> None:
    step, _ = after(ended(code, stopping=stopping, asked=resume()), History(), LIMITS)
    assert isinstance(step, End)
    assert step.code == (code if code >= 0 else 128 - code)


def test_crashes_wait_longer_each_time_and_end_after_too_many_without_progress() -> None:
    history, waits = History(), []
    while isinstance(step := after(ended(1), history, LIMITS)[0], Again):
        waits.append(step.wait)
        history = after(ended(1), history, LIMITS)[1]
    assert waits == [1.0, 2.0, 4.0]
    assert "3 times" not in step.reason
    assert "4 times in a row" in step.reason
    assert step.code == 1


@pytest.mark.parametrize("changes", [{"progressed": True}, {"seconds": 601.0}])
def test_progress_starts_the_count_of_crashes_anew(changes: dict[str, object]) -> None:
    step, history = after(ended(-9, **changes), History(crashes=3), LIMITS)
    assert isinstance(step, Again)
    assert (step.wait, history.crashes) == (1.0, 1)


def test_the_longest_wait_is_not_exceeded() -> None:
    step, _ = after(ended(1), History(crashes=10), Limits(crashes=99, longest_wait=5.0))
    assert isinstance(step, Again)
    assert step.wait == 5.0


def test_a_rollback_starts_again_at_once_from_its_checkpoint() -> None:
    step, history = after(ended(RESUME_EXIT, asked=resume()), History(crashes=2), LIMITS)
    assert isinstance(step, Again)
    assert (step.wait, step.resume) == (0.0, resume())
    assert (history.crashes, history.rollbacks) == (0, 1)


@pytest.mark.parametrize(
    ("asked", "history", "reason"),
    [
        (None, History(), "no message that can be believed"),
        (resume(), History(rollbacks=1, answered=frozenset({"d1"})), "asks for the same rollback again"),
        (resume("d3"), History(rollbacks=2), "a person has to look"),
    ],
)
def test_a_rollback_that_leads_nowhere_ends(asked: Resume | None, history: History, reason: str) -> None:
    step, _ = after(ended(RESUME_EXIT, asked=asked), history, LIMITS)
    assert isinstance(step, End)
    assert reason in step.reason
    assert step.code == RESUME_EXIT


def test_a_crash_after_a_rollback_does_not_go_back_to_the_branch_that_was_left() -> None:
    _, history = after(ended(RESUME_EXIT, asked=resume()), History(), LIMITS)
    step, _ = after(ended(1), history, LIMITS)
    assert isinstance(step, Again)
    assert step.resume == resume()
