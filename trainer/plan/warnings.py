"""What a person must know before renting: one sentence each, worst first. Pure."""

from collections.abc import Iterator

from trainer.plan.balance import fits
from trainer.plan.estimate import Plan
from trainer.plan.hardware import GIB
from trainer.plan.memory import FP32, LOGIT_COPIES, learner_memory, micro_batch

MOST_RANKS = 1024
WAITS = 1.5
"""One side this many times faster than the other is worth a word."""


def warnings(plan: Plan, best: Plan | None) -> list[str]:
    """`best` is the best split of the same GPUs."""
    return [*_learner(plan), *_generator(plan), *_staleness(plan), *_balance(plan, best), *_rest(plan)]


def gib(amount: float) -> str:
    """Bytes as people say them."""
    return f"{amount / GIB:,.1f} GiB"


def _learner(plan: Plan) -> Iterator[str]:
    memory, room = plan.slow.learner_memory, plan.gpu.memory
    spec, longest = plan.recipe.optimizer.tokens_per_micro_batch, plan.slow.work.longest
    tokens = micro_batch(spec, longest)
    if memory.total > room:
        yield f"DOES NOT FIT: a learner GPU needs {gib(memory.total)} of {gib(room)}"
        if not plan.recompute:
            yield "activations are kept; optimizer.recompute: true computes them again, with the same result"
        per_token = (memory.activations + memory.logits) / tokens
        left = room - memory.total + per_token * tokens
        if left < per_token * longest:
            enough = fewest_ranks(plan)
            ranks = f"{enough} ranks would do" if enough else "no number of ranks helps"
            yield (
                f"one sequence of {longest:,} tokens needs {gib(per_token * longest)} of activations and logits "
                f"and {gib(max(0.0, left))} are left for it; {ranks}"
            )
        else:
            yield f"with optimizer.tokens_per_micro_batch of at most {int(left / per_token):,} the learner fits"
    if spec < longest:
        yield (
            f"a sequence may have {longest:,} tokens, more than optimizer.tokens_per_micro_batch of {spec:,}: "
            "the longest one is a micro-batch of its own, and memory is planned for that"
        )
    if memory.logits > memory.state:
        yield (
            f"logits in float32, {LOGIT_COPIES} copies of {tokens:,} x {plan.shape.vocabulary:,}, take {gib(memory.logits)}: "
            "more than weights and optimizer together"
        )
    learning = plan.slow.learning
    if learning.network > learning.body + learning.head:
        yield (
            f"gathering weights for {learning.micro_batches} micro-batches per rank takes {learning.network:.0f} s, longer "
            f"than the products ({learning.body + learning.head:.0f} s): fewer ranks, a faster network or larger micro-batches"
        )
    if plan.recipe.precision.learner_head == "float32" and plan.dtype == 2 and learning.head > learning.body:
        yield ("the float32 head takes the learner longer than all layers: this GPU has few float32 FLOPs without TF32")


def fewest_ranks(plan: Plan) -> int | None:
    """Learner ranks with which one longest sequence at a time fits, slow values; None if there is no such number."""
    spec, tokens = plan.recipe.precision, plan.slow.work.longest
    head = FP32 if spec.learner_head == "float32" else plan.dtype
    for ranks in range(plan.split.learners + 1, MOST_RANKS + 1):
        need = learner_memory(plan.shape, plan.gpu, ranks, tokens, plan.dtype, head, plan.recompute, plan.slow.values)
        if need.total <= plan.gpu.memory:
            return ranks
    return None


def _generator(plan: Plan) -> Iterator[str]:
    room = plan.slow.generator_memory
    if room.fitting_longest < 1:
        yield (
            f"DOES NOT FIT: a generator of {plan.split.gpus_per_generator} GPU has {gib(max(0.0, room.cache))} per GPU "
            f"left for KV cache beside {gib(room.weights)} of weights, and one longest sequence does not fit"
        )
    elif room.fitting < plan.recipe.rollout.slots:
        yield (
            f"rollout.slots is {plan.recipe.rollout.slots}, and KV cache fits for {room.fitting:.0f} average completions "
            f"({room.fitting_longest:.0f} of the longest): the engine queues or preempts the others"
        )


def _staleness(plan: Plan) -> Iterator[str]:
    bound, longest = plan.recipe.staleness.max_staleness, plan.slow.longest_steps
    if plan.recipe.staleness.mode == "pipeline" and longest > bound > 0:
        yield (
            f"the longest completion takes {longest:.1f} steps to generate and max_staleness is {bound}: "
            "the learner will wait for stragglers"
        )


def _balance(plan: Plan, best: Plan | None) -> Iterator[str]:
    slow = plan.slow
    ratio = slow.generation_seconds / slow.learning.seconds
    if plan.recipe.staleness.mode == "pipeline" and not 1 / WAITS <= ratio <= WAITS:
        waits = "learner" if ratio > 1 else "generators"
        share = 1 - min(ratio, 1 / ratio)
        yield f"the {waits} would wait {share:.0%} of the time"
    if (
        best is not None
        and best.split != plan.split
        and best.slow.step_seconds < 0.9 * slow.step_seconds
        and fits(best)
    ):
        yield (
            f"{best.split.generators} generators and {best.split.learners} learner ranks would need "
            f"{best.slow.step_seconds / slow.step_seconds:.0%} of the time per step (slow values)"
        )


def _rest(plan: Plan) -> Iterator[str]:
    hours = plan.slow.gpu_hours(plan.split.gpus, plan.recipe.steps)
    spent = plan.slow.evaluations.times * plan.slow.evaluations.seconds * plan.split.gpus / 3600
    if spent > 0.1 * hours:
        yield f"evaluation takes {spent / hours:.0%} of the GPU-hours"
    every = plan.recipe.checkpoint.every * plan.slow.step_seconds
    if plan.slow.checkpoint_seconds > 0.05 * every:
        yield (
            f"a checkpoint takes {plan.slow.checkpoint_seconds / every:.0%} of the time between two of them: "
            "raise checkpoint.every or find a faster file system"
        )
    if plan.split.gpus_per_generator > plan.gpu.domain:
        yield f"a generator of {plan.split.gpus_per_generator} GPUs reaches beyond the {plan.gpu.domain} of one fast network"
