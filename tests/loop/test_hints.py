"""A hint makes the controller look earlier, and can do nothing else."""

import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from controlplane.hints import LARGEST, Hints


@pytest.fixture
def hints() -> Iterator[Hints]:
    found = Hints()
    yield found
    found.close()


def send(hints: Hints, path: str = "/hint", content: bytes = b'{"alerts": []}') -> int:
    return httpx.post(f"http://127.0.0.1:{hints.port}{path}", content=content, trust_env=False).status_code


def test_a_hint_cuts_the_wait_short_and_is_used_up(hints: Hints) -> None:
    assert send(hints) == 204
    started = time.monotonic()
    hints.pause(threading.Event(), 30.0)
    assert 0.9 < time.monotonic() - started < 20, "at once, but not within the shortest time between two looks"
    started = time.monotonic()
    hints.pause(threading.Event(), 1.5)
    assert time.monotonic() - started >= 1.4, "one hint, one early look"


def test_stopping_does_not_wait_for_hints(hints: Hints) -> None:
    stop = threading.Event()
    stop.set()
    started = time.monotonic()
    hints.pause(stop, 60.0)
    assert time.monotonic() - started < 5


def test_what_is_no_hint_changes_nothing(hints: Hints) -> None:
    assert send(hints, "/v1/runs/x/orders") == 404
    assert send(hints, content=b"not json at all") == 204, "nobody reads it"
    with socket.create_connection(("127.0.0.1", hints.port), timeout=10) as raw:
        raw.sendall(f"POST /hint HTTP/1.1\r\nHost: x\r\nContent-Length: {LARGEST + 1}\r\n\r\n".encode())
        assert b" 413 " in raw.recv(100)
    assert httpx.get(f"http://127.0.0.1:{hints.port}/hint", trust_env=False).status_code == 501
