"""The HTTP door: who gets in, what is too much, how long it waits, and what is never told."""

import json
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.agent import HttpMailbox, read_key
from controlplane.contract.approvals import Order
from controlplane.contract.documents import AckState, Said
from controlplane.contract.rundir import RunDir
from controlplane.post import Post, tokens
from controlplane.post.server import SMALL_BODY, Door, Server
from controlplane.post.tokens import Scope, TokenError, Tokens
from tests.agent.house import INFO, desired, make_agent, state
from tests.post.conftest import HttpLine, wait_for
from tests.programs import require_program

RUN = f"/v1/runs/{INFO.run_uid}"
ROUTES = [
    ("PUT", "", Scope.agent),
    ("GET", "/desired", Scope.agent),
    ("PUT", "/observed", Scope.agent),
    ("GET", "/observed", Scope.read),
    ("POST", "/approvals", Scope.approve),
    ("POST", "/orders", Scope.act),
]


def ask(line: HttpLine, method: str, path: str, token: str = "", **more: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=line.url, trust_env=False, timeout=20) as client:
        return client.request(method, RUN + path, headers=headers, **more)  # type: ignore[arg-type]


def enrolled(line: HttpLine) -> None:
    agent = line.agent()
    agent.boundary(state(agent))


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_every_door_opens_to_its_scope_and_to_no_other(http: HttpLine, method: str, path: str, scope: Scope) -> None:
    enrolled(http)
    assert ask(http, method, path).status_code == 401
    assert ask(http, method, path, "scalerl_" + "x" * 43).status_code == 401
    for other in Scope:
        status = ask(http, method, path, http.token[other], content=b"").status_code
        assert (status == 403) == (other is not scope), (other, status)


def test_a_token_is_for_its_runs_only(http: HttpLine) -> None:
    other = tokens.add(http.tokens, "other", frozenset(Scope), frozenset({"another-run"}))
    assert ask(http, "GET", "/observed", other).status_code == 403


def test_a_removed_token_is_out_at_once_and_a_broken_file_lets_nobody_in(http: HttpLine) -> None:
    enrolled(http)
    assert ask(http, "GET", "/observed", http.token[Scope.read]).status_code == 200
    tokens.remove(http.tokens, "read")
    assert ask(http, "GET", "/observed", http.token[Scope.read]).status_code == 401
    http.tokens.write_text("{")
    assert ask(http, "GET", "/observed", http.token[Scope.agent]).status_code == 503


def test_the_key_of_a_run_is_told_once_and_another_is_refused(http: HttpLine, tmp_path: Path) -> None:
    enrolled(http)
    assert read_key(http.theirs) == read_key(http.ours)
    assert http.theirs.key.stat().st_mode & 0o777 == 0o600
    thief = HttpMailbox(http.url, http.token[Scope.agent], RunDir(tmp_path / "thief"), INFO, wait=0)
    with pytest.raises(OSError, match="409 this run is known here under another key"):
        thief.fetch()


def test_a_waiting_agent_has_a_new_document_at_once_and_an_old_one_not_again(http: HttpLine) -> None:
    agent = http.agent()
    agent.boundary(state(agent))
    token, answers = http.token[Scope.agent], []
    waiting = threading.Thread(target=lambda: answers.append(ask(http, "GET", "/desired?wait=20", token)))
    waiting.start()
    time.sleep(0.3)
    started = time.monotonic()
    http.publish(desired(agent))
    waiting.join()
    assert time.monotonic() - started < 10
    assert answers[0].status_code == 200
    tag = answers[0].headers["etag"]
    with httpx.Client(base_url=http.url, trust_env=False) as client:
        headers = {"Authorization": f"Bearer {token}", "If-None-Match": tag}
        assert client.get(f"{RUN}/desired?wait=0.2", headers=headers).status_code == 304


def test_with_its_threads_an_agent_hears_and_answers_over_http(http: HttpLine) -> None:
    agent = make_agent(http.ours, http.mailbox(wait=20.0), poll_seconds=0.02)  # type: ignore[arg-type]
    agent.boundary(state(agent))
    wait_for(lambda: http.theirs.observed.exists())
    http.publish(desired(agent, scale=0.5))
    found: list[object] = []
    wait_for(lambda: bool(found.append(agent.boundary(state(agent))) or found[-1]))
    directive = found[-1]
    agent.acknowledge(directive, AckState.applied, 10, {"lr_scale": 0.5})  # type: ignore[arg-type]
    wait_for(lambda: (ack := http.observed().last_ack) is not None and ack.state is AckState.applied)
    agent.close()
    wait_for(lambda: http.observed().phase == "stopped")


