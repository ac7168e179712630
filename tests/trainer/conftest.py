"""Small real parts: a model of a few thousand parameters, a recipe of seconds, and a control that follows a script."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from controlplane.agent import BoundaryState, Directive
from controlplane.contract.documents import AckState
from controlplane.contract.reports import CheckpointReport, EvalReport, StepReport
from controlplane.contract.rundir import RunDir
from trainer.build import assemble, identify
from trainer.loop import Loop
from trainer.model import make_tiny
from trainer.recipe import Recipe
from trainer.settings import TinyModel
from trainer.stopwatch import Stopwatch
from trainer.tasks.arithmetic import Arithmetic
from trainer.tasks.tokenizer import character_tokenizer
from trainer.types import Prompt, Verdict
from trainer.warmstart import warm_started

MICRO: dict[str, Any] = {
    "name": "micro",
    "steps": 6,
    "threads": 1,
    "task": {"training_prompts": 40, "held_out_prompts": 8},
    "model": {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 64},
    "warm_start": {"steps": 0},
    "batch": {"prompts_per_step": 4, "samples_per_prompt": 4},
    "rollout": {"slots": 16},
    "optimizer": {"lr": 1e-3, "warmup_steps": 2},
    "length": {"max_new_tokens": 24, "thinking_budget": 20},
    "evaluation": {"every": 2, "prompts": 4, "k": 2, "slots": 8},
    "checkpoint": {"every": 2, "keep": 10, "health": {"good_after_steps": 2}},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return character_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> Any:
    return make_tiny(TinyModel(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48), tokenizer, seed=3).eval()


@pytest.fixture
def recipe() -> Recipe:
    return Recipe.model_validate(MICRO)


def even_sum_passes(self: Arithmetic, prompt: Prompt, completion: str, finished: bool) -> Verdict:
    """A verifier that an untrained model satisfies half of the time, so that every step has signal."""
    passed = sum(map(ord, completion)) % 2 == 0
    return Verdict(1.0 if passed else -1.0, passed)


@dataclass
class Script:
    """A control that hands out what `at_step` returns and keeps what it is told."""

    at_step: Callable[[BoundaryState], Directive | None] = lambda _: None
    steps: list[StepReport] = field(default_factory=list)
    evaluations: list[EvalReport] = field(default_factory=list)
    checkpoints: list[CheckpointReport] = field(default_factory=list)
    boundaries: list[BoundaryState] = field(default_factory=list)
    acks: list[tuple[str, AckState, int, dict[str, float], str]] = field(default_factory=list)

    def step(self, report: StepReport) -> None:
        self.steps.append(report)

    def evaluation(self, report: EvalReport) -> None:
        self.evaluations.append(report)

    def checkpoint(self, report: CheckpointReport) -> None:
        self.checkpoints.append(report)

    def boundary(self, state: BoundaryState) -> Directive | None:
        self.boundaries.append(state)
        return self.at_step(state)

    def acknowledge(
        self, directive: Directive, state: AckState, at_step: int, readback: dict[str, float], reason: str = ""
    ) -> None:
        self.acks.append((directive.decision_id, state, at_step, readback, reason))


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def start(tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Loop]:
    """Assemble a loop in `tmp_path`; call again to resume as a new process would."""
    monkeypatch.setattr(Arithmetic, "verify", even_sum_passes)

    def go(recipe: Recipe, control: Script = script, name: str = "run") -> Loop:
        rundir = RunDir(tmp_path / name)
        identify(recipe, rundir)
        directory = warm_started(recipe.model, recipe.task, recipe.warm_start)
        return assemble(recipe, rundir, directory, control, recipe.tunables(), Stopwatch())

    return go


@pytest.fixture
def rundir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")
