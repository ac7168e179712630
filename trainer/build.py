"""Puts a run together from its recipe: one process, one learner, one generator with its own copy of the weights."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from controlplane.agent import Agent
from controlplane.contract.rundir import RunDir, RunInfo, write_atomic
from trainer.checkpoint.keeper import Keeper
from trainer.checkpoint.store import CheckpointStore
from trainer.control import ACTIONS, Control
from trainer.evaluate import EvalResult, evaluate
from trainer.learn.learner import PlainLearner
from trainer.logs.logged import Logged
from trainer.logs.queue import LogQueue
from trainer.logs.trackers import opened
from trainer.loop import Loop
from trainer.model import load_model, load_tokenizer
from trainer.recipe import Recipe
from trainer.rollout.admission import admission
from trainer.rollout.collector import Collector
from trainer.rollout.curriculum import Curriculum
from trainer.rollout.generator import Generator
from trainer.rollout.length import Interruption
from trainer.rollout.torch_generator import TorchGenerator
from trainer.rollout.vllm_engine import VllmEngine
from trainer.rollout.vllm_generator import VllmGenerator
from trainer.stopwatch import Stopwatch
from trainer.sync.direct import DirectSync
from trainer.tasks import TRAIN
from trainer.tasks.make import make_task
from trainer.types import Sampling


@dataclass(frozen=True)
class Run:
    """A run ready to go; close it when it has ended."""

    loop: Loop
    agent: Agent
    tracker: LogQueue | None = None

    def close(self) -> str:
        """Say that the trainer has stopped; returns what a tracker did not get, in words."""
        words = self.tracker.close() if self.tracker else ""
        self.agent.close()
        return words


def identify(recipe: Recipe, rundir: RunDir) -> RunInfo:
    """Who this run is; written once, recipe first, so that a directory with `run.json` is complete."""
    if rundir.info.exists():
        return rundir.read_info()
    info = RunInfo(
        run_uid=str(uuid.uuid4()),
        name=recipe.name,
        created_at=time.time(),
        planned_steps=recipe.steps,
        config_hash=recipe.digest(),
        framework="scalerl",
        algorithm=recipe.loss.kind,
        model=recipe.model.name,
    )
    write_atomic(rundir.recipe, recipe.dump(), durable=True)
    write_atomic(rundir.info, info.model_dump_json(indent=1) + "\n", durable=True)
    return info


def build(recipe: Recipe, rundir: RunDir, start: Path, say: Callable[[str], None] = lambda _: None) -> Run:
    """Assemble the run and start its agent. `start` is a directory with model and tokenizer."""
    info = identify(recipe, rundir)
    tracker = opened(recipe.log, info, recipe.model_dump(mode="json"), rundir.root / "log")
    agent = Agent(
        rundir,
        info,
        recipe.tunables(),
        recipe.rails(),
        ACTIONS,
        host=recipe.metrics.host,
        port=recipe.metrics.port,
        token_limit=recipe.length.max_new_tokens,
    )
    # CPU time says how busy the devices are only where the devices are CPU cores; the agent reads the GPUs itself.
    watch = Stopwatch(agent.phase) if device(recipe).type == "cpu" else Stopwatch(agent.phase, cpu=None)
    control = Logged(agent, tracker) if tracker else agent
    return Run(assemble(recipe, rundir, start, control, agent.values, watch, say), agent, tracker)


def device(recipe: Recipe) -> torch.device:
    """Where learner and torch generator run."""
    if recipe.device != "auto":
        return torch.device(recipe.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def generators(
    recipe: Recipe, start: Path, interruption: Interruption, end: int, longest: int
) -> tuple[Generator, Generator]:
    """One for rollouts and one for evaluation; they share their weights. `longest`: tokens of the longest prompt."""
    slots, judged = recipe.rollout.slots, recipe.evaluation.slots
    head = recipe.precision.generator_head
    if recipe.rollout.generator == "vllm":
        room = longest + recipe.length.max_new_tokens
        engine = VllmEngine(start, slots + judged, room, end, recipe.precision.dtype, head)
        return VllmGenerator(engine, slots, interruption), VllmGenerator(engine, judged, interruption)
    dtype = torch.float32 if recipe.precision.dtype == "float32" else torch.bfloat16
    sampler = load_model(start).to(device(recipe), dtype)
    if head == "float32" and not sampler.config.tie_word_embeddings:
        sampler.get_output_embeddings().float()  # a rounded head would be a float32 head on one side alone
    format = torch.float32 if head == "float32" else dtype
    return (
        TorchGenerator(sampler, slots, interruption, end, head=format),
        TorchGenerator(sampler, judged, interruption, end, head=format),
    )


def assemble(
    recipe: Recipe,
    rundir: RunDir,
    start: Path,
    control: Control,
    tunables: dict[str, float],
    watch: Stopwatch,
    say: Callable[[str], None] = lambda _: None,
) -> Loop:
    """All parts but the agent, wired."""
    torch.set_num_threads(recipe.threads)
    tokenizer = load_tokenizer(start)
    task = make_task(recipe.task, tokenizer)
    learner = PlainLearner(load_model(start), recipe.optimizer, recipe.loss, recipe.precision, device(recipe))
    interruption = Interruption(
        phrase=tuple(tokenizer.encode(recipe.length.closing_phrase, add_special_tokens=False)),
        closing=tokenizer.convert_tokens_to_ids("</think>"),
        window=recipe.length.window,
    )
    longest = max(len(prompt.tokens) for split in (TRAIN, *task.held_out) for prompt in task.prompts(split))
    generator, judge = generators(recipe, start, interruption, tokenizer.eos_token_id, longest)
    fixed = Sampling(
        recipe.rollout.temperature, recipe.length.max_new_tokens, int(recipe.tunables().get("thinking_budget", 0))
    )

    def held_out_scores() -> Sequence[EvalResult]:
        spec = recipe.evaluation
        return [
            evaluate(judge, task, tokenizer, task.prompts(name)[: spec.prompts], spec.k, fixed, name)
            for name in task.held_out
        ]

    curriculum = Curriculum(
        len(task.prompts(TRAIN)),
        recipe.seed,
        recipe.curriculum.no_positive_resampling or 2.0,
        recipe.curriculum.min_samples,
    )
    return Loop(
        recipe,
        rundir,
        learner=learner,
        curriculum=curriculum,
        collector=Collector(
            generator,
            curriculum,
            task,
            tokenizer,
            watch,
            seed=recipe.seed,
            samples=recipe.batch.samples_per_prompt,
            admission=admission(recipe.staleness.mode),
            penalty=recipe.length.penalty,
        ),
        sync=DirectSync(learner.model, generator),
        evaluate=held_out_scores,
        keeper=Keeper(
            CheckpointStore(rundir.checkpoints), recipe.checkpoint.health, recipe.checkpoint.keep, control.checkpoint
        ),
        control=control,
        tunables=tunables,
        watch=watch,
        devices=recipe.threads if device(recipe).type == "cpu" else 1,
        say=say,
    )
