import logging
import socket
from collections.abc import Iterator

import httpx
import pytest

from controlplane.notify import DeliveryError, Grafana, GrafanaError, Notice
from controlplane.notify.channels import GrafanaChannel, Webhook, payload_of, tags_of, text_of
from tests.notify.stub import TOKEN, Stub, grafana_stub


@pytest.fixture
def stub() -> Iterator[Stub]:
    with grafana_stub() as running:
        yield running
        assert running.wrong == []


@pytest.fixture
def grafana(stub: Stub) -> Iterator[Grafana]:
    client = Grafana(stub.url + "/", TOKEN)
    yield client
    client.close()


NOTICE = Notice(
    key="d1", run="math-8b", at=1_800_000_000.25, kind="act", result="act", rule="collapse", action="rollback",
    change="step 95 -> 70, lr_scale 1 -> 0.5", reason="the pass rate fell & grad_norm > 4", step=95, branch=0,
)  # fmt: skip


def answered(result: str = "applied", until: float = 1_800_000_010.0, verdict: str = "") -> Notice:
    return Notice(**{**NOTICE.__dict__, "result": result, "until": until, "verdict": verdict})


def test_an_action_is_one_annotation_that_ends_when_it_is_confirmed(stub: Stub, grafana: Grafana) -> None:
    channel = GrafanaChannel(grafana)
    channel.deliver(NOTICE)
    (first,) = stub.annotations.values()
    assert first["time"] == first["timeEnd"] == 1_800_000_000_250
    assert first["tags"] == ["scalerl", "run:math-8b", "rule:collapse", "action:rollback", "result:act", "decision:d1"]
    channel.deliver(answered())
    channel.deliver(answered(verdict="the pass rate returned"))
    (last,) = stub.annotations.values()
    assert (last["time"], last["timeEnd"]) == (1_800_000_000_250, 1_800_000_010_000)
    assert "result:applied" in last["tags"]
    assert "result:act" not in last["tags"]
    assert last["text"].endswith("the pass rate returned")


def test_a_controller_started_later_finds_the_annotation_again(stub: Stub, grafana: Grafana) -> None:
    GrafanaChannel(grafana).deliver(NOTICE)
    GrafanaChannel(grafana).deliver(answered("reverted"))
    (only,) = stub.annotations.values()
    assert "result:reverted" in only["tags"]


def test_an_annotation_that_somebody_deleted_is_an_error_and_not_made_again(stub: Stub, grafana: Grafana) -> None:
    channel = GrafanaChannel(grafana)
    channel.deliver(NOTICE)
    stub.annotations.clear()
    with pytest.raises(DeliveryError, match="404") as caught:
        channel.deliver(answered())
    assert caught.value.final
    assert stub.annotations == {}


def test_the_text_says_what_changed_and_why_and_cannot_carry_html() -> None:
    assert text_of(NOTICE) == (
        "rollback (act) by rule collapse<br>step 95 -&gt; 70, lr_scale 1 -&gt; 0.5<br>the pass rate fell &amp; grad_norm &gt; 4"
    )
    evil = Notice(**{**NOTICE.__dict__, "reason": "<script>x</script>"})
    assert "<script>" not in text_of(evil)
    assert tags_of(evil)[0] == "scalerl"


def test_a_wrong_token_is_said_once_and_never_shown(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(GrafanaError, match="the token is not valid") as caught:
        Grafana(stub.url, "glsa_wrong").add_annotation(1.8e9, None, ["scalerl"], "x")
    assert caught.value.final
    assert "glsa_wrong" not in str(caught.value) + caplog.text


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "café"])
def test_what_cannot_be_a_token_is_refused_before_it_is_sent(token: str) -> None:
    with pytest.raises(GrafanaError, match="token") as caught:
        Grafana("http://127.0.0.1:1", token)
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize("url", ["", "grafana:3000", "ftp://grafana", "http://", "http://user:pw@grafana"])
def test_what_is_no_address_of_a_grafana_is_refused(url: str) -> None:
    with pytest.raises(GrafanaError) as caught:
        Grafana(url, TOKEN)
    assert "pw@" not in str(caught.value)


def test_an_overloaded_grafana_is_worth_another_try_and_a_refusal_is_not(stub: Stub, grafana: Grafana) -> None:
    for status, final in ((500, False), (503, False), (429, False), (400, True), (412, True)):
        stub.failing.append(status)
        with pytest.raises(GrafanaError, match=f"answered {status} .*not now") as caught:
            grafana.add_annotation(1.8e9, None, [], "x")
        assert caught.value.final is final


def test_a_server_that_is_gone_or_no_grafana_is_an_error_in_a_sentence(stub: Stub) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(GrafanaError, match="does not answer") as caught:
            Grafana(gone, TOKEN).version()
        assert not caught.value.final


def test_a_sub_path_of_the_address_is_kept() -> None:
    seen = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        return httpx.Response(200, json={"version": "13.2.1"})

    grafana = Grafana("https://tools.example/grafana/", TOKEN)
    grafana._client = httpx.Client(transport=httpx.MockTransport(handle))
    assert grafana.version() == "13.2.1"
    assert seen == ["/grafana/api/health"]


def test_the_webhook_gets_everything_as_json(stub: Stub) -> None:
    Webhook(f"{stub.url}/hook/s3cret").deliver(NOTICE)
    (got,) = stub.hooks
    assert got == payload_of(NOTICE)
    assert got["text"] == (
        "math-8b, step 95: rollback (act) by rule collapse. step 95 -> 70, lr_scale 1 -> 0.5; the pass rate fell & grad_norm > 4"
    )
    assert (got["version"], got["run"], got["result"], got["until"]) == (1, "math-8b", "act", None)


def test_the_address_of_the_webhook_is_in_no_message(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    hook = Webhook(f"{stub.url}/hook/s3cret")
    hook.deliver(NOTICE)
    stub.failing.append(500)
    with pytest.raises(DeliveryError, match="the webhook answered 500") as failed:
        hook.deliver(NOTICE)
    with pytest.raises(DeliveryError, match="does not answer") as gone:
        Webhook("http://127.0.0.1:1/hook/s3cret").deliver(NOTICE)
    with pytest.raises(DeliveryError, match="must begin with http") as bad:
        Webhook("s3cret")
    assert "s3cret" not in "".join(map(str, (failed.value, gone.value, bad.value)))
    assert "s3cret" not in "".join(r.getMessage() for r in caplog.records if r.name.startswith(("notify", "httpx")))
