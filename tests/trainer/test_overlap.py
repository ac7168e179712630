"""Generation beside training: as repeatable as one after the other, as fresh, and nothing trained twice."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from controlplane.contract.documents import Phase
from controlplane.contract.rundir import RunDir, read_lines
from tests.trainer.conftest import MICRO, Script
from trainer.loop import Loop
from trainer.recipe import Recipe
from trainer.stopwatch import Devices, device_seconds

OVERLAP = {**MICRO, "rollout": {"slots": 16, "overlap": True}}


def parameters(loop: Loop) -> list[torch.Tensor]:
    return [p.detach().clone() for p in loop.session.learner.model.parameters()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["pipeline", "ppo_off_policy"])
def test_two_runs_with_overlap_are_the_same_bit_for_bit(
    tmp_path_factory: Any, start: Callable[..., Loop], rundir: RunDir, mode: str
) -> None:
    recipe = Recipe.model_validate({**OVERLAP, "staleness": {"mode": mode, "max_staleness": 2}})
    first, second = start(recipe, Script()), start(recipe, Script(), "again")
    assert first.run() == second.run() == "end"
    assert all(torch.equal(a, b) for a, b in zip(parameters(first), parameters(second), strict=True))


def test_the_bound_and_exactly_once_hold_with_overlap(start: Callable[..., Loop], rundir: RunDir) -> None:
    script = Script()
    loop = start(Recipe.model_validate({**OVERLAP, "steps": 14, "staleness": {"max_staleness": 1}}), script)
    assert loop.run() == "end"
    stale = [steps for report in script.steps for steps in report.rollouts.staleness]
    assert max(stale) == 1
    seen = [
        (line["epoch"] if key == "ordinals" else item[0], item if key == "ordinals" else item[1])
        for line in read_lines(rundir.ledger)
        for key in ("ordinals", "next_epoch")
        for item in line.get(key, ())
    ]
    assert len(seen) == len(set(seen)) == 14 * 4


def test_a_batch_is_generated_while_the_learner_trains(
    start: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = start(Recipe.model_validate(OVERLAP), Script())
    collector, learner = loop.session.collector, loop.session.learner
    polls: list[int] = []
    ahead, step = collector.ahead, learner.step
    running: list[bool] = [False]

    def watched_step(*args: Any) -> Any:
        running[0] = True
        return step(*args)

    def watched_ahead(*args: Any) -> None:
        before = collector.buffer.occupied
        ahead(*args)
        polls.append(collector.buffer.occupied - before)

    monkeypatch.setattr(learner, "step", watched_step)
    monkeypatch.setattr(collector, "ahead", watched_ahead)
    assert loop.run() == "end"
    assert running[0]
    assert sum(polls) > 0


def test_both_pools_hold_their_devices_throughout_with_overlap() -> None:
    lap = {Phase.generating: 3.0, Phase.training: 1.0, Phase.evaluating: 2.0, Phase.idle: 5.0}
    assert device_seconds(lap, Devices(2, 2)) == {"generator": 6.0, "learner": 2.0, "evaluator": 4.0}
    assert device_seconds(lap, Devices(2, 2, "paced")) == {"generator": 8.0, "learner": 8.0, "evaluator": 8.0}
    assert device_seconds(lap, Devices(3, 1, "free")) == {"generator": 12.0, "learner": 4.0, "evaluator": 8.0}
