"""Which side waits, and the split of the same GPUs with which the step is shortest. Pure."""

from collections.abc import Iterator

from trainer.plan.assumptions import Values
from trainer.plan.estimate import Plan, Split, plan
from trainer.plan.hardware import Gpu
from trainer.plan.shape import Shape
from trainer.recipe import Recipe


def fits(found: Plan) -> bool:
    """Whether learner and generator fit into their GPUs with the larger reserve."""
    learner, generator = found.slow.learner_memory, found.slow.generator_memory
    return learner.total <= found.gpu.memory and generator.fitting_longest >= 1


def splits(gpus: int, gpus_per_generator: int) -> Iterator[Split]:
    """Every way to give all GPUs to at least one learner rank and one generator, as far as generators go up evenly."""
    for generators in range(1, (gpus - 1) // gpus_per_generator + 1):
        yield Split(gpus - generators * gpus_per_generator, generators, gpus_per_generator)


def best_split(
    recipe: Recipe,
    shape: Shape,
    gpu: Gpu,
    gpus: int,
    gpus_per_generator: int,
    corners: tuple[Values, Values],
    link: str,
    recompute: bool,
) -> Plan | None:
    """The plan with the shortest step (mean of both corners) among the splits that fit; of all where none fits.

    None if the GPUs do not make one split.
    """
    plans = [plan(recipe, shape, gpu, split, corners, link, recompute) for split in splits(gpus, gpus_per_generator)]
    candidates = [found for found in plans if fits(found)] or plans
    return min(candidates, key=lambda p: p.slow.step_seconds + p.fast.step_seconds, default=None)


def smallest_generator(shape: Shape, gpu: Gpu, dtype: int) -> int:
    """GPUs of a generator, a power of two, so that the weights leave at least a third of the memory for the cache."""
    gpus = 1
    while shape.total * dtype / gpus > gpu.memory * 0.6 and gpus < gpu.domain:
        gpus *= 2
    return gpus
