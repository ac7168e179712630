"""Checkpoints are whole or absent, proven by what follows, and never all deleted."""

import contextlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.documents import Health
from controlplane.contract.reports import CheckpointReport
from trainer.checkpoint import store as store_module
from trainer.checkpoint.health import HealthSpec, Score, StepHealth, Trial, healthy, passes, reference
from trainer.checkpoint.keeper import Keeper
from trainer.checkpoint.store import Checkpoint, CheckpointError, CheckpointStore, Content, abandoned
from trainer.state import RunState

TRIAL = Trial(step=0, reference=0.5, baseline=Score(0, 0.5, 256))


def content(step: int) -> Content:
    return Content({"weight": torch.full((4,), float(step))}, {"step": step})


def save(store: CheckpointStore, step: int, branch: int = 0, health: Health = Health.fresh) -> Checkpoint:
    checkpoint = store.save(step, branch, step, content(step), TRIAL)
    store.mark(checkpoint, health, TRIAL)
    return checkpoint


def test_a_checkpoint_reads_back_bit_for_bit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    checkpoint = save(store, 3)
    assert store.all() == [checkpoint]
    loaded = store.load(checkpoint)
    assert torch.equal(loaded.tensors["weight"], content(3).tensors["weight"])
    assert loaded.values == {"step": 3}


@pytest.mark.parametrize("damage", ["state.pt", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_never_restored(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path / "c")
    good, torn = save(store, 1), save(store, 2)
    data = (torn.path / damage).read_bytes()
    (torn.path / damage).write_bytes(data[: len(data) // 2])
    assert store.newest() == good
    with pytest.raises(CheckpointError, match="digest"):
        store.load(torn)
    again = save(store, 2)  # and the same step can be written anew
    assert store.newest() == again


@pytest.mark.parametrize("at", ["save", "_fsync", "_sha256"])
def test_a_crash_while_writing_leaves_the_old_checkpoints_and_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    store = CheckpointStore(tmp_path / "c")
    good = save(store, 1)

    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch if at == "save" else store_module, at, crash)
        with pytest.raises(KeyboardInterrupt):
            save(store, 2)
    reopened = CheckpointStore(tmp_path / "c")
    assert reopened.newest() == good
    assert [path.name for path in (tmp_path / "c").iterdir()] == [good.path.name]


def test_a_full_disk_is_an_error_with_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path / "c")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"step 1 could not be written.*No space left"):
        save(store, 1)
    assert store.newest() is None


def test_resume_takes_the_newest_that_is_not_bad_and_the_highest_branch(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    save(store, 10, 0, Health.good)
    save(store, 20, 0, Health.bad)
    newer = save(store, 12, 0)
    assert store.newest() == newer
    branched = save(store, 10, 1)
    assert store.newest() == branched


def test_what_a_later_branch_went_behind_is_abandoned() -> None:
    forks = {1: 100, 2: 50}
    assert abandoned(110, 0, forks)
    assert abandoned(60, 0, forks)  # branch 2 went behind it
    assert abandoned(60, 1, forks)
    assert not abandoned(50, 0, forks)
    assert not abandoned(500, 2, forks)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(list(Health)), min_size=1, max_size=9), st.integers(1, 4))
def test_retention_keeps_the_newest_and_the_last_two_good(
    tmp_path_factory: pytest.TempPathFactory, healths: list[Health], keep: int
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("c"))
    saved = [save(store, step, 0, health) for step, health in enumerate(healths)]
    store.prune(keep)
    left = store.all()
    good = [c for c, health in zip(saved, healths, strict=True) if health is Health.good]
    must = {saved[-1], *good[-2:]}
    assert must <= set(left)
    assert len(left) == min(len(saved), max(keep, len(must)))


def test_health_needs_steps_and_an_evaluation_after_the_checkpoint() -> None:
    spec = HealthSpec(good_after_steps=2)
    fine = StepHealth(0.5, 16, "")
    trial = Trial(step=10, reference=0.5, baseline=Score(10, 0.5, 256))
    assert not trial.after_step(fine).after_step(fine).proven(spec)
    assert not trial.after_step(fine).after_step(fine).after_evaluation(Score(10, 0.6, 256)).proven(spec)
    assert not trial.after_step(fine).after_evaluation(Score(20, 0.5, 256)).proven(spec)
    assert trial.after_step(fine).after_step(fine).after_evaluation(Score(20, 0.5, 256)).proven(spec)


def test_a_collapse_after_the_checkpoint_keeps_it_from_becoming_good() -> None:
    spec = HealthSpec(good_after_steps=2)
    fine, collapsed = StepHealth(0.8, 16, ""), StepHealth(0.25, 16, "")
    trial = Trial(10, 0.8, Score(10, 0.8, 256)).after_step(fine).after_step(collapsed).after_step(fine)
    assert not trial.after_evaluation(Score(20, 0.8, 256)).proven(spec)
    steady = Trial(10, 0.8, Score(10, 0.8, 256)).after_step(fine).after_step(fine)
    assert not steady.after_evaluation(Score(20, 0.3, 256)).proven(spec)
    assert not steady.after_evaluation(Score(20, 0.8, 256)).after_evaluation(Score(30, 0.2, 256)).proven(spec)


def test_unfinished_numbers_are_unhealthy() -> None:
    assert not healthy(StepHealth(0.9, 16, "nonfinite"), 0.5)
    assert not healthy(StepHealth(math.nan, 16, ""), 0.5)
    assert healthy(StepHealth(0.9, 16, "no_signal"), 0.5)
    assert not healthy(StepHealth(0.0, 16, "no_signal"), 0.5)
    assert not passes(Score(1, math.nan, 10), None)
    assert math.isnan(reference([]))
    assert reference([0.0] * 5 + [1.0] * 10) == 1.0


