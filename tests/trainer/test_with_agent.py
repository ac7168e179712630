"""The trainer under its real agent: a signed document on disk reaches the step machine and is answered."""

import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from controlplane.agent import read_key
from controlplane.contract.documents import AckState, Action, Desired, Health, Observed, Setting, Target
from controlplane.contract.rundir import RunDir, read_lines, write_atomic
from tests.trainer.conftest import MICRO, even_sum_passes
from trainer.build import Run, build
from trainer.recipe import Recipe
from trainer.tasks.arithmetic import Arithmetic
from trainer.warmstart import warm_started


class Operator:
    """Writes desired documents when the observed document shows what it waits for."""

    def __init__(self, rundir: RunDir) -> None:
        self._rundir = rundir
        self.generation = 0
        self.observed: list[Observed] = []

    def look(self) -> Observed | None:
        if not self._rundir.observed.exists():
            return None
        seen = Observed.model_validate_json(self._rundir.observed.read_bytes())
        self.observed.append(seen)
        return seen

    def ask(self, seen: Observed, **fields: Any) -> None:
        base, self.generation = self.generation, self.generation + 1
        desired = Desired(
            run_uid=seen.run_uid,
            incarnation=seen.incarnation,
            epoch=1,
            generation=self.generation,
            base_generation=base,
            decision_id=f"d{self.generation}",
            issued_at=time.time(),
            expires_at_step=10_000,
            reason="a test",
            **fields,
        )
        key = read_key(self._rundir)
        write_atomic(self._rundir.desired, desired.signed(key).model_dump_json())


def test_documents_change_the_learning_rate_roll_back_and_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Arithmetic, "verify", even_sum_passes)
    rails = {"cooldown_steps": 0, "max_rollbacks": 1}
    recipe = Recipe.model_validate({**MICRO, "steps": 100_000, "guard_rails": rails})
    rundir = RunDir(tmp_path / "run")
    ready: Run = build(recipe, rundir, warm_started(recipe.model, recipe.task, recipe.warm_start))
    operator, pages = Operator(rundir), []
    real = ready.loop._control_point

    def watched() -> None:
        real()
        assert ready.loop.state.step < 3000, "the documents were never answered"
        seen = operator.look()
        if seen is None or seen.applied_generation != operator.generation:
            return
        good = [checkpoint for checkpoint in seen.checkpoints if checkpoint.health is Health.good]
        if operator.generation == 0:
            operator.ask(seen, set={"lr_scale": Setting(value=0.5)})
        elif operator.generation == 1 and good:
            target = Target(step=good[-1].step, digest=good[-1].digest)
            operator.ask(seen, action=Action.rollback, target=target, set={"lr_scale": Setting(scale=0.5)})
        elif operator.generation == 2 and any(line["branch"] == 1 for line in read_lines(rundir.steps)):
            pages.append(urllib.request.urlopen(f"http://127.0.0.1:{ready.agent.port}/metrics").read().decode())
            operator.ask(seen, action=Action.stop)

    monkeypatch.setattr(ready.loop, "_control_point", watched)
    assert ready.loop.run() == "stop"
    ready.agent.close()
    last = operator.look()
    assert last is not None
    assert last.last_ack is not None
    assert (last.last_ack.decision_id, last.last_ack.state) == ("d3", AckState.applied)
    assert (last.branch, last.rollbacks_left) == (1, 0)
    assert last.tunables["lr_scale"].value == 0.25
    assert "rl_trainer_branch 1.0" in pages[0]
    assert 'rl_trainer_rollbacks_total{reason="controller"} 1.0' in pages[0]
    again = build(recipe, rundir, warm_started(recipe.model, recipe.task, recipe.warm_start))
    assert again.loop.tunables["lr_scale"] == 0.25  # what was applied last is still in force after a restart
    again.agent.close()
