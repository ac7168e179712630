"""Sources that lie, stall, flood or babble: a clear error within bounded time and memory, and never half a sample."""

import contextlib
import json
import resource
import socket
import string
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.detect import SERIES
from controlplane.sources import PrometheusSource, ScrapeSource, SourceError, scrape
from controlplane.sources.exposition import parse

Behaviour = Callable[[socket.socket], None]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
LINE = b"rl_trainer_global_step 1\n"


@contextlib.contextmanager
def serving(behave: Behaviour) -> Iterator[str]:
    """A server on loopback that does to each connection what it is told; its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            behave(connection)
            # A request may come in two pieces: closing with one of them unread would reset the connection.
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(5)
            while connection.recv(65536):
                pass

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield "{}:{}".format(*listener.getsockname())
    finally:
        listener.close()


def answer(body: bytes, head: bytes = HEAD) -> Behaviour:
    return lambda connection: connection.sendall(head + body)


def drip(head: bytes, drop: bytes) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(drop)
            time.sleep(0.02)

    return behave


def flood(connection: socket.socket) -> None:
    connection.sendall(HEAD)
    while True:
        connection.sendall(LINE * 4000)


def silence(connection: socket.socket) -> None:
    connection.recv(1)


def target(path: Path, address: str) -> Path:
    (path / "target.json").write_text(json.dumps([{"targets": [address], "labels": {}}]))
    return path / "target.json"


@pytest.mark.parametrize(
    ("behave", "complaint"),
    [
        (silence, "no whole answer within 0.5 s"),
        (drip(HEAD, b"#"), "no whole answer within 0.5 s"),
        (drip(b"HTTP/1.1 200 OK\r\nX-Never: ", b"a"), "no whole answer within 0.5 s"),
        (flood, f"larger than {scrape.LARGEST_PAGE}|no whole answer"),
        (answer(b"", b"HTTP/1.1 500 No\r\nConnection: close\r\n\r\n"), "status 500"),
        (answer(b"", b"HTTP/1.1 302 Go\r\nLocation: http://127.0.0.1:1/\r\nConnection: close\r\n\r\n"), "status 302"),
        (answer(b"\x1f\x8b", b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n"), "compressed"),
        (answer(b"", b"SMTP hello\r\n\r\n"), "cannot be read"),
        (answer(b"rl_", b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"), "cannot be read"),
        (answer(b"<html>hello</html>"), "not in the Prometheus text format"),
        (answer(b"rl_trainer_global_step \xff\n"), "not in the Prometheus text format"),
        (answer(b'rl_trainer_global_step{a="' + b"x" * 100_000 + b'"} 1\n'), "longer than"),
        (answer(LINE * 2), "appears twice"),
        (answer(b"".join(b'rl_trainer_global_step{a="%d"} 1\n' % n for n in range(6000))), "more than 5000 series"),
    ],
)
def test_a_hostile_page_is_one_clear_error_in_bounded_time(tmp_path: Path, behave: Behaviour, complaint: str) -> None:
    with serving(behave) as address:
        source = ScrapeSource(target(tmp_path, address), timeout=0.5 if "0.5" in complaint else 20.0)
        with pytest.raises(SourceError, match=complaint) as caught:
            source.read(SERIES)
        assert len(str(caught.value)) < 600


def test_a_source_that_hung_is_read_again_once_it_has_ended(tmp_path: Path) -> None:
    with serving(silence) as address:
        source = ScrapeSource(target(tmp_path, address), timeout=0.2)
        with pytest.raises(SourceError):
            source.read(SERIES)
    with serving(answer(LINE)) as address:
        target(tmp_path, address)
        deadline = time.monotonic() + 10
        while True:
            try:
                assert source.read(SERIES).values == {"rl_trainer_global_step": 1.0}
                break
            except SourceError:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_a_flood_costs_bounded_memory(tmp_path: Path) -> None:
    with serving(flood) as address:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(SourceError):
            ScrapeSource(target(tmp_path, address), timeout=20.0).read(SERIES)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 10 * scrape.LARGEST_PAGE / 1024


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '[{"targets": ["127.0.0.1:9/evil?x="]}]', '[{"targets": [["a"]]}]', "[" * 100_000, "\0", '"x"'],
)
def test_a_target_file_that_is_none_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "target.json").write_text(content)
    with pytest.raises(SourceError, match="not a target file"):
        ScrapeSource(tmp_path / "target.json").read(SERIES)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"[" * 100_000, "cannot be read"),
        (b"[]", "does not answer as a Prometheus"),
        (b'{"status": "success"}', "does not answer as a Prometheus"),
        (b'{"status": "error", "error": "bad"}', "refused a query: bad"),
        (b'{"status":"success","data":{"resultType":"vector","result":[{"metric":3}]}}', "does not answer as a Prom"),
        (b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"x"]}]}}', "does not"),
        (b'{"status":"success","data":{"resultType":"vector","result":[]}}', "no fresh sample"),
        (b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"NaN"]}]}}', "no fresh"),
        (b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"9e12"]}]}}', "future"),
    ],
)
def test_a_server_that_is_no_prometheus_is_an_error(body: bytes, complaint: str) -> None:
    with serving(answer(body)) as address, pytest.raises(SourceError, match=complaint):
        PrometheusSource(f"http://{address}", "r1", timeout=20.0).read(SERIES)


PIECES = st.one_of(
    st.sampled_from(
        ["rl_trainer_global_step", "{", "}", '"', "=", ",", " ", "1", "NaN", "+Inf", "#", "\n", "\\", "\t", "é"]
    ),
    st.text(alphabet=string.printable, max_size=6),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=30).map("".join))
def test_any_text_is_values_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert all(isinstance(value, float) for value in parse(text, SERIES).values())