def test_what_people_say_reaches_the_controller_with_the_name_of_their_token(http: HttpLine) -> None:
    enrolled(http)
    said = {"decision_id": "d1", "answer": "approve", "reason": "seen it"}
    assert ask(http, "POST", "/approvals", http.token[Scope.approve], json=said).status_code == 204
    assert ask(http, "POST", "/orders", http.token[Scope.act], json={"action": "pause"}).status_code == 200
    approvals, orders = Post(http.theirs).said(time.time())
    assert [(a.decision_id, a.answer, a.by, a.reason) for a in approvals] == [("d1", "approve", "approve", "seen it")]
    assert [(o.action, o.by) for o in orders] == [("pause", "act")]
    forged = {"decision_id": "d1", "answer": "approve", "by": "somebody else"}
    assert ask(http, "POST", "/approvals", http.token[Scope.approve], json=forged).status_code == 400


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[" * 10_000, 400),
        (b"\xff", 400),
        (b"x" * (SMALL_BODY + 1), 413),
        (b'{"action":"rollback"}', 400),
    ],
)
def test_a_body_that_is_wrong_or_too_large_is_a_clear_error(http: HttpLine, body: bytes, status: int) -> None:
    enrolled(http)
    answer = ask(http, "POST", "/orders", http.token[Scope.act], content=body)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert Post(http.theirs).said(time.time()) == ((), ())


@pytest.mark.parametrize("run", ["..", "%2e%2e", "a%2Fb", ".hidden", "x" * 300])
def test_a_run_cannot_name_a_place_outside_the_root(http: HttpLine, run: str) -> None:
    every = tokens.add(http.tokens, "all", frozenset(Scope), frozenset({"*"}))
    info = {**INFO.model_dump(), "run_uid": run.replace("%2e", ".").replace("%2F", "/")}
    with httpx.Client(base_url=http.url, trust_env=False) as client:
        headers = {"Authorization": f"Bearer {every}"}
        answer = client.put(f"/v1/runs/{run}", headers=headers, json={"info": info, "key": "0" * 64})
    assert answer.status_code in (404, 405)
    assert {path.name for path in http.root.iterdir()} <= {".lock"}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=255), max_size=300))
def test_no_text_is_a_token(http: HttpLine, header: str) -> None:
    held = Tokens.load(http.tokens)
    assert held.holder(header) is None
    assert held.holder(http.token[Scope.read] + header) is None or not header


def test_tokens_are_kept_as_hashes_in_a_file_of_their_owner_and_never_logged(
    http: HttpLine, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    enrolled(http)
    ask(http, "GET", "/observed", http.token[Scope.read])
    ask(http, "GET", "/observed", "wrong-token-abc")
    kept = http.tokens.read_text()
    assert http.tokens.stat().st_mode & 0o777 == 0o600
    captured = capfd.readouterr()
    for token in [*http.token.values(), "wrong-token-abc"]:
        assert token not in kept + caplog.text + captured.out + captured.err
    http.tokens.chmod(0o640)
    with pytest.raises(TokenError, match="must be 600"):
        Tokens.load(http.tokens)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"tokens": [{"name": "x"}]}', '{"tokens": 3}', "\0" * 100])
def test_a_tokens_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(TokenError, match="not a tokens file"):
        Tokens.load(path)


def test_nothing_listens_to_the_network_without_tls(http: HttpLine) -> None:
    with pytest.raises(ValueError, match="can be reached by others"):
        Server(Door(http.root, http.tokens), host="0.0.0.0")
    with pytest.raises(ValueError, match="in the clear"):
        HttpMailbox("http://192.0.2.1:9411", "t", http.ours, INFO)


def test_over_tls_with_a_certificate_of_its_own(http: HttpLine, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [require_program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    server = Server(Door(http.root, http.tokens), certificate=certificate, key=key)
    url, token = f"https://localhost:{server.start()}", http.token[Scope.agent]
    agent = make_agent(http.ours, HttpMailbox(url, token, http.ours, INFO, wait=0, cafile=certificate))  # type: ignore[arg-type]
    agent.boundary(state(agent))
    assert http.observed().step == 10
    with pytest.raises(OSError, match="certificate"):
        HttpMailbox(url, token, http.ours, INFO, wait=0).fetch()
    server.stop()


def test_a_body_that_never_ends_is_given_up(http: HttpLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.post.server.BODY_SECONDS", 0.3)
    enrolled(http)
    with socket.create_connection(("127.0.0.1", http.port), timeout=20) as connection:
        head = f"POST {RUN}/orders HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {http.token[Scope.act]}\r\nContent-Length: 900\r\n\r\n"
        connection.sendall(head.encode() + b'{"act')
        assert b" 408 " in connection.recv(4096)


def test_an_unsigned_file_among_what_people_said_is_put_aside(http: HttpLine) -> None:
    enrolled(http)
    http.theirs.said.mkdir()
    order = Order(order_id="o1", action="stop", by="eve", at=time.time())
    forged = Said(run_uid=INFO.run_uid, word=order).signed(b"x" * 32).model_dump_json()
    elsewhere = Said(run_uid="another", word=order).signed(read_key(http.theirs)).model_dump_json()
    contents = ["{", json.dumps({"run_uid": INFO.run_uid, "word": {}}), "x" * 100_000, forged, elsewhere]
    for name, content in enumerate(contents):
        (http.theirs.said / f"{name}.json").write_text(content)
    assert Post(http.theirs).said(time.time()) == ((), ())
    assert {path.suffix for path in http.theirs.said.iterdir()} == {".refused"}
