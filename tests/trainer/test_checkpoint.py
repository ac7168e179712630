"""Checkpoints are whole or absent, proven by what follows, and never all deleted."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.documents import Health
from trainer.checkpoint import store as store_module
from trainer.checkpoint.health import HealthSpec, Score, StepHealth, Trial, healthy, passes, reference
from trainer.checkpoint.store import Checkpoint, CheckpointError, CheckpointStore, Content, abandoned

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
