"""Recipe x shape x GPUs x assumptions -> the plan. Pure.

    pipeline         generators and learner work side by side: a step takes as long as the slower of them, and the transfer
    ppo_off_policy   they take turns: the sum. So does pipeline with a staleness of 0

How many completions a generator decodes at once is the least of three: what fits into its memory, its slots, and its share
of what the staleness bound admits.
"""

from dataclasses import dataclass

from trainer.plan.assumptions import Values
from trainer.plan.hardware import LINKS, Gpu
from trainer.plan.memory import GeneratorMemory, LearnerMemory, generator_memory, learner_memory, micro_batch
from trainer.plan.shape import Shape
from trainer.plan.speed import Decoding, Learning, decoding, learning, prefill_seconds, transfer_seconds
from trainer.plan.work import Work, context, work_of
from trainer.recipe import Recipe
from trainer.rollout.admission import admission


@dataclass(frozen=True)
class Split:
    """Who gets how many GPUs."""

    learners: int
    """Ranks, one GPU each."""
    generators: int
    gpus_per_generator: int = 1

    @property
    def generator_gpus(self) -> int:
        return self.generators * self.gpus_per_generator

    @property
    def gpus(self) -> int:
        return self.learners + self.generator_gpus


@dataclass(frozen=True)
class Evaluations:
    """All held-out evaluations of a run. Learner and generators are held for them."""

    times: int
    tokens: float
    """Of one of them."""
    seconds: float
    """One of them."""


@dataclass(frozen=True)
class Corner:
    """The plan under one set of values."""

    values: Values
    work: Work
    learner_memory: LearnerMemory
    generator_memory: GeneratorMemory
    decoding: Decoding
    generation_seconds: float
    """All generators, for the completions of a step."""
    learning: Learning
    publish_seconds: float
    step_seconds: float
    evaluations: Evaluations
    needed_tokens_per_second: float
    """From all generators together, so that the learner never waits."""
    lag: float
    """Steps between the first token of an average completion and the learner's use of it."""
    longest_steps: float
    """Steps that the longest completion takes to generate."""
    checkpoint_seconds: float

    def gpu_hours(self, gpus: int, steps: int) -> float:
        """Held for training and evaluation."""
        return gpus * (steps * self.step_seconds + self.evaluations.times * self.evaluations.seconds) / 3600

    @property
    def generators_wait(self) -> bool:
        """Whether the generators are the faster side."""
        return self.generation_seconds < self.learning.seconds


@dataclass(frozen=True)
class Plan:
    """Everything the report shows."""

    recipe: Recipe
    shape: Shape
    gpu: Gpu
    link: str
    split: Split
    recompute: bool
    slow: Corner
    fast: Corner

    @property
    def dtype(self) -> int:
        """Bytes of a number in the forward pass."""
        return dtype_of(self.recipe)

    @property
    def checkpoint_bytes(self) -> int:
        return checkpoint_bytes(self.shape)

    @property
    def publish_bytes(self) -> int:
        """Weights that every generator gets."""
        return publish_bytes(self.shape, self.dtype, head_of(self.recipe))


def dtype_of(recipe: Recipe) -> int:
    """Bytes of a number in the forward pass of learner and generator."""
    return 4 if recipe.precision.dtype == "float32" else 2


def head_of(recipe: Recipe) -> int:
    return 4 if recipe.precision.learner_head == "float32" else dtype_of(recipe)


def publish_bytes(shape: Shape, dtype: int, head: int) -> int:
    """Weights in the format of the generators; a float32 head of its own goes as it is."""
    return shape.total * dtype + (0 if shape.tied else shape.head * (head - dtype))


def checkpoint_bytes(shape: Shape) -> int:
    """Weights and both moments in float32; a step counter per tensor and the JSON beside it are not counted."""
    return 12 * shape.total


def plan(
    recipe: Recipe, shape: Shape, gpu: Gpu, split: Split, corners: tuple[Values, Values], link: str, recompute: bool
) -> Plan:
    """The plan of a recipe on given GPUs."""
    slow, fast = (corner(recipe, shape, gpu, split, values, link, recompute) for values in corners)
    return Plan(recipe, shape, gpu, link, split, recompute, slow, fast)


