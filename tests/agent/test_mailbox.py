import json
import stat
import threading

import pytest

from controlplane.agent import DirectoryMailbox, read_key
from controlplane.agent.mailbox import LARGEST_DOCUMENT, Journal, ensure_key, parse
from controlplane.agent.memory import Unreadable
from controlplane.contract.documents import Ack, AckState, Desired
from controlplane.contract.rundir import RunDir, read_lines
from tests.agent.house import MemoryMailbox, desired, make_agent, send, state


def document(**changes: object) -> Desired:
    fields = {
        "run_uid": "run-1",
        "incarnation": "inc",
        "epoch": 0,
        "generation": 1,
        "base_generation": 0,
        "decision_id": "d1",
        "issued_at": 0.0,
        "expires_at_step": 10,
        "reason": "because",
    }
    return Desired.model_validate({**fields, **changes})


def test_the_key_is_made_once_and_only_its_owner_can_read_it(rundir: RunDir) -> None:
    key = ensure_key(rundir)
    assert len(key) == 32
    assert stat.S_IMODE(rundir.key.stat().st_mode) == 0o600
    assert ensure_key(rundir) == read_key(rundir) == key
    assert [path.name for path in rundir.control.iterdir()] == ["key"]


def test_processes_that_start_together_agree_on_one_key(rundir: RunDir) -> None:
    keys: list[bytes] = []
    threads = [threading.Thread(target=lambda: keys.append(ensure_key(rundir))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


def test_a_damaged_key_is_named(rundir: RunDir) -> None:
    rundir.control.mkdir()
    rundir.key.write_text("abc")
    with pytest.raises(ValueError, match="control/key: must hold 32 bytes in hex"):
        read_key(rundir)


def test_directory_mailbox_has_no_document_until_there_is_one(rundir: RunDir) -> None:
    box = DirectoryMailbox(rundir)
    assert box.fetch() is None
    rundir.control.mkdir()
    rundir.desired.write_bytes(b"x" * (LARGEST_DOCUMENT + 100))
    assert len(box.fetch() or b"") == LARGEST_DOCUMENT + 1
    box.publish("{}")
    assert rundir.observed.read_text() == "{}"


KEY = b"k" * 32
SIGNED = document().signed(KEY)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"null", "document"),
        (b"[]", "document"),
        (b"{}", "run_uid"),
        (document().model_dump_json().encode(), "signature"),
        (document().signed(b"x" * 32).model_dump_json().encode(), "signature"),
        (SIGNED.model_copy(update={"expires_at_step": 99}).model_dump_json().encode(), "signature"),
        (SIGNED.model_dump_json().replace('"run_uid"', '"more":1,"run_uid"').encode(), "more"),
        (b" " * (LARGEST_DOCUMENT + 1), "larger than"),
        (SIGNED.model_dump_json()[:-20].encode(), "not JSON"),
    ],
)
def test_what_is_no_signed_document_is_rejected_with_a_reason(data: bytes, reason: str) -> None:
    parsed = parse(data, KEY)
    assert isinstance(parsed, Ack)
    assert parsed.state is AckState.rejected
    assert reason in parsed.reason


def test_a_signed_document_survives_other_spacing_and_order() -> None:
    claims = json.loads(SIGNED.model_dump_json())
    assert parse(json.dumps(dict(reversed(claims.items())), indent=2).encode(), KEY) == SIGNED


def test_a_torn_last_line_is_cut_off_so_that_the_next_one_is_whole(rundir: RunDir) -> None:
    journal = Journal(rundir.control_log)
    journal.append([Unreadable(at=0.0, reason="first")])
    with rundir.control_log.open("a") as file:
        file.write('{"at":1,"ev')
    Journal(rundir.control_log).append([Unreadable(at=2.0, reason="second")])
    assert [line["reason"] for line in read_lines(rundir.control_log)] == ["first", "second"]


def test_a_failed_write_leaves_the_journal_as_it_was(rundir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(rundir.control_log)
    journal.append([Unreadable(at=0.0, reason="first")])

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            journal.append([Unreadable(at=1.0, reason="second")])
    assert [line["reason"] for line in read_lines(rundir.control_log)] == ["first"]


def test_a_document_is_journaled_before_the_trainer_can_see_it(
    rundir: RunDir, mailbox: MemoryMailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(rundir, mailbox)
    send(mailbox, rundir, desired(agent, scale=0.5))

    def broken(self: Journal, records: object) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", broken)
        assert agent.boundary(state(agent)) is None
    directive = agent.boundary(state(agent))
    assert directive is not None
    assert directive.decision_id == "d1"
    events = [line["event"] for line in read_lines(rundir.control_log)]
    assert events == ["started", "received"]


def test_an_ack_is_journaled_before_the_controller_can_see_it(
    rundir: RunDir, mailbox: MemoryMailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(rundir, mailbox)
    send(mailbox, rundir, desired(agent, scale=0.5))
    directive = agent.boundary(state(agent))
    assert directive is not None

    def broken(self: Journal, records: object) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", broken)
        agent.acknowledge(directive, AckState.applied, 10, {"lr_scale": 0.5})
        assert mailbox.observed is not None
        assert mailbox.observed.last_ack is None
    agent.boundary(state(agent, 11))
    assert mailbox.observed.last_ack is not None
    assert mailbox.observed.last_ack.state is AckState.applied
    assert [line["event"] for line in read_lines(rundir.control_log)] == ["started", "received", "answered"]
