"""Seconds: of decoding, of the learner's step, of moving weights. Roofs of the hardware times assumed shares of them. Pure."""

from dataclasses import dataclass

from trainer.plan.assumptions import Values
from trainer.plan.hardware import Gpu
from trainer.plan.shape import Shape
from trainer.plan.work import Work

OPTIMIZER_BYTES = 28
"""Read and written per parameter by AdamW in float32: weight, gradient and two moments read, three of them written."""


@dataclass(frozen=True)
class Decoding:
    """One generator."""

    concurrent: float
    """Completions decoded at once."""
    step_seconds: float
    """One token for each of them."""
    bound: str
    """memory, products."""

    @property
    def tokens_per_second(self) -> float:
        return self.concurrent / self.step_seconds


@dataclass(frozen=True)
class Learning:
    """One optimizer step of all ranks together."""

    body: float
    head: float
    network: float
    """Gathering weights and reducing gradients; hidden behind the products unless it takes longer."""
    optimizer: float
    micro_batches: int
    """Of each rank."""

    @property
    def seconds(self) -> float:
        return max(self.body + self.head, self.network) + self.optimizer


def decoding(
    shape: Shape, gpu: Gpu, gpus: int, concurrent: float, context: float, dtype: int, values: Values
) -> Decoding:
    """A generator of `gpus` GPUs with `concurrent` completions of average `context`: each step reads the weights once and
    every completion's KV cache."""
    read = shape.touched(concurrent) * dtype + concurrent * shape.kv_read(context) * dtype
    memory = read / (gpus * gpu.bandwidth * values.mbu)
    peak = gpu.bf16 if dtype == 2 else gpu.fp32
    flops = concurrent * (shape.body_flops + shape.head_flops + shape.score_flops(context))
    products = flops / (gpus * peak * values.decode_mfu)
    bound = "memory" if memory >= products else "products"
    return Decoding(concurrent, max(memory, products) + values.decode_overhead, bound)


def prefill_seconds(shape: Shape, gpu: Gpu, gpus: int, tokens: float, values: Values) -> float:
    """Prompts through a generator."""
    return tokens * shape.body_flops / (gpus * gpu.bf16 * values.decode_mfu)


def learning(
    shape: Shape, gpu: Gpu, ranks: int, work: Work, tokens: int, dtype: int, head: int, link: float, values: Values
) -> Learning:
    """`tokens` of a micro-batch; `link` bytes per second and GPU between the ranks."""
    micro_batches = max(1, -(-int(work.trained) // (ranks * tokens)))
    body_peak = (gpu.bf16 if dtype == 2 else gpu.fp32) * values.mfu
    head_peak = gpu.bf16 * values.mfu if head == 2 else gpu.fp32 * values.head_mfu
    moved = shape.total * (2 * dtype + 4) * (ranks - 1) / ranks  # gathered forward and backward, gradients reduced
    return Learning(
        body=work.body_flops / (ranks * body_peak),
        head=work.head_flops / (ranks * head_peak),
        network=micro_batches * moved / (link * values.link_use) if ranks > 1 else 0.0,
        optimizer=OPTIMIZER_BYTES * shape.total / ranks / (gpu.bandwidth * values.link_use),
        micro_batches=micro_batches,
    )


def transfer_seconds(bytes_: float, link: float, values: Values) -> float:
    """One copy of the weights to all generators: a pipelined broadcast takes as long as one copy."""
    return bytes_ / (link * values.link_use)