def corner(recipe: Recipe, shape: Shape, gpu: Gpu, split: Split, values: Values, link: str, recompute: bool) -> Corner:
    """The plan under one set of values."""
    dtype, head = dtype_of(recipe), head_of(recipe)
    work = work_of(recipe, shape, values, recompute)
    tokens = micro_batch(recipe.optimizer.tokens_per_micro_batch, work.longest)
    room = generator_memory(shape, gpu, split.gpus_per_generator, work.context, work.longest, dtype, values)
    concurrent = _concurrent(recipe, room, split)
    decoded = decoding(shape, gpu, split.gpus_per_generator, concurrent, work.context, dtype, values)
    generation = _generation_seconds(shape, gpu, split, work.generated, work.prompts, decoded, values)
    network = rate(link, gpu, split.gpus)
    learned = learning(shape, gpu, split.learners, work, tokens, dtype, head, rate(link, gpu, split.learners), values)
    publish = transfer_seconds(publish_bytes(shape, dtype, head), network, values)
    step = publish + (generation + learned.seconds if _in_turns(recipe) else max(generation, learned.seconds))
    return Corner(
        values=values,
        work=work,
        learner_memory=learner_memory(shape, gpu, split.learners, tokens, dtype, head, recompute, values),
        generator_memory=room,
        decoding=decoded,
        generation_seconds=generation,
        learning=learned,
        publish_seconds=publish,
        step_seconds=step,
        evaluations=_evaluations(recipe, shape, gpu, split, room, dtype, values),
        needed_tokens_per_second=work.generated / (learned.seconds + publish),
        lag=_lag(recipe, concurrent * split.generators / work.completions, generation < learned.seconds),
        longest_steps=recipe.length.max_new_tokens * decoded.step_seconds / step,
        checkpoint_seconds=3 * checkpoint_bytes(shape) / values.storage,  # written, and read twice for its checksum
    )


def rate(link: str, gpu: Gpu, gpus: int) -> float:
    """Bytes per second and GPU between `gpus` GPUs: the fast network as far as it reaches, then `link`."""
    return gpu.nvlink if link == "nvlink" or gpus <= gpu.domain else LINKS[link]


def _in_turns(recipe: Recipe) -> bool:
    return recipe.staleness.mode == "ppo_off_policy" or recipe.staleness.max_staleness == 0


def _concurrent(recipe: Recipe, room: GeneratorMemory, split: Split) -> float:
    """Completions that one generator decodes at once; at least one, so that a plan that does not fit still has figures."""
    groups = admission(recipe.staleness.mode).capacity(recipe.staleness.max_staleness, recipe.batch.prompts_per_step)
    admitted = groups * recipe.batch.samples_per_prompt / split.generators
    return max(1.0, min(room.fitting, recipe.rollout.slots, admitted))


def _generation_seconds(
    shape: Shape, gpu: Gpu, split: Split, tokens: float, prompts: float, decoded: Decoding, values: Values
) -> float:
    prefill = prefill_seconds(shape, gpu, split.gpus_per_generator, prompts / split.generators, values)
    return tokens / (split.generators * decoded.tokens_per_second) + prefill


def _evaluations(
    recipe: Recipe, shape: Shape, gpu: Gpu, split: Split, room: GeneratorMemory, dtype: int, values: Values
) -> Evaluations:
    spec = recipe.evaluation
    sets = len(getattr(recipe.task, "held_out", ())) or 1
    mean = values.mean_length * recipe.length.max_new_tokens
    completions = sets * spec.prompts * spec.k
    concurrent = max(1.0, min(room.fitting, spec.slots, completions / split.generators))
    behind = context(values.prompt_tokens, mean, values.length_spread)
    decoded = decoding(shape, gpu, split.gpus_per_generator, concurrent, behind, dtype, values)
    # The last completions decode alone: a whole longest one passes at the speed of few.
    few = decoding(shape, gpu, split.gpus_per_generator, 1.0, behind, dtype, values)
    tail = (recipe.length.max_new_tokens - mean) * few.step_seconds
    prompts = sets * spec.prompts * values.prompt_tokens
    seconds = _generation_seconds(shape, gpu, split, completions * mean, prompts, decoded, values) + tail
    times = 1 + -(-recipe.steps // spec.every)
    return Evaluations(times, completions * mean, seconds)


def _lag(recipe: Recipe, batches: float, generators_wait: bool) -> float:
    """Little's law: a completion is under way for as many steps as there are batches under way. Where the learner is the
    slower side the buffer is full, and they are as many as the bound admits."""
    k = recipe.staleness.max_staleness
    if _in_turns(recipe):
        return max(0.0, (k - 1) / 2)
    return float(k) if generators_wait else min(float(k), batches)
