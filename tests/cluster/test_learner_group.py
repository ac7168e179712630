"""Learner ranks as Ray actors: one learner for the step machine, which changes on all ranks or on none and never hangs.

Functions that take a learner run on the ranks. Tests at the end lose the group; the next one starts another.
"""

import gc
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from controlplane.agent import BoundaryState, Directive
from controlplane.contract.documents import AckState, Action, Health, Setting, Target
from controlplane.contract.rundir import RunDir, read_lines
from tests.trainer.conftest import MICRO, Script, even_sum_passes
from tests.trainer.learn_cases import TUNABLES, scored
from tests.trainer.test_probe import order
from tests.trainer.test_with_agent import Operator
from trainer.build import Groundwork, Workers, assemble, build, generators, identify
from trainer.checkpoint.health import Trial
from trainer.checkpoint.ring import Snapshot
from trainer.checkpoint.store import CheckpointError, CheckpointStore, Content
from trainer.cluster import ballot
from trainer.cluster.learner_group import LearnerGroup
from trainer.cluster.learners import LearnerLost, Limits, Poisoned
from trainer.learn.learner import PlainLearner
from trainer.learn.sharded import ShardedLearner
from trainer.loop import Loop
from trainer.model import load_model
from trainer.recipe import Recipe
from trainer.stopwatch import Devices, Stopwatch
from trainer.sync import files
from trainer.tasks.arithmetic import Arithmetic
from trainer.types import ScoredGroup, Version
from trainer.warmstart import warm_started

RECIPE = Recipe.model_validate(
    {
        **MICRO,
        "steps": 8,
        "optimizer": {"lr": 1e-3, "warmup_steps": 2, "eps": 1e-8},
        "checkpoint": {"every": 2, "keep": 10, "health": {"good_after_steps": 1}, "snapshots": 4, "replay": "same"},
        "guard_rails": {"cooldown_steps": 0},
        "cluster": {"learners": {"ranks": 2}},
    }
)
LIMITS = Limits(start=120, work=20, vote=20)
TRIAL = Trial(0, 0.5, None)


def batch(step: int) -> list[ScoredGroup]:
    return [
        scored([1.0, -1.0, -1.0], [3 + step, 9, 5], ordinal=step),
        scored([1.0, -1.0], [20, 2], ordinal=9),
    ]


class Groups:
    """The group in use, and a new one where the last was lost. Every test finds it as it started."""

    def __init__(self, root: Path) -> None:
        self.start = warm_started(RECIPE.model, RECIPE.task, RECIPE.warm_start)
        self.rundir = RunDir(root)
        self._group: LearnerGroup | None = None
        self._fresh: dict[str, Any] = {}

    def new(self) -> LearnerGroup:
        return LearnerGroup(
            RECIPE,
            self.start,
            gpus=0,
            checkpoints=self.rundir.checkpoints,
            poison=self.rundir.poison,
            limits=LIMITS,
        )

    def get(self) -> LearnerGroup:
        if self._group is None or self._group._lost is not None:
            self._group = self.new()
            self._fresh = {"shards": self._group.keep(), "base_lr": self._group.base_lr}
        self._group.load_state_dict(self._fresh)
        return self._group

    def close(self) -> None:
        if self._group is not None:
            self._group.close()


@pytest.fixture(scope="module")
def groups(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Groups]:
    root = tmp_path_factory.mktemp("group")
    made = Groups(root)
    made.rundir.control.mkdir()
    made.rundir.checkpoints.mkdir()
    yield made
    made.close()


@pytest.fixture
def group(groups: Groups) -> LearnerGroup:
    return groups.get()


def train(group: LearnerGroup, first: int, last: int) -> list[Any]:
    return [replace(group.step(n, batch(n), TUNABLES), noise_scale_prompts=0) for n in range(first, last + 1)]


def exported(group: LearnerGroup, directory: Path) -> str:
    return group.export(directory / "weights")


def test_ranks_take_the_steps_of_one_process_and_export_its_weights(
    group: LearnerGroup, groups: Groups, tmp_path: Path
) -> None:
    plain = PlainLearner(load_model(groups.start), RECIPE.optimizer, RECIPE.loss, RECIPE.precision)
    for step in range(1, 5):
        mine, theirs = group.step(step, batch(step), TUNABLES), plain.step(step, batch(step), TUNABLES)
        assert (mine.loss, mine.grad_norm) == pytest.approx((theirs.loss, theirs.grad_norm), rel=1e-4)
    weights = files.read(tmp_path / "weights", exported(group, tmp_path))
    assert weights.keys() == plain.model.state_dict().keys()
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=2e-5)


