"""The real step machine around a learner and a generator of a few lines, so that a whole run takes milliseconds.

Both are as unforgiving as real ones: every token depends on the weights in force, on the seed, on the completion and on
its place; every step depends on every token, reward and logprob it is given; and the weights remember which prompts they
were trained on, so that a test can ask the weights instead of the files.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from controlplane.contract.rundir import RunDir
from tests.trainer.conftest import MICRO
from trainer.checkpoint.keeper import Keeper
from trainer.checkpoint.store import CheckpointStore
from trainer.evaluate import EvalResult
from trainer.learn import LearnResult
from trainer.loop import Loop
from trainer.probe import Launch
from trainer.recipe import Recipe
from trainer.rollout.admission import admission
from trainer.rollout.collector import Collector
from trainer.rollout.curriculum import Curriculum
from trainer.rollout.seeds import request_seed
from trainer.stopwatch import Stopwatch
from trainer.types import Completion, Group, GroupRequest, Prompt, ScoredGroup, Span, Verdict, Version

PROMPTS, EPOCHS, SAMPLES, LONGEST = 10, 100, 2, 6


class Decoder:
    """A tokenizer as far as anybody here needs one."""

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))


class Parity:
    """Passes when the tokens have an even sum. `fails` may raise."""

    name = "parity"
    held_out: tuple[str, ...] = ("held_out",)

    def __init__(self, workers: int = 0, fails: Callable[[Prompt, str], None] = lambda *_: None) -> None:
        self.workers = workers
        self._fails = fails

    def prompts(self, split: str) -> Sequence[Prompt]:
        return [Prompt(ordinal, str(ordinal), (ordinal,)) for ordinal in range(PROMPTS)]

    def verify(self, prompt: Prompt, completion: str, finished: bool) -> Verdict:
        self._fails(prompt, completion)
        passed = sum(map(int, completion.split())) % 2 == 0
        return Verdict(1.0 if passed else -1.0, passed)


class Abacus:
    """A learner: one number, its momentum, and a memory of what it was trained on."""

    def __init__(self) -> None:
        self.base_lr = 0.1
        self.weight = torch.zeros(1, dtype=torch.float64)
        self.momentum = torch.zeros(1, dtype=torch.float64)
        self.seen = torch.zeros(EPOCHS, PROMPTS, dtype=torch.long)

    def step(self, step: int, groups: Sequence[ScoredGroup], tunables: Mapping[str, float]) -> LearnResult:
        gradient = 0.0
        for place, scored in enumerate(groups):
            self.seen[scored.item.epoch, scored.item.ordinal] += 1
            for completion, verdict in zip(scored.group.completions, scored.verdicts, strict=True):
                gradient += math.sin(place + step + verdict.reward * sum(completion.tokens) + sum(completion.logprobs))
        self.momentum = 0.5 * self.momentum + gradient
        self.weight = self.weight - self.base_lr * tunables["lr_scale"] * self.momentum
        return LearnResult(loss=gradient, grad_norm=abs(gradient), lr=self.base_lr, trained_tokens=len(groups))

    def state_dict(self) -> dict[str, Any]:
        model = {"weight": self.weight, "seen": self.seen}
        return {"model": model, "optimizer": {"momentum": self.momentum}, "base_lr": self.base_lr}

    def stage(self, state: Mapping[str, Any]) -> None:
        pass

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weight, self.seen = state["model"]["weight"].clone(), state["model"]["seen"].clone()
        self.momentum, self.base_lr = state["optimizer"]["momentum"].clone(), state["base_lr"]


class Typist:
    """A generator: one token of every running completion per poll, at most `slots` at once."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._running: list[tuple[GroupRequest, int, list[tuple[int, float, Version]]]] = []
        self._queue: list[GroupRequest] = []
        self._partial: dict[int, dict[int, Completion]] = {}
        self._weight, self._version = 0.0, Version(0, 0)

    @property
    def inflight(self) -> int:
        return len(self._running)

    @property
    def room(self) -> int:
        return self._slots - len(self._running) - sum(request.n for request in self._queue)

    def submit(self, request: GroupRequest) -> None:
        self._queue.append(request)

    def load(self, weights: Mapping[str, Any], version: Version) -> None:
        self._weight, self._version = float(weights["weight"]), version

    def abort(self) -> int:
        discarded = sum(len(tokens) for _, _, tokens in self._running)
        discarded += sum(len(c.tokens) for done in self._partial.values() for c in done.values())
        self._running, self._queue, self._partial = [], [], {}
        return discarded

    def poll(self) -> list[Group]:
        while self._queue and len(self._running) + self._queue[0].n <= self._slots:
            request = self._queue.pop(0)
            self._partial[request.id] = {}
            self._running += [(request, index, []) for index in range(request.n)]
        finished = []
        for request, index, tokens in list(self._running):
            number = request_seed(request.seed, index, len(tokens), int(self._weight * 1e6))
            tokens.append((number % 7, -(number % 97) / 97, self._version))
            if number % LONGEST == 0 or len(tokens) == LONGEST:
                self._running = [entry for entry in self._running if entry[2] is not tokens]
                done = self._partial[request.id]
                done[index] = _completion(tokens)
                if len(done) == request.n:
                    del self._partial[request.id]
                    finished.append(Group(request, tuple(done[i] for i in range(request.n))))
        return finished

    def snapshot(self) -> Any:
        return copy.deepcopy((self._running, self._queue, self._partial))

    def restore(self, snapshot: Any) -> None:
        self._running, self._queue, self._partial = copy.deepcopy(snapshot)