PLACES: list[tuple[Any, str]] = [
    (torch, "save"),
    (Path, "write_text"),
    (Path, "rename"),
    (os, "fsync"),
    (os, "replace"),
    (tempfile, "mkdtemp"),
    (tempfile, "mkstemp"),
]


def refusing(patch: pytest.MonkeyPatch, at: int) -> list[int]:
    """From here on, touch number `at` of the disk is refused, once. Returns the count of touches."""
    count = [0]
    for owner, name in PLACES:
        real = getattr(owner, name)

        def touched(*args: Any, real: Any = real, **keys: Any) -> Any:
            count[0] += 1
            if count[0] - 1 == at:
                raise OSError(28, "No space left on device")
            return real(*args, **keys)

        patch.setattr(owner, name, touched)
    return count


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step again"])
def test_a_disk_that_refuses_any_one_write_or_rename_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path, again: bool
) -> None:
    at = refused = 0
    while True:
        root = tmp_path / str(at)
        store = CheckpointStore(root)
        old = save(store, 1)
        if again:
            old = save(store, 2)
        before = names(root)
        with pytest.MonkeyPatch.context() as patch:
            count = refusing(patch, at)
            try:
                new: Checkpoint | None = store.save(2, 0, 7, content(20), TRIAL)
            except CheckpointError:
                new = None
        if new is None:
            refused += 1
            assert store.newest() == old
            assert names(root) == before  # nothing is left behind either
            store.load(old)
        else:
            assert store.newest() == new
            assert store.load(new).values == {"step": 20}
        assert CheckpointStore(root).newest() is not None
        if count[0] <= at:
            break
        at += 1
    assert refused == at > 8


def test_a_death_between_the_two_renames_of_a_replacement_loses_neither(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    old = save(store, 2)
    real = Path.rename

    def die(self: Path, target: Path) -> Path:
        if self.name.startswith(".writing-"):
            raise KeyboardInterrupt
        return real(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            save(store, 2)
    assert store.newest() is None
    reopened = CheckpointStore(tmp_path / "c")
    assert reopened.newest() == old
    assert names(tmp_path / "c") == {old.path.name}


def test_a_death_inside_an_atomic_write_leaves_nothing_that_stops_the_next_start(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    good = save(store, 1)
    (tmp_path / "c/.best.json.x1").write_text("half")
    (tmp_path / "c/.writing-x2").mkdir()
    (tmp_path / "c/.deleting-step-000000-b0").mkdir()
    assert CheckpointStore(tmp_path / "c").newest() == good
    assert names(tmp_path / "c") == {good.path.name}


def scored(store: CheckpointStore, step: int, score: float | None, branch: int = 0) -> Checkpoint:
    return store.save(step, branch, step, content(step), TRIAL, score)


def test_the_best_by_held_out_score_stays_and_is_pointed_at(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    scores = [0.1, 0.7, None, 0.7, 0.2, 0.3, None]
    saved = [scored(store, step, score) for step, score in enumerate(scores)]
    store.prune(1)
    store.point_at_best()
    assert store.all() == [saved[3], saved[6]]  # the later of equals, and the newest
    pointer = json.loads((tmp_path / "c/best.json").read_text())
    assert pointer == {"checkpoint": "step-000003-b0", "step": 3, "branch": 0, "pass_ratio": 0.7}
    store.mark_abandoned({1: 1})  # a branch that began behind it
    again = scored(store, 1, 0.4, branch=1)
    store.point_at_best()
    assert store.best() == again
    assert json.loads((tmp_path / "c/best.json").read_text())["branch"] == 1
    store.mark(again, Health.bad, TRIAL)
    store.point_at_best()
    assert not (tmp_path / "c/best.json").exists()


def test_the_best_pointer_is_the_old_or_the_new_one_whatever_the_disk_refuses(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    scored(store, 1, 0.1)
    store.point_at_best()
    old = (tmp_path / "c/best.json").read_text()
    scored(store, 2, 0.2)
    at = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            count = refusing(patch, at)
            with contextlib.suppress(OSError):
                store.point_at_best()
        now = (tmp_path / "c/best.json").read_text()
        assert json.loads(now)["step"] in (1, 2)
        if count[0] <= at:
            break
        (tmp_path / "c/best.json").write_text(old)
        at += 1
    assert at >= 3
    assert json.loads((tmp_path / "c/best.json").read_text())["step"] == 2


def test_a_keeper_survives_a_disk_that_does_not_let_it_tidy_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[CheckpointReport] = []
    store = CheckpointStore(tmp_path / "c")
    keeper = Keeper(store, HealthSpec(good_after_steps=1), 1, reports.append)
    state = RunState(step=1, latest=Score(1, 0.5, 8), best=Score(1, 0.5, 8))
    assert keeper.save(state, content(1)) is not None
    keeper.settle({})
    state.step, state.latest = 2, Score(2, 0.6, 8)
    assert keeper.save(state, content(2)) is not None

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        patch.setattr(store_module, "write_atomic", full)
        assert keeper.settle({}) == []
        keeper.after_step(StepHealth(0.5, 8, ""))
        keeper.after_evaluation(Score(3, 0.6, 8))  # both are proven, and the disk does not take it
    assert {c.health for c in keeper.states} == {Health.fresh}
    keeper.after_step(StepHealth(0.5, 8, ""))
    assert {c.health for c in keeper.states} == {Health.good}
    assert [report.failed_stage for report in reports] == ["", ""]
    assert keeper.settle({}) == []
    assert store.best() == store.newest()
