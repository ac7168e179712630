"""Whatever the other side does, offering returns, and what was not delivered is counted."""

import threading
from collections import Counter

import pytest

from controlplane.notify import DeliveryError, Notice, Outbox
from tests.notify.test_grafana import NOTICE


class Recorder:
    """A channel that fails as told."""

    name = "grafana"

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.got = list(failures), list[Notice]()
        self.done = threading.Event()

    def deliver(self, notice: Notice) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.got.append(notice)
        self.done.set()


class Stuck:
    """A channel that never answers until it is let go."""

    name = "grafana"

    def __init__(self) -> None:
        self.inside, self.let_go = threading.Event(), threading.Event()

    def deliver(self, notice: Notice) -> None:
        self.inside.set()
        self.let_go.wait(30)


@pytest.fixture
def counts() -> Counter[tuple[str, str]]:
    return Counter()


def counting(counts: Counter[tuple[str, str]]):  # type: ignore[no-untyped-def]
    return lambda channel, result: counts.update([(channel, result)])


def test_a_stuck_channel_costs_the_caller_nothing_and_what_does_not_fit_is_counted(counts: Counter) -> None:
    stuck = Stuck()
    outbox = Outbox(stuck, counting(counts), size=3)
    assert outbox.offer(NOTICE)
    assert stuck.inside.wait(10)
    # The first is inside the channel; three fit into the queue; these calls return although nothing is delivered.
    assert [outbox.offer(NOTICE) for _ in range(6)] == [True, True, True, False, False, False]
    assert counts == {("grafana", "dropped"): 3}
    outbox.close(seconds=0.01)
    assert counts == {("grafana", "dropped"): 6}
    stuck.let_go.set()


def test_what_fails_for_the_moment_is_tried_again_in_order(counts: Counter) -> None:
    channel = Recorder(DeliveryError("down"), DeliveryError("down"))
    outbox = Outbox(channel, counting(counts), pause=0)
    other = Notice(**{**NOTICE.__dict__, "key": "d2"})
    outbox.offer(NOTICE)
    outbox.offer(other)
    outbox.close()
    assert channel.got == [NOTICE, other]
    assert counts == {("grafana", "sent"): 2}


@pytest.mark.parametrize(
    "failure", [[DeliveryError("no", final=True)], [DeliveryError("down")] * 3, [KeyError("a defect")]]
)
def test_what_cannot_be_delivered_is_counted_and_the_next_one_still_goes(failure: list, counts: Counter) -> None:
    channel = Recorder(*failure)
    outbox = Outbox(channel, counting(counts), pause=0)
    outbox.offer(NOTICE)
    outbox.offer(Notice(**{**NOTICE.__dict__, "key": "d2"}))
    assert channel.done.wait(10)
    outbox.close()
    assert [notice.key for notice in channel.got] == ["d2"]
    assert counts == {("grafana", "failed"): 1, ("grafana", "sent"): 1}
