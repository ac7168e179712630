"""Bytes per GPU of a learner rank under FSDP2 and of a generator. Pure.

A learner rank holds float32 weights, their gradient, two moments of AdamW, and - this trainer's own - a copy of the gradient
of the first half of each batch, for the gradient noise scale; all of it divided by the ranks. On top of that comes what is
gathered (layers in the format of the forward pass, two at a time: the one at work and the one that is fetched; embedding and
head in float32, from the beginning of a pass to its end), what is reduced, activations, and the logits of a micro-batch.
"""

from dataclasses import dataclass

from trainer.plan.assumptions import Values
from trainer.plan.hardware import Gpu
from trainer.plan.shape import Shape

FP32 = 4
GATHERED_LAYERS = 2
LOGIT_COPIES = 3
"""Scores, the same over the temperature, and probabilities (fp32_head.py), all alive at the end of the head's forward pass:
3.04 times the logits measured, on a CPU."""


@dataclass(frozen=True)
class LearnerMemory:
    """Bytes on one GPU of a learner rank."""

    weights: float
    gradients: float
    moments: float
    noise_scale: float
    gathered: float
    activations: float
    logits: float
    reserve: float

    @property
    def state(self) -> float:
        """What does not go away between two steps."""
        return self.weights + self.gradients + self.moments + self.noise_scale

    @property
    def total(self) -> float:
        return self.state + self.gathered + self.activations + self.logits + self.reserve


@dataclass(frozen=True)
class GeneratorMemory:
    """Bytes on one GPU of a generator, and the completions that fit into what is left of the generator's GPUs."""

    weights: float
    reserve: float
    cache: float
    """Left for KV cache."""
    per_token: float
    """KV cache of one token over the whole generator."""
    fitting: float
    """Completions of average context that fit at once; below 0 the weights alone do not fit."""
    fitting_longest: float
    """The same if every completion were as long as the recipe allows."""


def micro_batch(tokens_per_micro_batch: int, longest: int) -> int:
    """Tokens in the largest micro-batch: one sequence at least, whatever the setting."""
    return max(tokens_per_micro_batch, longest)


def activations_per_token(shape: Shape, dtype: int, recompute: bool) -> float:
    """Bytes kept for the backward pass; a test counts what autograd really keeps.

    A layer keeps: what its two norms made, in float32; the input of every product, under autocast a copy for each; query and
    key as their norms made them, in float32; query, key, value and result of the attention; gate, up, their activation and
    product of the MLP. With recomputation only the inputs of the layers stay, and one layer at a time has all of it.
    """
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    inputs = 5 if dtype != FP32 else 2  # query, key, value, gate, up
    common = shape.hidden * (2 * FP32 + inputs * dtype) + dtype * (3 * q + 2 * kv) + shape.qk_norm * FP32 * (q + kv)
    dense = common + 4 * dtype * shape.mlp
    sparse = common + 4 * dtype * (shape.chosen * shape.expert_mlp + shape.shared_mlp)
    plain = shape.layers - shape.expert_layers
    if recompute:
        return shape.layers * shape.hidden * FP32 + max(dense if plain else 0, sparse if shape.expert_layers else 0)
    return plain * dense + shape.expert_layers * sparse


def learner_memory(
    shape: Shape, gpu: Gpu, ranks: int, tokens: int, dtype: int, head: int, recompute: bool, values: Values
) -> LearnerMemory:
    """`tokens` of the largest micro-batch; `dtype` and `head` are bytes of the forward pass and of the head's."""
    share = shape.total / ranks
    outer = shape.head * (1 if shape.tied else 2)
    if ranks == 1:  # nothing is gathered; autocast keeps a rounded copy of every weight
        beside = (shape.total - outer) * dtype if dtype != FP32 else 0
    else:
        reduced = shape.largest_layer * (FP32 + (dtype if dtype != FP32 else 0))
        beside = min(GATHERED_LAYERS, shape.layers) * shape.largest_layer * dtype + reduced + 2 * outer * FP32
    rounded = shape.head * head if head != FP32 else 0
    return LearnerMemory(
        weights=FP32 * share,
        gradients=FP32 * share,
        moments=2 * FP32 * share,
        noise_scale=FP32 * share,
        gathered=beside + rounded,
        activations=tokens * activations_per_token(shape, dtype, recompute),
        logits=tokens * (shape.vocabulary * FP32 * LOGIT_COPIES + shape.hidden * head),
        reserve=values.reserve * gpu.memory,
    )


def generator_memory(
    shape: Shape, gpu: Gpu, gpus: int, context: float, longest: int, dtype: int, values: Values
) -> GeneratorMemory:
    """`gpus` of one generator share its weights and its cache (tensor parallelism)."""
    weights, reserve = shape.total * dtype / gpus, values.reserve * gpu.memory
    cache, per_token = gpu.memory - weights - reserve, float(shape.kv_values * dtype)
    return GeneratorMemory(
        weights=weights,
        reserve=reserve,
        cache=cache,
        per_token=per_token,
        fitting=cache * gpus / (per_token * context),
        fitting_longest=cache * gpus / (per_token * longest),
    )
