"""The step machine on a small real run: what it does at its boundaries, and what it never does."""

import copy
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from controlplane.agent import BoundaryState, Directive
from controlplane.contract.documents import AckState, Action, Health, Target
from controlplane.contract.rundir import RunDir, read_lines
from tests.trainer import rig
from tests.trainer.conftest import MICRO, Script
from trainer.checkpoint.health import Score
from trainer.checkpoint.store import CheckpointStore
from trainer.evaluate import EvalResult
from trainer.learn import LearnResult
from trainer.learn.learner import PlainLearner
from trainer.loop import Loop
from trainer.recipe import Recipe
from trainer.state import Account, Patience, RunState
from trainer.types import Version

Start = Callable[..., Loop]


def changed(**keys: Any) -> Recipe:
    return Recipe.model_validate({**MICRO, **keys})


def same(one: Any, other: Any) -> bool:
    """Bit for bit equality of nested states."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def good_target(state: BoundaryState) -> Target | None:
    good = [c for c in state.checkpoints if c.health is Health.good]
    return Target(step=good[-1].step, digest=good[-1].digest) if good else None


def rollback_once(at: int, **values: float) -> Callable[[BoundaryState], Directive | None]:
    def ask(state: BoundaryState) -> Directive | None:
        if state.step != at or state.branch != 0:
            return None
        return Directive("d1", 1, values, Action.rollback, good_target(state), "a test")

    return ask


def effective_ledger(rundir: RunDir, forks: dict[int, int]) -> list[tuple[int, int]]:
    """Prompts behind the final weights plus those skipped by rollbacks: the last line of each (branch, step) counts."""
    lines: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for line in read_lines(rundir.ledger):
        items = [(line["epoch"], ordinal) for ordinal in line["ordinals"]]
        lines[line["branch"], line["step"]] = items + [tuple(pair) for pair in line.get("next_epoch", [])]
    return [item for items in lines.values() for item in items]


def test_a_run_goes_through_its_steps_and_records_them(
    recipe: Recipe, start: Start, script: Script, rundir: RunDir
) -> None:
    loop = start(recipe)
    assert loop.run() == "end"
    assert [report.step for report in script.steps] == [1, 2, 3, 4, 5, 6]
    assert [report.step for report in script.evaluations] == [0, 2, 4, 6]
    assert [report.step for report in script.checkpoints] == [0, 2, 4, 6]
    assert [boundary.step for boundary in script.boundaries] == list(range(7))
    assert [line["step"] for line in read_lines(rundir.steps)] == [1, 2, 3, 4, 5, 6]
    events = [event["event"] for event in read_lines(rundir.events)]
    assert events == ["start", *["checkpoint"] * 4, "end"]
    assert all(report.skipped == "" and math.isfinite(report.grad_norm) for report in script.steps)
    for report in script.steps:
        assert max(report.rollouts.staleness) <= report.tunables["max_staleness"]
        assert report.lr == pytest.approx(1e-3 * min(1, report.step / 2) * report.tunables["lr_scale"])
        assert report.rollouts.passed + report.rollouts.failed == 16
    compute = [report.compute for report in script.steps]
    assert compute == sorted(compute)
    assert compute[-1] == pytest.approx(
        sum(r.device_seconds["generator"] + r.device_seconds["learner"] for r in script.steps)
    )
    items = effective_ledger(rundir, {})
    assert len(items) == 24
    assert max(Counter(items).values()) == 1


def test_the_same_recipe_gives_the_same_run(recipe: Recipe, start: Start, rundir: RunDir, tmp_path: Any) -> None:
    def curve() -> list[tuple[float, float]]:
        return [(line["loss"], line["pass_ratio"]) for line in read_lines(rundir.steps)]

    start(recipe, Script()).run()
    first = curve()
    rundir.root.rename(tmp_path / "before")
    start(recipe, Script()).run()
    assert curve() == first


def test_evaluation_compute_is_not_lineage_compute(recipe: Recipe, start: Start, script: Script) -> None:
    start(recipe).run()
    for report in script.steps:
        wall = report.phase_seconds
        assert report.seconds == pytest.approx(
            sum(wall.get(p, 0.0) for p in ("generating", "verifying", "syncing_weights", "training"))
        )
    assert sum(r.device_seconds["evaluator"] for r in script.steps) > 0


def test_a_directive_is_in_force_from_the_next_step_and_read_back(recipe: Recipe, start: Start, script: Script) -> None:
    values = {"lr_scale": 0.5, "prompts_per_step": 2.0, "max_new_tokens": 12.0}
    script.at_step = lambda state: Directive("d", 1, values) if state.step == 3 else None
    start(changed(steps=12)).run()
    (ack,) = script.acks
    assert ack[1:3] == (AckState.applied, 3)
    assert {name: ack[3][name] for name in values} == values
    before, after = script.steps[2], script.steps[3]
    assert before.tunables["lr_scale"] == 1.0
    assert after.lr == before.lr * 0.5
    assert len(after.rollouts.rewards) == 8
    assert max(script.steps[-1].rollouts.lengths) <= 12


def test_rollback_restores_bit_exactly_and_changes_what_it_must(
    start: Start, script: Script, rundir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = changed(steps=8, faults=[{"step": 6, "kind": "base_lr", "factor": 3.0}])
    restored: dict[str, Any] = {}
    loop = start(recipe)
    real = loop._stepper._sync.publish
    published: list[Version] = []

    def spy(version: Any) -> None:
        if version.branch == 1 and not restored:
            state = loop._learner.state_dict()
            restored.update(
                model={k: v.clone() for k, v in state["model"].items()},
                optimizer=copy.deepcopy(state["optimizer"]),
                base_lr=state["base_lr"],
                version=version,
                before=published[-1],
            )
        published.append(version)
        real(version)

    monkeypatch.setattr(loop._stepper._sync, "publish", spy)
    script.at_step = rollback_once(7, lr_scale=0.5)
    assert loop.run() == "end"
    (ack,) = script.acks
    assert ack[1] is AckState.applied
    event = next(e for e in read_lines(rundir.events) if e["event"] == "rollback")
    target = next(c for c in CheckpointStore(rundir.checkpoints).all() if c.path.name == event["target"])
    content = CheckpointStore(rundir.checkpoints).load(target)
    assert same(restored["model"], content.tensors["model"])
    assert same(restored["optimizer"], content.tensors["optimizer"])
    assert restored["base_lr"] == content.values["base_lr"] == 1e-3  # the fault is gone
    assert restored["version"].n == restored["before"].n + 1
    assert loop.tunables["lr_scale"] == 0.5
    assert loop.state.branch == 1
    assert [(r.branch, r.step) for r in script.steps][7:] == [(1, s) for s in range(target.step + 1, 9)]
    bad = {(c.step, c.branch) for c in loop._keeper.states if c.health is Health.bad}
    assert bad == {(step, 0) for step in (2, 4, 6) if step > target.step}
    items = effective_ledger(rundir, {})
    assert max(Counter(items).values()) == 1  # the data position did not go back
    consumed = [tuple(pair) for pair in event["skipped"]]
    trained = [
        i
        for line in read_lines(rundir.ledger)
        if line["branch"] == 0 and line["step"] > target.step
        for i in line["ordinals"]
    ]
    assert sorted(ordinal for _, ordinal in consumed) == sorted(trained)
    assert script.steps[7].rollouts.dropped_groups["rollback"] >= 1
    assert max(script.steps[7].rollouts.staleness) <= 8


def test_the_branch_survives_a_crash_right_after_a_rollback(start: Start, script: Script) -> None:
    recipe = changed(steps=8)
    loop = start(recipe)

    class Killed(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    script.at_step = rollback_once(7)
    script.acknowledge = die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        loop.run()
    after = Script()
    resumed = start(recipe, after)
    assert resumed.run() == "end"
    assert {boundary.branch for boundary in after.boundaries} == {1}
    assert after.steps[-1].step == 8


def test_a_rollback_to_what_is_not_good_is_rejected_and_changes_nothing(
    recipe: Recipe, start: Start, script: Script
) -> None:
    def ask(state: BoundaryState) -> Directive | None:
        newest = state.checkpoints[-1]
        target = Target(step=newest.step, digest=newest.digest)
        return Directive("d", 1, {"lr_scale": 0.5}, Action.rollback, target) if state.step == 4 else None

    script.at_step = ask
    loop = start(recipe)
    assert loop.run() == "end"
    ((_, state, _, _, reason),) = script.acks
    assert state is AckState.rejected
    assert "proven good" in reason
    assert (loop.state.branch, loop.tunables["lr_scale"]) == (0, 1.0)


def test_a_non_finite_step_is_neither_applied_nor_published_nor_checkpointed(
    recipe: Recipe, start: Start, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = start(recipe)
    real = PlainLearner.step
    versions: list[Any] = []

    def spoiled(self: PlainLearner, step: int, groups: Any, tunables: Any) -> LearnResult:
        versions.append(loop.state.version)
        if step != 4:
            return real(self, step, groups, tunables)
        weight = self.model.get_output_embeddings().weight
        kept = weight.detach().clone()
        weight.data[0, 0] = math.nan
        result = real(self, step, groups, tunables)
        weight.data.copy_(kept)
        return result

    monkeypatch.setattr(PlainLearner, "step", spoiled)
    assert loop.run() == "end"
    assert [r.skipped for r in script.steps] == ["", "", "", "nonfinite", "", ""]
    assert versions[4] == versions[3]  # nothing was published after step 4
    assert [r.step for r in script.checkpoints] == [0, 2, 6]
    assert all(torch.isfinite(p).all() for p in loop._learner.state_dict()["model"].values())


def test_a_fault_fires_once_also_when_the_run_is_resumed(start: Start, rundir: RunDir) -> None:
    recipe = changed(steps=6, faults=[{"step": 3, "kind": "base_lr", "factor": 10.0}])
    first = Script()
    loop = start(recipe, first)
    first.at_step = lambda state: loop.stop("test") if state.step == 4 else None
    assert loop.run() == "stop"
    second = Script()
    assert start(recipe, second).run() == "end"
    rates = [r.lr for r in (*first.steps, *second.steps)]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-2, 1e-2, 1e-2, 1e-2])
    assert [event["event"] for event in read_lines(rundir.events)].count("fault") == 1


def test_a_paused_run_waits_and_goes_on(
    recipe: Recipe, start: Start, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.control.PAUSE_SECONDS", 0.0)
    seen: list[int] = []

    def ask(state: BoundaryState) -> Directive | None:
        seen.append(state.step)
        if seen.count(2) == 1 and state.step == 2:
            return Directive("p", 1, {}, Action.pause)
        return Directive("r", 2, {}, Action.resume) if seen.count(2) == 5 and state.step == 2 else None

    script.at_step = ask
    assert start(recipe).run() == "end"
    assert seen == [0, 1, 2, 2, 2, 2, 2, 3, 4, 5, 6]


def test_stop_leaves_a_checkpoint_and_resume_goes_on_from_it(
    recipe: Recipe, start: Start, script: Script, rundir: RunDir
) -> None:
    script.at_step = lambda state: Directive("s", 1, {}, Action.stop) if state.step == 3 else None
    assert start(recipe).run() == "stop"
    second = Script()
    assert start(recipe, second).run() == "end"
    assert [report.step for report in second.steps] == [4, 5, 6]
    assert max(Counter(effective_ledger(rundir, {})).values()) == 1


def test_a_collapsed_run_is_steady_but_never_proves_a_checkpoint_good(start: Start, script: Script) -> None:
    loop = start(changed(steps=12))
    real = loop._evaluate

    def collapsing() -> list[EvalResult]:
        ratio = 0.9 if loop.state.step <= 4 else 0.02
        return [replace(result, pass_ratio=ratio, prompts=256) for result in real()]

    loop._evaluate = collapsing
    loop.run()
    health = {checkpoint.step: checkpoint.health for checkpoint in loop._keeper.states}
    assert health == {step: Health.good if step <= 2 else Health.fresh for step in range(0, 13, 2)}


def scoring(loop: Loop, curve: dict[int, float]) -> None:
    """Replace the held-out scores by those of a curve; the last known one goes on."""
    real = loop._evaluate

    def scored() -> list[EvalResult]:
        ratio = [curve[step] for step in sorted(curve) if step <= loop.state.step][-1]
        return [replace(result, pass_ratio=ratio) for result in real()]

    loop._evaluate = scored


PLATEAU = {0: 0.1, 2: 0.3, 4: 0.5, 6: 0.5005, 8: 0.49}
STOPPING = {"every": 2, "early_stopping": {"patience": 3, "min_delta": 0.001}}


@pytest.mark.parametrize("interrupted_at", [None, 5, 9])
def test_a_run_that_no_longer_improves_ends_and_its_patience_survives_a_restart(
    tmp_path: Any, interrupted_at: int | None
) -> None:
    recipe = rig.recipe(steps=40, evaluation=STOPPING)

    def ask(state: BoundaryState) -> Directive | None:
        return Directive("s", 1, {}, Action.stop) if state.step == interrupted_at else None

    loop = rig.assemble(tmp_path / "run", recipe, Script(ask))
    scoring(loop, PLATEAU)
    if interrupted_at is not None:
        assert loop.run() == "stop"
        loop = rig.assemble(tmp_path / "run", recipe, Script())
        scoring(loop, PLATEAU)
    assert loop.run() == "end"
    assert loop.state.step == 10  # 6, 8 and 10 bring less than 0.001 above step 4
    *_, early, checkpoint, end = list(read_lines(RunDir(tmp_path / "run").events))
    assert [early["event"], checkpoint["event"], end["event"]] == ["early_stop", "checkpoint", "end"]
    assert (early["step"], early["best_step"], early["best_pass_ratio"]) == (10, 6, 0.5005)
    again = rig.assemble(tmp_path / "run", recipe, Script())
    assert again.run() == "end"
    assert again.state.step == 10


def test_small_gains_that_add_up_do_count_as_an_improvement() -> None:
    patience = Patience()
    for score in (0.5, 0.5006, 0.5009):
        patience = patience.after(score, 0.001)
    assert patience == Patience(0.5, 2)
    assert patience.after(0.5011, 0.001) == Patience(0.5011)
    assert Patience(0.5).after(0.5, 0.0).waited == 1
    assert Patience(0.5).after(math.nan, 0.0).waited == 1


def test_each_target_is_an_event_once_in_the_life_of_a_run(tmp_path: Any) -> None:
    recipe = rig.recipe(steps=10, evaluation={"every": 2, "targets": [0.3, 0.6, 0.9]})
    curve = {0: 0.1, 2: 0.35, 4: 0.2, 6: 0.65, 8: 0.7}

    def ask(state: BoundaryState) -> Directive | None:
        return Directive("s", 1, {}, Action.stop) if state.step == 3 else None

    loop = rig.assemble(tmp_path / "run", recipe, Script(ask))
    scoring(loop, curve)
    loop.run()
    shutil.rmtree(tmp_path / "run/checkpoints/step-000003-b0")
    shutil.rmtree(tmp_path / "run/checkpoints/step-000002-b0")  # step 2 is evaluated once more
    loop = rig.assemble(tmp_path / "run", recipe, Script())
    scoring(loop, curve)
    loop.run()
    events = [event for event in read_lines(RunDir(tmp_path / "run").events) if event["event"] == "target_reached"]
    assert [(event["target"], event["step"], event["pass_ratio"]) for event in events] == [
        (0.3, 2, 0.35),
        (0.6, 6, 0.65),
    ]
    assert 0 < events[0]["compute"] <= events[1]["compute"]
    assert events[1]["account"]["completions"] == 6 * 4 * rig.SAMPLES


def test_the_account_is_that_of_the_lineage_and_is_written_with_steps_and_evaluations(tmp_path: Any) -> None:
    def ask(state: BoundaryState) -> Directive | None:
        if (state.step, state.branch) != (7, 0):
            return None
        target = next(c for c in state.checkpoints if c.step == 4 and c.health is Health.good)
        return Directive("d", 1, {}, Action.rollback, Target(step=4, digest=target.digest))

    script = Script(ask)
    loop = rig.assemble(tmp_path / "run", rig.recipe(steps=8), script)
    assert loop.run() == "end"
    lines = {(line["branch"], line["step"]): line for line in read_lines(RunDir(tmp_path / "run").steps)}
    assert [lines[key]["completions"] for key in ((0, 4), (0, 7), (1, 5), (1, 8))] == [32, 56, 40, 64]
    lineage = [
        r
        for r in script.steps
        if (r.branch, r.step) in {*((0, s) for s in range(1, 5)), *((1, s) for s in range(5, 9))}
    ]
    account = loop.state.account
    assert account.generated_tokens == sum(sum(r.rollouts.lengths) for r in lineage) == lines[1, 8]["generated_tokens"]
    assert account.trained_tokens == sum(r.trained_tokens for r in lineage) == lines[1, 8]["trained_tokens"]
    assert account.generation_seconds == pytest.approx(sum(r.device_seconds["generator"] for r in lineage))
    assert account.training_seconds == pytest.approx(sum(r.device_seconds["learner"] for r in lineage))
    assert account.compute == loop.state.compute == lines[1, 8]["compute"]
    evals = list(read_lines(RunDir(tmp_path / "run").evals))
    assert evals[-1]["account"] == asdict(account)
    assert evals[0]["account"] == asdict(Account())


def test_run_state_reads_back_as_it_was_written() -> None:
    state = RunState(
        3,
        Version(2, 9),
        Account(1.5, 2.5, 3, 4, 5),
        [0.5],
        Score(2, 0.7, 8),
        Score(3, 0.6, 8),
        Patience(0.7, 1),
        {1: 2},
    )
    assert RunState.parse(json.loads(json.dumps(state.dump()))) == state
    assert RunState.parse(json.loads(json.dumps(RunState().dump()))) == RunState()
