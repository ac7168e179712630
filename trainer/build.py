"""Puts a run together from its recipe. The parts that sample and learn are handed in: by default one learner and one generator
with its own copy of the weights, in this process."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from controlplane.agent import Agent, Directive
from controlplane.contract.rundir import RunDir, RunInfo, write_atomic
from trainer.checkpoint.keeper import Keeper
from trainer.checkpoint.store import CheckpointStore
from trainer.control import ACTIONS, Control
from trainer.evaluate import EvalResult, evaluate
from trainer.learn import Learner
from trainer.learn.learner import PlainLearner
from trainer.logs.logged import Logged
from trainer.logs.queue import LogQueue
from trainer.logs.trackers import opened
from trainer.loop import Loop
from trainer.model import Tokenizer, load_model, load_tokenizer
from trainer.probe import Launch
from trainer.probe.helper import LocalProcess
from trainer.recipe import Recipe
from trainer.rollout.admission import admission
from trainer.rollout.collector import Collector
from trainer.rollout.curriculum import Curriculum
from trainer.rollout.generator import Generator
from trainer.rollout.length import Interruption
from trainer.rollout.torch_generator import TorchGenerator
from trainer.rollout.vllm_async import AsyncEngine, Deadlines
from trainer.rollout.vllm_async_generator import AsyncVllmGenerator
from trainer.rollout.vllm_engine import VllmEngine
from trainer.rollout.vllm_generator import VllmGenerator
from trainer.stopwatch import Devices, Stopwatch
from trainer.sync import WeightSync
from trainer.sync.direct import DirectSync
from trainer.tasks import TRAIN, Task
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


@dataclass(frozen=True)
class Groundwork:
    """What everybody who samples or learns has to know of model directory and task."""

    recipe: Recipe
    start: Path
    """Directory with model and tokenizer."""
    interruption: Interruption
    end: int
    """Id of the end token."""
    longest: int
    """Tokens of the longest prompt."""


@dataclass(frozen=True)
class Workers:
    """Who samples and who learns, and how weights get from one to the other: all that differs between the modes."""

    learner: Learner
    generator: Generator
    judge: Generator
    """The generator for evaluation."""
    sync: WeightSync
    devices: Devices
    launch: Launch | None = None
    """Starts a process that trains the arms of a probe beside the run; None where there is no room for one."""


def build(
    recipe: Recipe,
    rundir: RunDir,
    start: Path,
    say: Callable[[str], None] = lambda _: None,
    workers: "Callable[[Groundwork], Workers] | None" = None,
    check: Callable[[Directive], str] = lambda _: "",
) -> Run:
    """Assemble the run and start its agent. `start` is a directory with model and tokenizer; `check` says what stands in
    the way of a directive, beyond the guard rails."""
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
        check=check,
    )
    # CPU time says how busy the devices are only where the devices are cores of this process; the agent reads the GPUs itself.
    watch = Stopwatch(agent.phase) if device(recipe).type == "cpu" and not workers else Stopwatch(agent.phase, cpu=None)
    control = Logged(agent, tracker) if tracker else agent
    try:
        loop = assemble(recipe, rundir, start, control, agent.values, watch, say, workers or in_process)
    except BaseException:
        agent.close()
        raise
    return Run(loop, agent, tracker)


def device(recipe: Recipe) -> torch.device:
    """Where learner and torch generator run."""
    if recipe.device != "auto":
        return torch.device(recipe.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def generators(work: Groundwork, gpus: int | None = None) -> tuple[Generator, Generator]:
    """One for rollouts and one for evaluation; they share their weights. `gpus`: of this generator; None: no cluster."""
    recipe, start, interruption, end = work.recipe, work.start, work.interruption, work.end
    slots, judged = recipe.rollout.slots, recipe.evaluation.slots
    head = recipe.precision.generator_head
    if recipe.rollout.generator == "vllm":
        return _vllm_generators(work, gpus)
    dtype = torch.float32 if recipe.precision.dtype == "float32" else torch.bfloat16
    sampler = load_model(start).to(device(recipe), dtype)
    if head == "float32" and not sampler.config.tie_word_embeddings:
        sampler.get_output_embeddings().float()  # a rounded head would be a float32 head on one side alone
    format = torch.float32 if head == "float32" else dtype
    return (
        TorchGenerator(sampler, slots, interruption, end, head=format),
        TorchGenerator(sampler, judged, interruption, end, head=format),
    )


def _vllm_generators(work: Groundwork, gpus: int | None) -> tuple[Generator, Generator]:
    recipe, interruption = work.recipe, work.interruption
    slots, judged = recipe.rollout.slots, recipe.evaluation.slots
    room = work.longest + recipe.length.max_new_tokens
    dtype, head = recipe.precision.dtype, recipe.precision.generator_head
    split = recipe.rollout.tensor_parallel_size or gpus or 1
    if recipe.rollout.process == "same" or (recipe.rollout.process == "auto" and split == 1 and not gpus):
        engine = VllmEngine(work.start, slots + judged, room, work.end, dtype, head)
        return VllmGenerator(engine, slots, interruption), VllmGenerator(engine, judged, interruption)
    limits = recipe.cluster.deadlines
    other = AsyncEngine(
        work.start,
        slots + judged,
        room,
        work.end,
        dtype,
        head,
        split,
        transfer=recipe.cluster.transfer if gpus else "file",
        threads=torch.get_num_threads() if device(recipe).type == "cpu" else None,
        deadlines=Deadlines(start=limits.start, call=limits.abort, load=limits.load, stall=limits.hang),
    )
    return AsyncVllmGenerator(other, slots, interruption), AsyncVllmGenerator(other, judged, interruption)


def in_process(work: Groundwork) -> Workers:
    """Everything in this process."""
    recipe = work.recipe
    place = device(recipe)
    learner = PlainLearner(load_model(work.start), recipe.optimizer, recipe.loss, recipe.precision, place)
    generator, judge = generators(work)
    held = recipe.threads if place.type == "cpu" else 1
    devices = Devices(held, held, "paced" if recipe.rollout.overlap else "turns")
    beside = LocalProcess(recipe, work.start)
    return Workers(learner, generator, judge, DirectSync(learner.model, generator), devices, beside)


def assemble(
    recipe: Recipe,
    rundir: RunDir,
    start: Path,
    control: Control,
    tunables: dict[str, float],
    watch: Stopwatch,
    say: Callable[[str], None] = lambda _: None,
    workers: Callable[[Groundwork], Workers] = in_process,
) -> Loop:
    """All parts but the agent, wired."""
    torch.set_num_threads(recipe.threads)
    tokenizer = load_tokenizer(start)
    task = make_task(recipe.task, tokenizer)
    mine = workers(_groundwork(recipe, start, tokenizer, task))
    fixed = Sampling(
        recipe.rollout.temperature, recipe.length.max_new_tokens, int(recipe.tunables().get("thinking_budget", 0))
    )

    def held_out_scores() -> Sequence[EvalResult]:
        spec = recipe.evaluation
        return [
            evaluate(mine.judge, task, tokenizer, task.prompts(name)[: spec.prompts], spec.k, fixed, name)
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
        learner=mine.learner,
        curriculum=curriculum,
        collector=Collector(
            mine.generator,
            curriculum,
            task,
            tokenizer,
            watch,
            seed=recipe.seed,
            samples=recipe.batch.samples_per_prompt,
            admission=admission(recipe.staleness.mode),
            penalty=recipe.length.penalty,
        ),
        sync=mine.sync,
        evaluate=held_out_scores,
        keeper=Keeper(
            CheckpointStore(rundir.checkpoints), recipe.checkpoint.health, recipe.checkpoint.keep, control.checkpoint
        ),
        control=control,
        tunables=tunables,
        watch=watch,
        devices=mine.devices,
        launch=mine.launch,
        say=say,
    )


def _groundwork(recipe: Recipe, start: Path, tokenizer: Tokenizer, task: Task) -> Groundwork:
    interruption = Interruption(
        phrase=tuple(tokenizer.encode(recipe.length.closing_phrase, add_special_tokens=False)),
        closing=tokenizer.convert_tokens_to_ids("</think>"),
        window=recipe.length.window,
    )
    longest = max(len(prompt.tokens) for split in (TRAIN, *task.held_out) for prompt in task.prompts(split))
    return Groundwork(recipe, start, interruption, tokenizer.eos_token_id, longest)
