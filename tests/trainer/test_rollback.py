"""A rollback happens whole or not at all, and each way of replaying the data does what its name says, bit for bit."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from controlplane.agent import BoundaryState, Directive
from controlplane.contract.documents import AckState, Action, Health, Target
from controlplane.contract.rundir import RunDir, read_lines
from tests.trainer import rig
from tests.trainer.conftest import MICRO, Script
from trainer.build import identify
from trainer.checkpoint.ring import Snapshot, SnapshotRing
from trainer.checkpoint.store import CheckpointStore, Content
from trainer.loop import Loop
from trainer.recipe import Recipe
from trainer.rollout.seeds import request_seed
from trainer.types import GroupRequest, Version

FIRST, TARGET, LAST = 9, 4, 12
PIPELINE = {"mode": "pipeline", "max_staleness": 3}
PHASES = {"mode": "ppo_off_policy", "max_staleness": 3}
MODES = pytest.mark.parametrize("staleness", [PIPELINE, PHASES], ids=["pipeline", "ppo_off_policy"])


def spec(staleness: dict[str, Any] = PIPELINE, **checkpoint: Any) -> Recipe:
    return rig.recipe(steps=LAST, staleness=staleness, batch={"prompts_per_step": 3}, checkpoint=checkpoint)


def back_to(
    target: int, at: int, branch: int = 0, values: dict[str, float] | None = None
) -> Callable[[BoundaryState], Directive | None]:
    """Ask for one rollback, from step `at` of a branch to the good checkpoint of step `target`."""

    def ask(state: BoundaryState) -> Directive | None:
        if (state.step, state.branch) != (at, branch):
            return None
        chosen = next(c for c in state.checkpoints if (c.step, c.branch, c.health) == (target, branch, Health.good))
        goal = Target(step=chosen.step, digest=chosen.digest)
        return Directive(f"d{branch}", 1, values or {}, Action.rollback, goal, "a test")

    return ask


class Watched:
    """A run that keeps what every step left behind, and what was asked of the generator."""

    def __init__(self, root: Path, recipe: Recipe, ask: Callable[[BoundaryState], Directive | None]) -> None:
        self.script, self.rundir = Script(), RunDir(root)
        self.weights: dict[tuple[int, int], Any] = {}
        self.requests: list[GroupRequest] = []
        self.loop: Loop = rig.assemble(root, recipe, self.script)
        generator = self.loop._collector._generator
        submit = generator.submit

        def listen(request: GroupRequest) -> None:
            self.requests.append(request)
            submit(request)

        generator.submit = listen  # type: ignore[method-assign]

        def at_step(state: BoundaryState) -> Directive | None:
            learner = self.loop._learner.state_dict()
            parts = (learner["model"]["weight"], learner["optimizer"]["momentum"])
            self.weights[state.branch, state.step] = tuple(part.clone() for part in parts)
            return ask(state)

        self.script.at_step = at_step

    def run(self) -> "Watched":
        assert self.loop.run() == "end"
        return self

    def told(self, branch: int, first: int, last: int) -> list[Any]:
        """Everything about the steps of a branch but times and the names of versions."""
        steps = [
            (r.step, r.loss, r.grad_norm, r.rollouts.rewards, r.rollouts.lengths, r.rollouts.staleness, dict(r.buffer))
            for r in self.script.steps
            if r.branch == branch and first <= r.step <= last
        ]
        ledger = [
            (line["step"], line["epoch"], line["ordinals"], line.get("next_epoch"))
            for line in read_lines(self.rundir.ledger)
            if line["branch"] == branch and first <= line["step"] <= last
        ]
        weights = [self.weights[branch, step] for step in range(first, last + 1)]
        return [steps, ledger, weights]

    def event(self, name: str) -> dict[str, Any]:
        return next(event for event in read_lines(self.rundir.events) if event["event"] == name)


@MODES
def test_same_from_memory_repeats_bit_for_bit_what_followed_the_target(
    tmp_path: Path, staleness: dict[str, Any]
) -> None:
    run = Watched(tmp_path / "run", spec(staleness, replay="same", snapshots=4), back_to(TARGET, at=FIRST)).run()
    first, again = run.told(0, TARGET + 1, FIRST), run.told(1, TARGET + 1, FIRST)
    assert again == first
    event = run.event("rollback")
    assert (event["data"], event["source"], event["skipped"]) == ("same", "memory", [])
    assert event["target"] == f"step-{TARGET:06d}-b0"
    assert any(r.inflight or r.buffer["ready"] for r in run.script.steps if r.step == TARGET)  # there was something


@pytest.mark.parametrize("second", [TARGET, 6])
def test_same_from_memory_can_be_repeated_from_the_branch_that_it_made(tmp_path: Path, second: int) -> None:
    def ask(state: BoundaryState) -> Directive | None:
        return back_to(TARGET, at=FIRST)(state) or (back_to(second, at=FIRST, branch=1)(state))

    run = Watched(tmp_path / "run", spec(replay="same", snapshots=9), ask).run()
    assert [e["data"] for e in read_lines(run.rundir.events) if e["event"] == "rollback"] == ["same", "same"]
    assert run.told(2, 7, FIRST) == run.told(1, 7, FIRST) == run.told(0, 7, FIRST)


def test_forks_from_one_snapshot_are_alike_until_their_tunables_part(tmp_path: Path) -> None:
    run = Watched(tmp_path / "run", spec(snapshots=9), lambda _: None).run()
    snapshot = list(run.loop.savepoints.ring)[2]
    assert snapshot.flight is not None

    def future(n: int, lr_scale: float) -> Any:
        run.loop.tunables["lr_scale"] = lr_scale
        run.loop.savepoints.fork(snapshot, Version(n, 100 * n))
        run.loop._stepper.publish()
        for _ in range(3):
            run.loop._one_step()
        state = run.loop.session.learner.state_dict()["model"]
        return state["weight"].item(), state["seen"].tolist()

    known = run.weights[0, run.loop._keeper.states[2].step + 3][0].item()
    assert future(1, 1.0) == future(2, 1.0)
    assert future(3, 1.0)[0] == known  # and like what had followed
    assert future(4, 0.5)[0] != known


@MODES
def test_same_from_disk_does_what_a_fresh_process_does_that_resumes_from_the_target(
    tmp_path: Path, staleness: dict[str, Any]
) -> None:
    run = Watched(tmp_path / "run", spec(staleness, replay="same"), back_to(TARGET, at=FIRST)).run()
    assert run.event("rollback")["source"] == "disk"
    for name in ("step-000000-b0", "step-000002-b0", "step-000004-b0"):
        shutil.copytree(tmp_path / "run/checkpoints" / name, tmp_path / "copy/checkpoints" / name)
        health = tmp_path / "copy/checkpoints" / name / "health.json"
        health.write_text(health.read_text().replace("bad", "good"))
    fresh = Watched(tmp_path / "copy", spec(staleness, replay="same"), lambda _: None).run()
    assert fresh.event("resume")["checkpoint"] == "step-000004-b0"
    assert fresh.told(0, TARGET + 1, LAST) == run.told(1, TARGET + 1, LAST)


def test_a_target_that_left_the_ring_comes_from_the_disk(tmp_path: Path) -> None:
    run = Watched(tmp_path / "run", spec(replay="same", snapshots=1), back_to(TARGET, at=FIRST)).run()
    assert run.event("rollback")["source"] == "disk"
    assert len(list(run.loop.savepoints.ring)) == 1


@pytest.mark.parametrize("snapshots", [0, 4])
def test_reshuffle_gives_the_remaining_prompts_in_another_order_and_with_other_seeds(
    tmp_path: Path, snapshots: int
) -> None:
    recipe = spec(replay="reshuffle", snapshots=snapshots)
    run = Watched(tmp_path / "run", recipe, back_to(TARGET, at=FIRST))
    boundary: list[int] = []
    real = run.loop.savepoints.rollback

    def rollback(*args: Any) -> Any:
        boundary.append(len(run.requests))
        return real(*args)

    run.loop.savepoints.rollback = rollback  # type: ignore[assignment, method-assign]
    run.run()
    before, after = run.requests[: boundary[0]], run.requests[boundary[0] :]
    assert not {r.seed for r in before} & {r.seed for r in after}
    content = CheckpointStore(run.rundir.checkpoints)
    target = next(c for c in content.all() if c.path.name == run.event("rollback")["target"])
    state = content.load(target).values["curriculum"]
    left = [set(range(rig.PROMPTS)) - set(entry["done"]) for entry in state["epochs"]]
    rest, order = left[0], [r.prompt.ordinal for r in after]
    assert set(order[: len(rest)]) == rest  # the data position is that of the target
    same = Watched(tmp_path / "same", spec(replay="same"), back_to(TARGET, at=FIRST)).run()
    again = [r.prompt.ordinal for r in same.requests[boundary[0] :]]
    assert set(again[: len(rest)]) == rest
    assert again[: len(rest) + rig.PROMPTS] != order[: len(rest) + rig.PROMPTS]


def test_skip_leaves_out_what_was_trained_since_and_samples_what_comes_again_otherwise(tmp_path: Path) -> None:
    run = Watched(tmp_path / "run", spec(replay="skip", snapshots=4), back_to(TARGET, at=FIRST)).run()
    event = run.event("rollback")
    assert (event["data"], event["source"]) == ("skip", "memory")
    trained = [
        (line["epoch"], ordinal)
        for line in read_lines(run.rundir.ledger)
        if line["branch"] == 0 and line["step"] > TARGET
        for ordinal in line["ordinals"]
    ] + [
        tuple(pair)
        for line in read_lines(run.rundir.ledger)
        if line["branch"] == 0 and line["step"] > TARGET
        for pair in line.get("next_epoch", [])
    ]
    assert sorted(map(tuple, event["skipped"])) == sorted(trained)
    assert run.loop.session.curriculum.salt == 1
    seeds_by_item = Counter(request.seed for request in run.requests)
    assert max(seeds_by_item.values()) == 1  # also what was in flight is sampled anew


def test_the_seed_of_a_prompt_depends_on_its_epoch_alone_also_after_a_restart(tmp_path: Path) -> None:
    stop = {"s": True}

    def ask(state: BoundaryState) -> Directive | None:
        return Directive("s", 1, {}, Action.stop) if state.step == 5 and stop.pop("s", False) else None

    first = Watched(tmp_path / "run", spec(), ask)
    assert first.loop.run() == "stop"
    second = Watched(tmp_path / "run", spec(), ask).run()
    for request in (*first.requests, *second.requests):
        assert request.seed in {request_seed(0, 0, epoch, request.prompt.ordinal) for epoch in range(9)}
    assert len({request.seed for request in first.requests}) == len(first.requests)


def test_a_rollback_that_cannot_write_its_branch_is_refused_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Watched(tmp_path / "plain", spec(), lambda _: None).run()
    run = Watched(tmp_path / "run", spec(), back_to(TARGET, at=FIRST, values={"lr_scale": 0.5}))
    real = torch.save

    def full(content: Any, path: Any) -> None:
        if run.loop.state.step == FIRST:
            raise OSError(28, "No space left on device")
        real(content, path)

    monkeypatch.setattr(torch, "save", full)
    run.run()
    ((_, state, _, readback, reason),) = run.script.acks
    assert (state, readback["lr_scale"]) == (AckState.rejected, 1.0)
    assert "new branch could not be written" in reason
    assert run.told(0, 1, LAST) == plain.told(0, 1, LAST)
    assert all(path.name.endswith("b0") for path in run.rundir.checkpoints.glob("step-*"))


def test_retention_never_takes_the_target_of_a_rollback_behind_all_other_good_checkpoints(tmp_path: Path) -> None:
    run = Watched(tmp_path / "run", spec(keep=5), back_to(0, at=FIRST)).run()
    assert run.script.acks[0][1] is AckState.applied
    after = next(boundary for boundary in run.script.boundaries if boundary.branch == 1)
    health = {(c.step, c.branch): c.health for c in after.checkpoints}
    assert health[0, 0] is Health.good
    assert health[0, 1] is Health.fresh
    assert len(health) == 5


def test_a_ring_keeps_the_newest_and_copies_what_goes_on_changing() -> None:
    ring, weight = SnapshotRing(2), torch.zeros(2)
    values: dict[str, Any] = {"run": {"window": [1]}}
    for index in range(3):
        ring.put(Snapshot.of(f"d{index}", Content({"model": {"w": weight}}, values), None))
        weight += 1
        values["run"]["window"].append(index)
    assert [snapshot.digest for snapshot in ring] == ["d1", "d2"]
    assert ring.get("d0") is None
    assert ring.newest is not None
    content = ring.newest.content()
    assert content.tensors["model"]["w"].tolist() == [2.0, 2.0]
    assert content.values["run"]["window"] == [1, 0, 1]
    content.tensors["model"]["w"].zero_()  # a learner works in what it was given
    assert ring.newest.content().tensors["model"]["w"].tolist() == [2.0, 2.0]
    off = SnapshotRing(0)
    off.put(replace(ring.newest))
    assert list(off) == []


def real_run(start: Callable[..., Loop], recipe: Recipe, ask: Any) -> tuple[Script, Loop, dict[tuple[int, int], Any]]:
    """A run of the real learner and sampler, with its parameters after every step."""
    script, weights = Script(), {}
    loop = start(recipe, script)

    def at_step(state: BoundaryState) -> Directive | None:
        model = loop.session.learner.state_dict()["model"]
        weights[state.branch, state.step] = {name: tensor.clone() for name, tensor in model.items()}
        directive: Directive | None = ask(state)
        return directive

    script.at_step = at_step
    assert loop.run() == "end"
    return script, loop, weights


@MODES
def test_same_is_bit_exact_with_the_real_learner_and_sampler(
    start: Callable[..., Loop], rundir: RunDir, tmp_path: Path, staleness: dict[str, Any]
) -> None:
    keys: dict[str, Any] = {**MICRO, "steps": 10, "staleness": {**staleness, "max_staleness": 2}}
    keys["checkpoint"] = {**keys["checkpoint"], "replay": "same"}
    recipe = Recipe.model_validate({**keys, "checkpoint": {**keys["checkpoint"], "snapshots": 3}})
    script, _, weights = real_run(start, recipe, back_to(TARGET, at=7))
    once = [r for r in script.steps if r.branch == 0 and r.step > TARGET]
    again = [r for r in script.steps if r.branch == 1 and r.step <= 7]
    assert [r.loss for r in once] == [r.loss for r in again]
    assert [r.rollouts.lengths for r in once] == [r.rollouts.lengths for r in again]
    assert [r.rollouts.staleness for r in once] == [r.rollouts.staleness for r in again]
    for step in range(TARGET + 1, 8):
        assert all(torch.equal(t, weights[1, step][name]) for name, t in weights[0, step].items())
    ledger = {(x["branch"], x["step"]): (x["epoch"], x["ordinals"]) for x in read_lines(rundir.ledger)}
    assert all(ledger[0, step] == ledger[1, step] for step in range(TARGET + 1, 8))
    event = next(e for e in read_lines(rundir.events) if e["event"] == "rollback")
    assert (event["source"], event["data"]) == ("memory", "same")

    rundir.root.rename(tmp_path / "memory")
    recipe = Recipe.model_validate(keys)  # no snapshots: from the disk
    script, _, weights = real_run(start, recipe, back_to(TARGET, at=7))
    rundir.root.rename(tmp_path / "disk")
    identify(recipe, rundir)
    kept = [f"step-{step:06d}-b0" for step in (0, 2, TARGET)]
    for name in kept:
        shutil.copytree(tmp_path / "disk/checkpoints" / name, rundir.checkpoints / name)
    fresh, _, anew = real_run(start, recipe, lambda _: None)
    branch = [r for r in script.steps if r.branch == 1]
    assert [(r.step, r.loss) for r in fresh.steps] == [(r.step, r.loss) for r in branch]
    assert all(torch.equal(t, weights[1, 10][name]) for name, t in anew[0, 10].items())
