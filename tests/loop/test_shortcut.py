"""A controller that starts from a shortcut stands exactly where one stands that folds the whole journal."""

import json
import pickle
from pathlib import Path

import pytest

from controlplane import shortcut
from controlplane.decide import Decision, Evaluator, Kind
from controlplane.journal import EntryKind
from controlplane.policy import find, parse
from controlplane.replay import replay
from controlplane.sim.faults import lr_fault
from controlplane.snapshot import Snapshot
from tests.loop.simulated import Bench

FAULT = (lr_fault(60, 20, steps=200),)


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, object]]]:
    """A run that collapses, is rolled back and gets its verdict."""
    bench = Bench(tmp_path_factory.mktemp("run"), 1, FAULT, planned=120)
    bench.run()
    assert bench.of(Kind.act)
    bench.close()
    return [entry.body for entry in bench.journal.entries(kind=EntryKind.look)]


@pytest.mark.parametrize("policy", ["demo", "guard"])
def test_cut_anywhere_the_state_from_a_shortcut_is_the_state_of_the_full_fold(
    looks: list[dict[str, dict[str, object]]], policy: str
) -> None:
    """After the cut both are asked for further decisions, under the policy of the run and under another."""
    rules = parse(find(policy)[1])
    whole, forks = Evaluator(rules), dict[int, Evaluator]()
    for number, body in enumerate(looks, 1):
        snapshot, decision = Snapshot.model_validate(body["snapshot"]), Decision.model_validate(body["decision"])
        if number % 9 == 0 or 62 <= number <= 68:
            expected = pickle.loads(pickle.dumps(whole)).look(snapshot)[1]
            for cut, fork in forks.items():
                assert pickle.loads(pickle.dumps(fork)).look(snapshot)[1] == expected, (cut, number)
        for each in (whole, *forks.values()):
            each.recall(snapshot, decision)
        if number in (1, 55, 64, 66, 90):
            forks[number] = pickle.loads(pickle.dumps(whole))
    assert all(fork.standing == whole.standing for fork in forks.values())


def decisions(root: Path, kills: tuple[int, ...]) -> list[str]:
    bench, going = Bench(root, 4, FAULT, planned=120), True
    while going:
        going = bench.step()
        if bench.trainer.step_number in kills:
            bench.kill()
            bench.controller = bench.start()
    assert replay(bench.journal).differences == ()
    bench.close()
    return [json.dumps(d.model_dump(mode="json"), sort_keys=True) for d in bench.decisions]


def test_killed_and_started_from_shortcuts_a_controller_carries_on_as_if_it_had_lived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lived = decisions(tmp_path / "lived", ())
    monkeypatch.setattr(shortcut, "EVERY", 7)
    used = []
    load = shortcut.load
    monkeypatch.setattr(shortcut, "load", lambda *a: used.append(load(*a)) or used[-1])
    assert decisions(tmp_path / "killed", (30, 61, 63, 64, 65, 67, 90)) == lived
    assert sum(each is not None for each in used) >= 6


def test_a_shortcut_of_other_code_policy_journal_or_owner_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortcut, "EVERY", 5)
    bench = Bench(tmp_path / "one", 1, planned=30)
    bench.run(until=12)
    path, policy = bench.rundir.shortcut, bench.controller._policy
    assert shortcut.load(path, Evaluator(policy), bench.journal) is not None
    assert shortcut.load(path, Evaluator(parse(find("guard")[1])), bench.journal) is None
    other = Bench(tmp_path / "other", 2, planned=30)
    other.run(until=12)
    assert shortcut.load(path, Evaluator(policy), other.journal) is None
    with monkeypatch.context() as patch:
        patch.setattr(shortcut, "_code", lambda: "newer")
        assert shortcut.load(path, Evaluator(policy), bench.journal) is None
    path.chmod(0o644)
    assert shortcut.load(path, Evaluator(policy), bench.journal) is None
    path.chmod(0o600)
    path.write_text(path.read_text()[:-200])
    assert shortcut.load(path, Evaluator(policy), bench.journal) is None
    bench.close()
    other.close()
