"""One controller leads a run; the epoch only grows; who lost the lease writes nothing any more. Both stores, one list of rules."""

import contextlib
import threading
import time

import pytest

from controlplane.journal import EntryKind, LeaseHeldError, LeaseLostError
from tests.journal.conftest import Place

ROW = [(EntryKind.look, {"n": 1})]


def test_the_epoch_grows_with_every_take_and_beyond_what_an_agent_has_seen(place: Place) -> None:
    journal = place.open()
    assert [journal.lead(60.0), journal.lead(60.0), journal.lead(60.0, above=7), journal.lead(60.0, above=3)] == [
        1,
        2,
        8,
        9,
    ]


def test_a_living_leader_is_left_in_peace(place: Place) -> None:
    leader, other = place.open(), place.open()
    leader.lead(60.0, holder="host-a/1/1")
    with pytest.raises(LeaseHeldError, match="process 1 on host-a leads this run under epoch 1"):
        other.lead(60.0, holder="host-b/1/2")
    assert not other.leads
    leader.append(ROW, at=1.0)
    assert leader.verify() == 1


def test_a_lapsed_lease_goes_to_who_asks_and_the_old_leader_writes_nothing_more(place: Place) -> None:
    old, new = place.open(), place.open()
    old.lead(0.05, holder="host-a/1/1")
    time.sleep(0.1)
    old.append(ROW, at=1.0)  # late, but nobody else asked: it still leads, and this renews
    time.sleep(0.1)
    assert new.lead(60.0, holder="host-b/1/2") == 2
    with pytest.raises(LeaseLostError, match=r"epoch 1.*process 2 on host-b leads it under epoch 2"):
        old.append(ROW, at=2.0)
    new.append(ROW, at=3.0)
    assert [e.at for e in new.entries()] == [1.0, 3.0]
    assert new.verify() == 2


def test_every_append_renews_the_lease(place: Place) -> None:
    leader, other = place.open(), place.open()
    leader.lead(0.4, holder="host-a/1/1")
    for _ in range(4):
        time.sleep(0.15)
        leader.append(ROW, at=1.0)
        with pytest.raises(LeaseHeldError):
            other.lead(60.0, holder="host-b/1/2")


def test_who_resigns_lets_another_lead_at_once_and_twice_is_harmless(place: Place) -> None:
    leader, other = place.open(), place.open()
    leader.lead(60.0, holder="host-a/1/1")
    leader.resign()
    assert other.lead(60.0, holder="host-b/1/2") == 2
    leader.resign()
    other.append(ROW, at=1.0)
    with pytest.raises(LeaseHeldError):
        leader.lead(60.0, holder="host-a/1/1")


def test_of_many_that_ask_at_once_one_leads(place: Place) -> None:
    place.open().close()
    journals = [place.open() for _ in range(6)]
    won, barrier = [], threading.Barrier(len(journals))

    def ask(number: int) -> None:
        barrier.wait()
        with contextlib.suppress(LeaseHeldError):
            won.append((number, journals[number].lead(60.0, holder=f"host-{number}/1/{number}")))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(journals))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert won[0][1] == 1
    journals[won[0][0]].append(ROW, at=1.0)
