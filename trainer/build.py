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
from trainer.evaluate import EvalResult, evaluate
from trainer.learn.learner import PlainLearner
from trainer.loop import ACTIONS, Control, Loop
from trainer.model import load_model, load_tokenizer
from trainer.recipe import Recipe
from trainer.rollout.collector import Collector
from trainer.rollout.curriculum import Curriculum
from trainer.rollout.length import Interruption
from trainer.rollout.torch_generator import TorchGenerator
from trainer.stopwatch import Stopwatch
from trainer.sync.direct import DirectSync
from trainer.tasks.arithmetic import Arithmetic
from trainer.types import Sampling


@dataclass(frozen=True)
class Run:
    """A run ready to go; close the agent when it has ended."""

    loop: Loop
    agent: Agent


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
    agent = Agent(
        rundir,
        identify(recipe, rundir),
        recipe.tunables(),
        recipe.rails(),
        ACTIONS,
        host=recipe.metrics.host,
        port=recipe.metrics.port,
        token_limit=recipe.length.max_new_tokens,
    )
    return Run(assemble(recipe, rundir, start, agent, agent.values, Stopwatch(agent.phase), say), agent)


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
    task = Arithmetic(recipe.task, tokenizer)
    learner = PlainLearner(load_model(start), recipe.optimizer)
    sampler = load_model(start)
    interruption = Interruption(
        phrase=tuple(tokenizer.encode(recipe.length.closing_phrase)),
        closing=tokenizer.convert_tokens_to_ids("</think>"),
        window=recipe.length.window,
    )
    rng = torch.Generator().manual_seed(recipe.seed)
    generator = TorchGenerator(sampler, recipe.rollout.slots, interruption, tokenizer.eos_token_id, rng)
    judge = TorchGenerator(sampler, recipe.evaluation.slots, interruption, tokenizer.eos_token_id, torch.Generator())
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
        len(task.prompts("train")),
        recipe.seed,
        recipe.curriculum.no_positive_resampling or 2.0,
        recipe.curriculum.min_samples,
    )
    return Loop(
        recipe,
        rundir,
        learner=learner,
        curriculum=curriculum,
        collector=Collector(generator, curriculum, task, tokenizer, recipe.batch.samples_per_prompt, watch),
        sync=DirectSync(learner.model, generator),
        sampler=rng,
        evaluate=held_out_scores,
        keeper=Keeper(
            CheckpointStore(rundir.checkpoints), recipe.checkpoint.health, recipe.checkpoint.keep, control.checkpoint
        ),
        control=control,
        tunables=tunables,
        watch=watch,
        say=say,
    )