def test_what_a_checkpoint_and_a_copy_hold_goes_on_bit_exactly(group: LearnerGroup, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    train(group, 1, 2)
    checkpoint = store.save(2, 0, 2, content_of(group), TRIAL)
    snapshot = Snapshot.of(checkpoint.digest, content_of(group), None)
    first = (train(group, 3, 4), exported(group, tmp_path))
    for content in (snapshot.content(), store.load(checkpoint), snapshot.content()):
        group.load_state_dict({**content.tensors, "base_lr": content.values["base_lr"]})
        assert (train(group, 3, 4), exported(group, tmp_path)) == first
    again = store.save(
        4, 1, 3, Content(snapshot.content().tensors, {}), TRIAL
    )  # a copy is written as well as the original
    linked = store.save(5, 1, 3, Content(store.load(again).tensors, {}), TRIAL)
    assert store.valid(linked)


def content_of(group: LearnerGroup) -> Content:
    state = group.state_dict()
    return Content({"shards": state["shards"]}, {"base_lr": state["base_lr"]})


def test_the_state_of_one_process_goes_on_in_many(group: LearnerGroup, groups: Groups, tmp_path: Path) -> None:
    plain = PlainLearner(load_model(groups.start), RECIPE.optimizer, RECIPE.loss, RECIPE.precision)
    plain.step(1, batch(1), TUNABLES)
    group.load_state_dict(plain.state_dict())
    weights = files.read(tmp_path / "weights", exported(group, tmp_path))
    assert all(torch.equal(weights[name], tensor) for name, tensor in plain.model.state_dict().items())
    mine, theirs = group.step(2, batch(2), TUNABLES), plain.step(2, batch(2), TUNABLES)
    assert (mine.loss, mine.grad_norm) == pytest.approx((theirs.loss, theirs.grad_norm), rel=1e-4)
    assert not list(groups.rundir.checkpoints.glob(".sharding-*"))


def kept(learner: ShardedLearner) -> frozenset[str]:
    return learner.kept


def test_a_copy_goes_when_nobody_names_it_any_more(group: LearnerGroup) -> None:
    gc.collect()
    held = [group.keep()]  # whatever earlier tests have left goes with this
    before = group.apply(kept, doing="a test")
    snapshot = Snapshot.of("", content_of(group), None)
    assert [len(now - was) for now, was in zip(group.apply(kept, doing="a test"), before, strict=True)] == [1, 1]
    del snapshot
    gc.collect()
    held.append(group.keep())
    now = group.apply(kept, doing="a test")
    assert now == [was | {held[-1].name} for was in before]


@pytest.mark.parametrize("damage", ["shards/.metadata", "shards/__1_0.distcp"])
def test_damaged_shards_are_never_restored(group: LearnerGroup, tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path / "c")
    good = store.save(1, 0, 1, content_of(group), TRIAL)
    torn = store.save(2, 0, 2, content_of(group), TRIAL)
    data = bytearray((torn.path / damage).read_bytes())
    data[len(data) // 2] ^= 1
    (torn.path / damage).write_bytes(data)
    assert store.newest() == good
    with pytest.raises(CheckpointError, match="digest"):
        store.load(torn)
    good_shards = store.load(good).tensors["shards"]
    (good_shards.path / "__1_0.distcp").unlink()  # after its digest was compared
    before = exported(group, tmp_path)
    with pytest.raises(CheckpointError, match="learner rank 0"):
        group.load_state_dict({"shards": good_shards, "base_lr": 5.0})
    assert exported(group, tmp_path) == before
    assert group.base_lr == RECIPE.optimizer.lr
    train(group, 1, 1)


def test_a_disk_that_one_rank_finds_full_leaves_no_checkpoint_and_the_run_goes_on(
    group: LearnerGroup, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path / "c")
    good = store.save(1, 0, 1, content_of(group), TRIAL)
    group.apply(room, 1, 4096, doing="a test")
    with pytest.raises(
        CheckpointError, match=r"step 2 could not be written: learner rank \d: rank 1: .*File too large"
    ):
        store.save(2, 0, 2, content_of(group), TRIAL)
    group.apply(room, 1, resource.RLIM_INFINITY, doing="a test")
    assert [path.name for path in (tmp_path / "c").iterdir()] == [good.path.name]
    train(group, 1, 1)
    assert store.newest() == good


def test_weights_that_find_no_room_leave_no_file_and_the_ranks_go_on(group: LearnerGroup, tmp_path: Path) -> None:
    group.apply(room, 0, 4096, doing="a test")
    with pytest.raises(OSError, match=r"learner rank 0 could not write the weights: .*File too large"):
        exported(group, tmp_path)
    group.apply(room, 0, resource.RLIM_INFINITY, doing="a test")
    assert not list(tmp_path.iterdir())
    train(group, 1, 1)
    assert len(exported(group, tmp_path)) == 64


def room(learner: ShardedLearner, rank: int, size: int) -> None:
    if learner._peers.rank == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


# Whole runs: loop and torch generator here, the ranks in their processes


class Run:
    """A run of the group's: what it published under which step, and what it was told."""

    def __init__(self, groups: Groups, rundir: RunDir) -> None:
        self.group, self.rundir = groups.get(), rundir
        self.published: dict[tuple[int, int], str] = {}
        self.loop: Loop

    def workers(self, work: Groundwork) -> Workers:
        generator, judge = generators(work)
        self._generator = generator
        return Workers(self.group, generator, judge, self, Devices(1, 1, "turns"))

    def publish(self, version: Version) -> None:
        path = self.rundir.root / "weights"
        digest = self.group.export(path)
        self._generator.load(files.read(path, digest), version)
        if hasattr(self, "loop"):
            self.published[version.branch, self.loop.state.step] = digest

    def used(self) -> list[list[tuple[int, dict[str, float]]]]:
        return [[(taken.step, dict(taken.tunables)) for taken in rank] for rank in self.group.used()]


def test_a_rollback_in_same_mode_repeats_the_run_bit_for_bit_on_two_ranks(
    groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Arithmetic, "verify", even_sum_passes)
    run, script = Run(groups, RunDir(tmp_path / "run")), Script()

    def back_to_2(state: BoundaryState) -> Directive | None:
        if (state.step, state.branch) != (6, 0):
            return None
        chosen = next(c for c in state.checkpoints if c.step == 2)
        assert chosen.health is Health.good
        return Directive("d", 1, {}, Action.rollback, Target(step=2, digest=chosen.digest))

    script.at_step = back_to_2
    identify(RECIPE, run.rundir)
    run.loop = assemble(RECIPE, run.rundir, groups.start, script, RECIPE.tunables(), Stopwatch(), workers=run.workers)
    assert run.loop.run() == "end"
    assert script.acks[0][1] is AckState.applied
    told = {
        branch: [
            (r.step, r.loss, r.grad_norm, r.rollouts.rewards, r.rollouts.lengths)
            for r in script.steps
            if r.branch == branch
        ]
        for branch in (0, 1)
    }
    assert [step for step, *_ in told[0]] == [1, 2, 3, 4, 5, 6]
    assert told[1][:4] == told[0][2:]
    again = {step: digest for (branch, step), digest in run.published.items() if branch == 1}
    assert {step: run.published[0, step] for step in (3, 4, 5, 6)} == {step: again[step] for step in (3, 4, 5, 6)}
    assert again[2] == run.published[0, 2]
    assert len(set(again.values())) == len(again)


def test_a_probe_on_two_ranks_leaves_the_run_bit_for_bit_as_without_it(
    groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Arithmetic, "verify", even_sum_passes)
    recipe = RECIPE.model_copy(update={"checkpoint": RECIPE.checkpoint.model_copy(update={"snapshots": 0})})

    def ended(name: str, ask: Callable[[BoundaryState], Directive | None]) -> tuple[str, list[float]]:
        run, script = Run(groups, RunDir(tmp_path / name)), Script(ask)
        identify(recipe, run.rundir)
        tunables = recipe.tunables()
        run.loop = assemble(recipe, run.rundir, groups.start, script, tunables, Stopwatch(), workers=run.workers)
        assert run.loop.run() == "end"
        return run.group.export(tmp_path / "weights"), [report.loss for report in script.steps]

    probe = order({"up": {"lr_scale": 2.0}}, steps=2)
    quiet = ended("quiet", lambda _: None)
    probed = ended("probed", lambda state: probe if state.step == 3 and not state.probe else None)
    assert probed == quiet
    record = list(read_lines(tmp_path / "probed" / "probes" / "p1.jsonl"))
    assert [line["arm"] for line in record if line["kind"] == "step"] == ["control", "up"] * 2
    gc.collect()
    last = groups.get().keep()
    names = groups.get().apply(kept, doing="a test")
    assert all(
        last.name in each and len(each) <= 2 for each in names
    )  # this one, and the one that `Groups` goes back to


def little_memory_on_rank_1(learner: ShardedLearner, file: str) -> None:
    if learner._peers.rank == 1:
        ballot.MEMORY = Path(file)


def test_a_change_lands_on_the_same_step_of_both_ranks_and_one_that_refuses_is_enough_for_none(
    groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Arithmetic, "verify", even_sum_passes)
    run = Run(groups, groups.rundir)  # where the ranks look for checkpoints
    recipe = RECIPE.model_copy(update={"steps": 100_000})
    (tmp_path / "meminfo").write_text("MemAvailable: 1 kB\n")
    ready = build(recipe, run.rundir, groups.start, workers=run.workers, check=run.group.vote)
    run.loop = ready.loop
    operator, real, seen_after = Operator(run.rundir), ready.loop._control_point, dict[int, Any]()

    def watched() -> None:
        real()
        step = ready.loop.state.step
        assert step < 3000, "the documents were never answered"
        seen = operator.look()
        if seen is None:
            return
        asked = operator.generation
        answered = seen.last_ack is not None and seen.last_ack.decision_id == f"d{asked}"
        good = [checkpoint for checkpoint in seen.checkpoints if checkpoint.health is Health.good]
        if asked == 0:
            operator.ask(seen, set={"lr_scale": Setting(value=0.5)})
        elif asked == 1 and answered and good:
            run.group.apply(little_memory_on_rank_1, str(tmp_path / "meminfo"), doing="a test")
            target = Target(step=good[-1].step, digest=good[-1].digest)
            operator.ask(seen, action=Action.rollback, target=target, set={"lr_scale": Setting(scale=0.5)})
        elif asked == 2 and answered and seen.last_ack is not None:
            seen_after[2] = (seen.last_ack, dict(ready.loop.tunables), ready.loop.state.branch)
            run.group.apply(little_memory_on_rank_1, "/proc/meminfo", doing="a test")
            ready.loop.stop("the test has seen enough")

    monkeypatch.setattr(ready.loop, "_control_point", watched)
    assert ready.loop.run() == "stop"
    ready.close()
    changed = next(
        line for line in read_lines(run.rundir.control_log) if (line.get("ack") or {}).get("decision_id") == "d1"
    )
    mine, theirs = run.used()
    assert mine == theirs
    mine = mine[-ready.loop.state.step :]
    assert [step for step, _ in mine] == list(range(1, ready.loop.state.step + 1))
    scales = {step: used["lr_scale"] for step, used in mine}
    at = changed["ack"]["at_step"]
    assert {scale for step, scale in scales.items() if step <= at} <= {1.0}
    assert {scale for step, scale in scales.items() if step > at} == {0.5}
    ack, tunables, branch = seen_after[2]
    assert ack.state is AckState.rejected
    assert "learner rank 1: a rollback needs" in ack.reason
    assert (tunables["lr_scale"], branch) == (0.5, 0)


@pytest.mark.parametrize(
    ("directive", "objection"),
    [
        (Directive("d", 1, {"lr_scale": 0.5}), ""),
        (Directive("d", 1, {"lr_scale": 1e9}), "learner rank 0: lr_scale = 1e\\+09 is not inside the guard rails"),
        (
            Directive("d", 1, {}, Action.rollback, Target(step=7, digest="f" * 64)),
            "learner rank 0: the checkpoint of step 7 with digest ffffffffffff is not in",
        ),
    ],
)
def test_every_rank_votes_for_itself(group: LearnerGroup, directive: Directive, objection: str) -> None:
    said = group.vote(directive)
    assert said == "" if not objection else re.match(objection, said)


# Faults. Each loses its group.


def lost(group: LearnerGroup, call: Callable[[], Any]) -> tuple[LearnerLost, float]:
    began = time.monotonic()
    with pytest.raises(LearnerLost) as caught:
        call()
    return caught.value, time.monotonic() - began


def test_a_rank_that_is_killed_in_a_step_ends_the_group_at_once(group: LearnerGroup) -> None:
    group.apply(slow_steps, 0.5, doing="a test")
    pids = [pid for _, pid in group.processes]
    threading.Timer(0.3, os.kill, (pids[1], signal.SIGKILL)).start()
    error, _ = lost(group, lambda: train(group, 1, 100))
    assert (error.rank, error.doing.split()[0]) == (1, "step")
    assert "learner rank 1 died" in str(error)
    again, seconds = lost(group, lambda: train(group, 9, 9))
    assert again is error
    assert seconds < 1
    assert gone(pids)


def slow_steps(learner: ShardedLearner, seconds: float) -> None:
    real = learner.step

    def slow(*args: Any) -> Any:
        time.sleep(seconds)
        return real(*args)

    learner.step = slow  # type: ignore[method-assign]


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.cluster  # a second group
def test_a_rank_that_hangs_while_a_state_is_put_in_force_poisons_the_run_until_a_person_removes_the_file(
    groups: Groups,
) -> None:
    group = groups.get()
    copy = {"shards": group.keep(), "base_lr": 1e-3}
    train(group, 1, 1)
    pids = [pid for _, pid in group.processes]
    group.stage(copy)
    os.kill(pids[1], signal.SIGSTOP)
    group._limits = replace(group._limits, work=1.0)
    error, _ = lost(group, lambda: group.load_state_dict(copy))
    assert (error.rank, error.doing) == (1, "putting a state in force")
    assert "was not done after" in str(error)
    assert gone(pids)
    with pytest.raises(Poisoned, match=rf"learner rank 1 was not done .* remove {groups.rundir.poison}"):
        groups.new()
