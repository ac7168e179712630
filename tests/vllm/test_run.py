"""A whole run through the real step machine, with vLLM for rollouts and evaluation."""

import math
from pathlib import Path

import pytest

from controlplane.contract.rundir import RunDir
from tests.trainer.conftest import MICRO, Script, even_sum_passes
from trainer.build import assemble, identify
from trainer.recipe import Recipe
from trainer.rollout.vllm_generator import VllmGenerator
from trainer.stopwatch import Stopwatch
from trainer.tasks.arithmetic import Arithmetic
from trainer.types import ScoredGroup
from trainer.warmstart import warm_started


def test_a_run_trains_under_vllm_with_honest_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Arithmetic, "verify", even_sum_passes)
    settings = {
        **MICRO,
        "model": {**MICRO["model"], "head_dim": 32},
        "rollout": {"slots": 16, "generator": "vllm"},
        "staleness": {"max_staleness": 2},
    }
    recipe, script, rundir = Recipe.model_validate(settings), Script(), RunDir(tmp_path / "run")
    identify(recipe, rundir)
    start = warm_started(recipe.model, recipe.task, recipe.warm_start)
    loop = assemble(recipe, rundir, start, script, recipe.tunables(), Stopwatch())
    assert isinstance(loop._collector._generator, VllmGenerator)
    batches: list[ScoredGroup] = []
    learn = loop._learner.step
    monkeypatch.setattr(loop._learner, "step", lambda n, groups, used: batches.extend(groups) or learn(n, groups, used))
    assert loop.run() == "end"

    assert [report.step for report in script.steps] == [1, 2, 3, 4, 5, 6]
    assert [report.step for report in script.evaluations] == [0, 2, 4, 6]
    completions = [completion for scored in batches for completion in scored.group.completions]
    assert len(completions) == 6 * 4 * 4
    assert max(len(completion.spans) for completion in completions) > 1  # weights changed while they were sampled
    assert any(completion.interrupted for completion in completions)
    for report in script.steps:
        assert math.isfinite(report.loss)
        assert abs(report.ratio_mean - 1) < 0.05
        assert report.mismatch_kl < 0.01
    on_policy = script.steps[0]  # everything was sampled by the very weights that learn from it
    assert abs(on_policy.ratio_mean - 1) < 1e-4
    assert on_policy.mismatch_kl < 1e-7
