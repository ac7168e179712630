"""`scalerl log` and `scalerl replay-journal` on a journal that a controller wrote."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from controlplane.cli import app
from controlplane.contract.rundir import RunDir
from controlplane.journal import Entry, EntryKind, Journal
from controlplane.sim.faults import lr_fault
from tests.loop.simulated import Bench


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that collapsed and was rolled back, under two controllers one after the other."""
    bench = Bench(tmp_path_factory.mktemp("run"), 1, (lr_fault(60, 20, steps=200),), planned=110)
    bench.run(until=40)
    bench.kill()
    bench.controller = bench.start()
    bench.run()
    bench.close()
    return bench.rundir


def scalerl(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_the_log_tells_what_was_done_and_why(recorded: RunDir) -> None:
    lines = scalerl("log", str(recorded.root)).output.splitlines()
    assert [line.split()[4] for line in lines[:2]] == ["start", "start"]
    assert sum(" act " in line and "roll back to step" in line for line in lines) == 1
    assert sum(" published " in line for line in lines) == 1
    assert sum(" nothing " in line for line in lines) == 0


def test_the_log_can_be_narrowed_and_read_by_programs(recorded: RunDir) -> None:
    lines = scalerl("log", str(recorded.root), "--json", "--kind", "act", "--kind", "nothing", "--since", "50").output
    entries = [Entry.model_validate_json(line) for line in lines.splitlines()]
    assert {entry.body["decision"]["kind"] for entry in entries} == {"act", "nothing"}
    assert min(entry.body["decision"]["step"] for entry in entries) >= 50
    refused = scalerl("log", str(recorded.root), "--kind", "actt")
    assert refused.exit_code != 0
    assert "must be one of" in str(refused.exception)


def test_a_recorded_journal_replays_bit_for_bit(recorded: RunDir) -> None:
    result = scalerl("replay-journal", str(recorded.root))
    assert result.exit_code == 0, result.output
    assert "all the same, bit for bit" in result.output


def test_the_first_decision_that_comes_out_otherwise_is_shown_and_fails(recorded: RunDir, tmp_path: Path) -> None:
    original = Journal(recorded.journal, read_only=True)
    copy = Journal(RunDir(tmp_path).journal)
    for entry in original.entries():
        body = entry.body
        if entry.kind is EntryKind.look and body["decision"]["kind"] == "act":
            body = {**body, "decision": {**body["decision"], "onset": 1}}
        copy.append([(entry.kind, body)], entry.at)
    copy.close()
    result = scalerl("replay-journal", str(tmp_path))
    assert result.exit_code == 1
    assert "recorded  1" in result.output
    assert "onset" in result.output
    assert json.loads(result.output.split("now       ")[1].splitlines()[0]) > 1