def _completion(tokens: Sequence[tuple[int, float, Version]]) -> Completion:
    spans = tuple(Span(version, 1) for _, _, version in tokens)
    numbers = tuple(token for token, _, _ in tokens)
    logprobs = tuple(logprob for _, logprob, _ in tokens)
    return Completion(numbers, logprobs, (True,) * len(tokens), spans, "length", False, 0.0)


class Sync:
    def __init__(self, learner: Abacus, generator: Typist) -> None:
        self._learner, self._generator = learner, generator

    def publish(self, version: Version) -> None:
        self._generator.load(self._learner.state_dict()["model"], version)


def recipe(**keys: Any) -> Recipe:
    """MICRO with a few keys replaced one level down: recipe(checkpoint={"snapshots": 2})."""
    merged = {**MICRO, "steps": 12}
    for key, value in keys.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return Recipe.model_validate(merged)


def assemble(
    root: Path, spec: Recipe, control: Any, task: Parity | None = None, slots: int = 6, launch: Launch | None = None
) -> Loop:
    """A process: call it again to resume."""
    rundir = RunDir(root)
    learner, generator, watch = Abacus(), Typist(slots), Stopwatch()
    curriculum = Curriculum(PROMPTS, spec.seed, 2.0, 1)

    def evaluate() -> list[EvalResult]:
        ratio = 0.5 + 0.05 * math.sin(float(learner.weight))  # good checkpoints do not hang on the seed
        return [EvalResult("held_out", 64, 2, ratio, 0.0, {2: ratio}, {2: 0.0}, 3.0, 0.0)]

    root.mkdir(exist_ok=True)
    return Loop(
        spec,
        rundir,
        learner=learner,
        curriculum=curriculum,
        collector=Collector(
            generator,
            curriculum,
            task or Parity(),
            Decoder(),
            watch,
            seed=spec.seed,
            samples=SAMPLES,
            admission=admission(spec.staleness.mode),
            penalty=spec.length.penalty,
        ),
        sync=Sync(learner, generator),
        evaluate=evaluate,
        keeper=Keeper(
            CheckpointStore(rundir.checkpoints), spec.checkpoint.health, spec.checkpoint.keep, control.checkpoint
        ),
        control=control,
        tunables=spec.tunables(),
        watch=watch,
        launch=launch,
    )
