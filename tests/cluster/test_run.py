"""A whole run on a local Ray: two FSDP2 ranks and two generators, one of which is killed on the way."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from controlplane.contract.documents import AckState, Setting
from controlplane.contract.rundir import RunDir
from tests.cluster.runs import check, events, go, joined, listening, recipe, signalled, wait_for
from tests.trainer.test_with_agent import Operator
from trainer.cluster.learner_group import LearnerGroup
from trainer.learn import LearnResult
from trainer.learn.learner import PlainLearner
from trainer.loop import Loop
from trainer.model import load_model
from trainer.sync import files
from trainer.warmstart import warm_started

pytestmark = pytest.mark.usefixtures("local_ray")


def test_a_run_on_ray_learns_what_one_process_learns_from_the_same_batches_whatever_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = recipe(
        steps=10,
        optimizer={"lr": 1e-3, "warmup_steps": 2, "eps": 1e-8},
        guard_rails={"cooldown_steps": 0},
        cluster={"learners": {"ranks": 2}},
    )
    rundir, taken = RunDir(tmp_path), list[tuple[int, Sequence[Any], dict[str, float], LearnResult]]()
    operator, real, ranks = Operator(rundir), LearnerGroup.step, list[Any]()
    digest: list[str] = []

    def noted(self: LearnerGroup, step: int, groups: Any, tunables: Any) -> LearnResult:
        taken.append((step, groups, dict(tunables), real(self, step, groups, tunables)))
        return taken[-1][-1]

    def ask(_: Loop) -> None:
        seen = operator.look()
        assert seen is not None
        operator.ask(seen, set={"lr_scale": Setting(value=0.5)})

    def answered(loop: Loop) -> None:
        wait_for(
            lambda: ((seen := operator.look()) is not None and seen.applied_generation == 1) or loop._control_point()
        )

    def last(loop: Loop) -> None:
        ranks[:] = loop.session.learner.used()  # type: ignore[attr-defined]
        digest.append(loop.session.learner.export(tmp_path / "last"))  # type: ignore[attr-defined]

    def kill(loop: Loop) -> None:
        wait_for(lambda: listening(loop) and "g0.1" in joined(tmp_path))
        signalled(tmp_path, "g0.1", signal.SIGKILL)(loop)

    monkeypatch.setattr(LearnerGroup, "step", noted)
    _, reason = go(tmp_path, spec, {2: kill, 4: ask, 5: answered, 10: last})
    assert reason == "end"
    assert [line["name"] for line in events(tmp_path, "generator_lost")] == ["g0.1"]
    check(tmp_path, spec)

    scales = [tunables["lr_scale"] for _, _, tunables, _ in taken]
    assert scales == sorted(scales, reverse=True)
    assert set(scales) == {1.0, 0.5}
    assert [[used.tunables["lr_scale"] for used in rank] for rank in ranks] == [scales, scales]
    ack = operator.look().last_ack  # type: ignore[union-attr]
    assert (ack.state, ack.at_step) == (AckState.applied, scales.index(0.5))  # type: ignore[union-attr]

    start = warm_started(spec.model, spec.task, spec.warm_start)
    alone = PlainLearner(load_model(start), spec.optimizer, spec.loss, spec.precision)
    for step, groups, tunables, result in taken:
        mine = alone.step(step, groups, tunables)
        assert result.loss == pytest.approx(mine.loss, abs=2e-5)
        assert result.grad_norm == pytest.approx(mine.grad_norm, rel=1e-3)
    exported = files.read(tmp_path / "last", digest[0])
    for name, tensor in alone.model.state_dict().items():
        torch.testing.assert_close(exported[name], tensor, rtol=1e-4, atol=1e-5)
