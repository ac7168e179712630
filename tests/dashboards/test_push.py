"""`scalerl grafana` against a server that knows only the documented API."""

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controlplane.contract.yamlfile import FileError
from dashboards.command import app
from tests.dashboards.files import LOADED
from tests.notify.stub import TOKEN, Stub, grafana_stub


def push(stub: Stub, monkeypatch: pytest.MonkeyPatch, token: str = TOKEN, *arguments: str):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("SCALERL_GRAFANA_URL", stub.url)
    monkeypatch.setenv("SCALERL_GRAFANA_TOKEN", token)
    return CliRunner().invoke(app, ["push", *arguments])


def test_push_makes_the_folder_and_every_dashboard_and_may_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    with grafana_stub() as stub:
        for _ in range(2):
            done = push(stub, monkeypatch)
            assert done.exit_code == 0, done.output
    assert stub.wrong == []
    assert stub.folders == {"scalerl": "RL runs"}
    assert stub.dashboards == {b["uid"]: {**b, "id": None} for b in LOADED.values()}
    assert done.output.startswith(f"Grafana 13.2.1 at {stub.url}")
    assert f"RL run: overview: {stub.url}/d/scalerl-overview/x" in done.output


def test_a_provisioned_dashboard_is_left_alone_and_the_others_still_come(monkeypatch: pytest.MonkeyPatch) -> None:
    with grafana_stub() as stub:
        stub.provisioned.add("scalerl-overview")
        done = push(stub, monkeypatch)
    assert done.exit_code == 1
    assert "RL run: overview: left alone, because it is provisioned" in done.output
    assert stub.dashboards.keys() == {b["uid"] for b in LOADED.values()} - {"scalerl-overview"}


def test_one_refusal_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with grafana_stub() as stub:
        stub.folders["scalerl"] = "mine"
        stub.refused.add("scalerl-learning")
        done = push(stub, monkeypatch)
    assert done.exit_code == 1
    assert "RL run: learning: Grafana at" in done.output
    assert stub.folders == {"scalerl": "mine"}
    assert stub.dashboards.keys() == {b["uid"] for b in LOADED.values()} - {"scalerl-learning"}


def test_a_wrong_token_or_a_dead_server_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with grafana_stub() as stub:
        done = push(stub, monkeypatch, "glsa_wrong")
        assert done.exit_code == 1
        assert "the token is not valid" in done.output
        assert "glsa_wrong" not in done.output
    done = push(stub, monkeypatch)
    assert done.exit_code == 1
    assert "does not answer" in done.output
    assert "Traceback" not in done.output


def test_without_an_address_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCALERL_GRAFANA_URL", raising=False)
    done = CliRunner().invoke(app, ["push"])
    assert isinstance(done.exception, FileError)
    assert "SCALERL_GRAFANA_URL" in str(done.exception)


def test_build_writes_and_checks(tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert run(app, ["build", "--out", str(tmp_path)]).exit_code == 0
    assert run(app, ["build", "--out", str(tmp_path), "--check"]).exit_code == 0
    (tmp_path / "system.json").write_text("{}")
    done = run(app, ["build", "--out", str(tmp_path), "--check"])
    assert done.exit_code == 1
    assert "system.json: differs" in done.output


def test_the_command_is_registered() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert project["entry-points"]["scalerl.commands"]["grafana"] == "dashboards.command:app"
