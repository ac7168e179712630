"""Records of probes reach a controller that does not see the run directory: every byte once and in order, whatever is lost."""

import json
import random
from http.client import HTTPConnection
from pathlib import Path

import pytest

from controlplane.agent.shipping import LARGEST_PIECE, Shipper
from controlplane.contract.rundir import append_line
from controlplane.post.tokens import Scope
from tests.agent.house import INFO, state
from tests.post.conftest import HttpLine


class Receiver:
    """Files at the other end; answers and requests get lost by a lot."""

    def __init__(self, seed: int, lost: float) -> None:
        self.files: dict[str, bytes] = {}
        self._rng, self._lost = random.Random(seed), lost

    def put(self, probe: str, at: int, piece: bytes) -> int:
        assert len(piece) <= LARGEST_PIECE
        if self._rng.random() < self._lost:
            raise OSError("the request was lost")
        there = self.files.setdefault(probe, b"")
        if len(there) == at:
            self.files[probe] = there + piece
        if self._rng.random() < self._lost:
            raise OSError("the answer was lost")
        return len(self.files[probe]) if len(there) == at else len(there)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_lost_and_whoever_restarts_the_copy_is_the_record(tmp_path: Path, seed: int) -> None:
    rng, receiver = random.Random(seed), Receiver(seed, 0.3)
    shipper = Shipper(tmp_path, receiver.put)
    for number in range(60):
        append_line(tmp_path / f"p{rng.randrange(2)}.jsonl", {"t": number, "prompts": [number] * rng.randrange(8_000)})
        if rng.random() < 0.2:
            shipper = Shipper(tmp_path, receiver.put)  # a new process of the trainer
        try:
            shipper.ship()
        except OSError:
            continue
    receiver._lost = 0.0
    shipper.ship()
    assert receiver.files == {path.stem: path.read_bytes() for path in tmp_path.glob("*.jsonl")}


def test_half_a_line_is_not_sent(tmp_path: Path) -> None:
    receiver = Receiver(0, 0.0)
    (tmp_path / "p.jsonl").write_text('{"t":1}\n{"t":')
    Shipper(tmp_path, receiver.put).ship()
    assert receiver.files == {"p": b'{"t":1}\n'}


def test_a_line_too_long_for_a_piece_is_said_and_not_cut(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"t":1}\n' + "x" * (LARGEST_PIECE + 9) + "\n")
    receiver = Receiver(0, 0.0)
    with pytest.raises(OSError, match="a line is longer"):
        Shipper(tmp_path, receiver.put).ship()
    assert receiver.files == {"p": b'{"t":1}\n'}


def test_the_controllers_copy_grows_with_every_boundary_and_survives_an_outage(http: HttpLine) -> None:
    agent = http.agent()
    agent.boundary(state(agent))
    http.ours.probes.mkdir()
    mine, copy = http.ours.probes / "p1.jsonl", http.theirs.probes / "p1.jsonl"
    append_line(mine, {"kind": "begin"})
    agent.boundary(state(agent, 11))
    assert copy.read_bytes() == mine.read_bytes()
    http.cut()
    append_line(mine, {"kind": "step"})
    agent.boundary(state(agent, 12))
    http.mend()
    again = http.agent()
    again.boundary(state(again, 13))
    assert copy.read_bytes() == mine.read_bytes()
    assert len(copy.read_text().splitlines()) == 2


def put(line: HttpLine, path: str, body: bytes, scope: Scope = Scope.agent) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", line.port)
    headers = {"Authorization": f"Bearer {line.token[scope]}"}
    connection.request("PUT", f"/v1/runs/{INFO.run_uid}/probes/{path}", body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("p1?at=0", b'{"a":1}\n', 204),
        ("p1?at=5", b'{"a":1}\n', 409),
        ("p1?at=0", b'{"a":1}', 400),
        ("p1?at=-1", b"\n", 400),
        ("p1", b"\n", 400),
        (".hidden?at=0", b"\n", 400),
        ("..%2Fkey?at=0", b"\n", 404),
        ("p1?at=0", b"x" * (LARGEST_PIECE + 1), 413),
    ],
)
def test_what_is_no_piece_of_a_record_is_refused(http: HttpLine, path: str, body: bytes, status: int) -> None:
    agent = http.agent()
    agent.boundary(state(agent))
    found, answer = put(http, path, body)
    assert found == status
    if status == 409:
        assert json.loads(answer)["length"] == 0
    assert put(http, "p9?at=0", b"\n", Scope.read)[0] == 403
    assert not (http.theirs.root / "key.jsonl").exists()
