"""The whole controller against a simulated trainer: it brings a run back, does nothing to a healthy one, and survives kills."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.contract.documents import AckState, Desired, Observed
from controlplane.contract.rundir import RunDir, read_lines
from controlplane.decide import Kind
from controlplane.journal import EntryKind, Journal, JournalError, LeaseLostError
from controlplane.loop import ControlError, Controller
from controlplane.policy import find, parse
from controlplane.post import directory
from controlplane.replay import replay
from controlplane.sim.faults import lr_fault, nan
from tests.loop.simulated import Bench

FAULT = (lr_fault(120, 10, steps=200),)


def observed(rundir: RunDir) -> Observed:
    return Observed.model_validate_json(rundir.observed.read_bytes())


@pytest.mark.parametrize("seed", range(3))
def test_a_collapsing_run_is_rolled_back_and_recovers(tmp_path: Path, seed: int) -> None:
    bench = Bench(tmp_path, seed, FAULT)
    bench.run(until=119)
    before = bench.trainer.skill.pass_ratio
    bench.run()
    assert len(bench.of(Kind.act)) == 1
    assert bench.of(Kind.act)[0].change is not None
    assert bench.trainer.branch == 1
    assert bench.trainer.values["lr_scale"] == 0.5
    assert bench.trainer.skill.pass_ratio > before
    assert [d.helped for d in bench.of(Kind.verdict)] == [True]
    bench.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_is_never_rolled_back(tmp_path: Path, seed: int) -> None:
    bench = Bench(tmp_path, seed)
    bench.run()
    assert bench.of(Kind.act, Kind.page, Kind.verdict) == []
    assert bench.trainer.branch == 0
    bench.close()


def test_an_observer_sees_the_collapse_and_touches_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1, FAULT, at_most="observe")
    bench.run()
    assert len(bench.of(Kind.observe)) == 1
    assert not bench.rundir.desired.exists()
    assert bench.trainer.branch == 0
    assert bench.trainer.skill.pass_ratio < 0.3
    bench.close()


def test_nonfinite_steps_are_rolled_back_on_one_key(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 2, (nan(100, steps=8),))
    bench.run()
    assert [d.rule for d in bench.of(Kind.act)] == ["numbers-gone"]
    assert bench.trainer.branch == 1
    bench.close()


def test_every_decision_can_be_made_again_bit_for_bit(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 3, FAULT)
    bench.run(until=100)
    bench.kill()
    bench.controller = bench.start()
    bench.run()
    again = replay(bench.journal)
    assert again.looks == len(bench.decisions)
    assert again.differences == ()
    bench.close()


def test_a_killed_controller_carries_on_as_if_it_had_lived(tmp_path: Path) -> None:
    def story(root: Path, kills: tuple[int, ...]) -> list[str]:
        bench, out = Bench(root, 4, FAULT), []
        going = True
        while going:
            going = bench.step()
            if bench.trainer.step_number in kills:
                bench.kill()
                bench.controller = bench.start()
        out = [json.dumps(d.model_dump(mode="json"), sort_keys=True) for d in bench.decisions]
        bench.close()
        return out

    assert story(tmp_path / "lived", ()) == story(tmp_path / "killed", (30, 90, 121, 124, 126, 128, 160))


@pytest.mark.parametrize(
    "crash", ["before the journal", "after the journal", "after the publication line", "after publishing"]
)
def test_a_crash_at_any_point_neither_loses_nor_repeats_the_action(
    tmp_path: Path, crash: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller dies once, around the look in which it decides to act."""
    bench = Bench(tmp_path, 5, FAULT)
    armed = [True]

    class Dead(BaseException):
        pass

    def die(where: str) -> None:
        if armed[0] and where == crash:
            armed[0] = False
            raise Dead

    append, write = Journal.append, directory.write_atomic

    def watched_append(self: Journal, rows: list[tuple[EntryKind, dict[str, object]]], at: float) -> object:
        kind, body = rows[0]
        acts = kind is EntryKind.look and body["decision"]["kind"] == "act"  # type: ignore[index]
        if acts:
            die("before the journal")
        entries = append(self, rows, at)
        if acts:
            die("after the journal")
        if kind is EntryKind.published:
            die("after the publication line")
        return entries

    def watched_write(*arguments: object, **more: object) -> None:
        write(*arguments, **more)  # type: ignore[arg-type]
        die("after publishing")

    monkeypatch.setattr(Journal, "append", watched_append)
    monkeypatch.setattr(directory, "write_atomic", watched_write)
    going = True
    while going:
        try:
            going = bench.step()
        except Dead:
            bench.kill()
            bench.controller = bench.start()
            going = True
    assert not armed[0]
    applied = [line["ack"] for line in read_lines(bench.rundir.control_log) if line["event"] == "answered"]
    assert [ack["state"] for ack in applied if ack["state"] != AckState.accepted].count("applied") == 1
    assert bench.trainer.branch == 1
    assert bench.trainer.skill.pass_ratio > 0.8
    bench.close()


