"""The commands with which people speak to a run, by its directory and over HTTP."""

import time

import pytest
from typer.testing import CliRunner, Result

from controlplane.cli import app
from controlplane.post import Post
from controlplane.post.said import APPROVAL_SECONDS, ORDER_SECONDS
from tests.agent.house import INFO, state
from tests.post.conftest import HttpLine, Line


def scalerl(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def place(line: Line, scope: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a person names the run."""
    if not isinstance(line, HttpLine):
        return str(line.theirs.root)
    monkeypatch.setenv("SCALERL_TOKEN", line.token[scope])  # type: ignore[index]
    return f"{line.url}/v1/runs/{INFO.run_uid}"


def test_answers_and_orders_arrive_over_both_transports(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = line.agent()
    agent.boundary(state(agent))
    assert scalerl("approve", place(line, "approve", monkeypatch), "d1", "--why", "seen it").exit_code == 0
    assert scalerl("deny", place(line, "approve", monkeypatch), "d2").exit_code == 0
    for action in ("checkpoint", "pause", "resume", "stop"):
        assert scalerl(action, place(line, "act", monkeypatch), "--why", "lunch").exit_code == 0
    approvals, orders = line.post.said(time.time())
    assert [(a.decision_id, a.answer, a.reason) for a in approvals] == [
        ("d1", "approve", "seen it"),
        ("d2", "deny", ""),
    ]
    assert [(o.action, o.reason) for o in orders] == [(a, "lunch") for a in ("checkpoint", "pause", "resume", "stop")]
    assert all(word.by for word in (*approvals, *orders))


def test_an_order_stands_until_it_is_decided_and_an_answer_for_a_day(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = line.agent()
    agent.boundary(state(agent))
    scalerl("pause", place(line, "act", monkeypatch))
    scalerl("approve", place(line, "approve", monkeypatch), "d1")
    post, now = line.post, time.time()
    (order,) = post.said(now)[1]
    assert post.said(now)[1] == (order,)
    post.done(order.order_id)
    assert post.said(now)[1] == ()
    assert Post(line.theirs).said(now)[1] == ()
    assert len(post.said(now + APPROVAL_SECONDS - 60)[0]) == 1
    assert post.said(now + APPROVAL_SECONDS + 60) == ((), ())
    scalerl("pause", place(line, "act", monkeypatch))
    assert post.said(time.time() + ORDER_SECONDS + 60) == ((), ())


def test_without_key_or_token_nobody_is_heard(http: HttpLine, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = http.agent()
    agent.boundary(state(agent))
    http.ours.info.write_text(INFO.model_dump_json())
    url = place(http, "read", monkeypatch)
    assert "403" in str(scalerl("pause", url).exception)
    monkeypatch.delenv("SCALERL_TOKEN")
    assert "SCALERL_TOKEN" in str(scalerl("pause", url).exception)
    http.ours.key.unlink()
    assert "needs the key" in str(scalerl("pause", str(http.ours.root)).exception)
    assert http.post.said(time.time()) == ((), ())


def test_tokens_are_made_listed_and_taken_back(http: HttpLine) -> None:
    path = str(http.tokens)
    made = scalerl("token", "add", "ann", "--scope", "approve", "--scope", "read", "--run", "r1", "--tokens", path)
    assert made.exit_code == 0
    listed = scalerl("token", "list", "--tokens", path).output
    assert "ann                  approve, read                  r1" in listed
    assert made.output.strip() not in listed + http.tokens.read_text()
    assert "named ann already" in str(scalerl("token", "add", "ann", "--scope", "read", "--tokens", path).exception)
    assert scalerl("token", "remove", "ann", "--tokens", path).exit_code == 0
    assert "ann" not in scalerl("token", "list", "--tokens", path).output