def test_without_metrics_nothing_is_done_and_a_person_is_told_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1, FAULT)
    bench.run(until=118)
    bench.source.broken = True
    bench.step()
    assert bench.of(Kind.page) == []  # one failed read is no reason to wake anybody
    assert bench.decisions[-1].kind is Kind.hold
    for _ in range(60):
        bench.step()
    assert bench.of(Kind.act) == []
    assert [d.rule for d in bench.of(Kind.page)] == ["stale"]
    assert "the network is gone" in bench.of(Kind.page)[0].reason
    bench.source.broken = False
    bench.run()
    assert len(bench.of(Kind.act)) == 1  # and when the data are back it acts
    bench.close()


def test_a_new_controller_fences_the_old_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1, FAULT)
    bench.run(until=60)
    old = bench.controller
    bench.controller = bench.start()
    bench.run(until=118)
    while not bench.of(Kind.act):
        bench.step()
    applied = Desired.model_validate_json(bench.rundir.desired.read_bytes())
    bench.run(until=130)
    key = bytes.fromhex(bench.rundir.key.read_text().strip())
    forged = applied.model_copy(
        update={
            "epoch": applied.epoch - 1,
            "generation": 99,
            "decision_id": "old",
            "base_generation": 1,
            "expires_at_step": 999,
        }
    )
    bench.rundir.desired.write_text(forged.signed(key).model_dump_json())
    bench.step()
    bench.step()
    ack = observed(bench.rundir).last_ack
    assert ack is not None
    assert (ack.decision_id, ack.state) == ("old", AckState.rejected)
    assert "fenced off" in ack.reason
    assert old is not bench.controller
    bench.close()


def test_without_the_key_a_run_cannot_be_changed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1, FAULT)
    bench.rundir.key.unlink()
    with pytest.raises(ControlError, match="needs the key"):
        bench.run()
    assert not bench.rundir.desired.exists()
    bench.close()


def test_a_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1)
    info = bench.rundir.read_info().model_copy(update={"run_uid": "another"})
    bench.rundir.info.write_text(info.model_dump_json())
    with pytest.raises(ControlError, match="belongs to run sim-1"):
        bench.start()
    bench.close()


def test_an_unwritable_journal_means_no_publication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, 1, FAULT)
    bench.run(until=118)

    def full(*_: object, **__: object) -> None:
        raise JournalError("disk full")

    monkeypatch.setattr(Journal, "append", full)
    with pytest.raises(JournalError):
        bench.run()
    assert not bench.rundir.desired.exists()
    bench.close()


def test_a_controller_that_loses_its_lease_writes_and_publishes_nothing_more(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1, FAULT)
    bench.run(until=118)
    other = Journal(bench.rundir.journal)
    other.lead(60.0)
    written = len(list(other.entries()))
    with pytest.raises(LeaseLostError):
        bench.run()
    assert len(list(other.entries())) == written
    assert not bench.rundir.desired.exists()
    other.close()
    bench.close()


def test_a_late_writer_cannot_replace_the_document_of_a_newer_controller(tmp_path: Path) -> None:
    """It journaled under its lease, fell asleep, and wakes up after another one has published."""
    bench = Bench(tmp_path, 1, FAULT)
    bench.run(until=118)
    newer = Desired(
        run_uid="sim-1",
        incarnation="x",
        epoch=99,
        generation=1,
        base_generation=0,
        decision_id="newer",
        issued_at=0.0,
        expires_at_step=1,
        reason="",
    )
    bench.rundir.desired.write_text(newer.model_dump_json())
    with pytest.raises(LeaseLostError, match="epoch above 1"):
        bench.run()
    assert Desired.model_validate_json(bench.rundir.desired.read_bytes()) == newer
    bench.close()


def test_two_controllers_share_a_run_and_the_second_takes_over_when_the_first_falls_silent(tmp_path: Path) -> None:
    """In real time: the first one leads, the second stands by; the first is stopped, the second leads; nothing is lost."""
    bench = Bench(tmp_path, 1)
    bench.run(until=5)
    bench.journal.resign()
    name, text = find("demo")
    stops, threads = [threading.Event(), threading.Event()], []
    for number, stop in enumerate(stops):
        journal = Journal(bench.rundir.journal)
        lead = journal.lead
        monkey = lambda seconds, above=0, lead=lead, n=number: lead(seconds, above, holder=f"host/1/{n}")  # noqa: E731
        journal.lead = monkey  # type: ignore[method-assign,assignment]
        controller = Controller(bench.rundir, parse(text, name), text, bench.source, journal, lease_seconds=30.0)
        threads.append(threading.Thread(target=controller.run, args=(0.02, stop)))
        threads[-1].start()
        wait_for(lambda: len(list(bench.journal.entries(kind=EntryKind.start))) >= 2)
    looks = len(list(bench.journal.entries(kind=EntryKind.look)))
    wait_for(lambda: len(list(bench.journal.entries(kind=EntryKind.look))) > looks + 3)
    assert len(list(bench.journal.entries(kind=EntryKind.start))) == 2  # the bench's own, then one of the two
    stops[0].set()
    wait_for(lambda: len(list(bench.journal.entries(kind=EntryKind.start))) == 3)
    stops[1].set()
    for thread in threads:
        thread.join()
    assert replay(bench.journal).differences == ()
    bench.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
