"""FSDP2 learner and torch generator on one GPU against what `scalerl plan` calculates: `python bench/cluster/gpu.py`.

    random prompts -> torch generator -> completions, random rewards -> sharded learner, one rank, bfloat16 -> weights file -> generator

Prints for the learner the memory that a step takes, at its peak, beside the plan's; seconds of a step and the share of the
GPU's peak that useful products reach (MFU: FLOPs of the plan's formulas over measured seconds); for the generator tokens per
second; for the way of the weights its seconds; and how far learner and generator differ (mismatch_kl, by right near zero before
the first step has changed anything). The model is new and random: what it says does not matter here, its shape does.

    python bench/cluster/gpu.py                                                80 GB; 46 GiB by plan, and the generator's
    python bench/cluster/gpu.py --shape 1.7b --micro-batch 4096 --recompute    80 GB; 51 GiB
    python bench/cluster/gpu.py --shape tiny --prompts 4 --length 48           anywhere; on a CPU nothing but that it runs

On a CPU there is no peak and no allocator to ask, so memory and MFU are left out. Never run on a GPU so far: no machine with
one was at hand when it was written.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, Qwen3Config

from trainer.learn import LearnResult
from trainer.learn.sharded import ShardedLearner, join
from trainer.plan.assumptions import corners
from trainer.plan.hardware import GPUS, Gpu
from trainer.plan.memory import LearnerMemory, learner_memory, micro_batch
from trainer.plan.shape import Shape, read_shape
from trainer.rollout.length import Interruption
from trainer.rollout.seeds import request_seed
from trainer.rollout.torch_generator import TorchGenerator
from trainer.settings import Loss, OptimizerSpec, Precision
from trainer.sync import files
from trainer.types import Group, GroupRequest, Item, Prompt, Sampling, ScoredGroup, Verdict, Version

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128, "vocab_size": 512},
    "0.6b": {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151_936},
    "1.7b": {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 6144, "vocab_size": 151_936},
}  # fmt: skip
PROMPT = 128
"""Tokens of a prompt."""
GIB = 2**30


def make(shape: str, directory: Path) -> Path:
    """A new model in bfloat16 on disk; learner and generator open it as they would a real one."""
    config = Qwen3Config(**SHAPES[shape], tie_word_embeddings=False, max_position_embeddings=40_960)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    return directory


def opened(directory: Path, dtype: torch.dtype | str) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa")


def generate(generator: TorchGenerator, options: argparse.Namespace, words: int, seed: int) -> list[ScoredGroup]:
    """Groups of completions that all reach the length limit, or nearly: the end token is one of `words`."""
    rng = random.Random(seed)
    for ordinal in range(options.prompts):
        prompt = Prompt(ordinal, "", tuple(rng.randrange(words) for _ in range(min(PROMPT, options.length))))
        sampling = Sampling(1.0, options.length, 0)
        generator.submit(GroupRequest(ordinal, prompt, options.samples, sampling, request_seed(seed, ordinal)))
    groups: list[Group] = []
    while len(groups) < options.prompts:
        groups += generator.poll()
    return [_scored(group, rng) for group in groups]


def _scored(group: Group, rng: random.Random) -> ScoredGroup:
    passed = [True, False, *(rng.random() < 0.5 for _ in group.completions[2:])]
    verdicts = tuple(Verdict(1.0 if p else -1.0, p) for p in passed)
    return ScoredGroup(Item(0, group.request.prompt.ordinal), group, verdicts)


def flops(shape: Shape, groups: Sequence[ScoredGroup]) -> float:
    """Useful ones of a learner's step, by the plan's formulas: prompts once per group, no recomputation."""
    total = 0.0
    for scored in groups:
        prompt = len(scored.group.request.prompt.tokens)
        total += prompt * (shape.body_flops + shape.score_flops(prompt / 2))
        for completion in scored.group.completions:
            n = len(completion.tokens)
            total += n * (shape.body_flops + shape.score_flops(prompt + n / 2) + shape.head_flops)
    return 3 * total


class Clock:
    """Wall time and peak memory of what is done between two calls, on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.lap()

    def lap(self) -> tuple[float, float]:
        """Seconds since the last lap, and the most bytes that were allocated meanwhile (NaN on a CPU)."""
        peak = float("nan")
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            peak = float(torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
        now = time.perf_counter()
        seconds, self._at = now - getattr(self, "_at", now), now
        return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="0.6b")
    parser.add_argument("--gpu", choices=list(GPUS), default="h100", help="whose peaks the MFU is a share of")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a completion")
    parser.add_argument("--micro-batch", type=int, default=8192, help="tokens of a pass, padding included")
    parser.add_argument("--steps", type=int, default=4, help="the first is not counted")
    parser.add_argument("--recompute", action="store_true")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        store = dist.FileStore(f"{scratch}/store", 1)
        join(store, 0, 1, device, timedelta(seconds=300))
        try:
            run(options, make(options.shape, Path(scratch) / "model"), Path(scratch), device)
        finally:
            dist.destroy_process_group()


def run(options: argparse.Namespace, model: Path, scratch: Path, device: torch.device) -> None:
    """Measure and print."""
    shape, clock = read_shape(model), Clock(device)
    precision = Precision(dtype="bfloat16")
    sampler = opened(model, torch.bfloat16).to(device)
    sampler.get_output_embeddings().float()  # as trainer.build does: the head is float32 on both sides
    slots = options.prompts * options.samples
    generator = TorchGenerator(sampler, slots, Interruption((), 0, (1.0, 1.0)), shape.vocabulary - 1)
    spec = OptimizerSpec(
        lr=1e-6, warmup_steps=0, tokens_per_micro_batch=options.micro_batch, recompute=options.recompute
    )
    beside = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    learner = ShardedLearner(opened(model, "auto"), spec, Loss(), precision, device)
    print(f"{options.shape}: {shape.total / 1e9:.2f} billion parameters on {_name(device)}, torch {torch.__version__}")
    decode, train, way, peaks = [], [], [], []
    for step in range(1, options.steps + 1):
        clock.lap()
        groups = generate(generator, options, shape.vocabulary - 1, step)
        decode.append(sum(len(c.tokens) for g in groups for c in g.group.completions) / clock.lap()[0])
        result = learner.step(step, groups, {"lr_scale": 1.0})
        seconds, peak = clock.lap()
        digest = files.write(scratch / "weights", learner.layout(), learner.weights())
        generator.load(files.read(scratch / "weights", digest), Version(0, step))
        way.append(clock.lap()[0])
        train.append((seconds, flops(shape, groups)))
        peaks.append(peak - beside)
        _say(step, result, seconds, decode[-1], way[-1])
    _conclude(options, shape, GPUS[options.gpu], device, train[1:] or train, peaks)


def _say(step: int, result: LearnResult, seconds: float, decoded: float, way: float) -> None:
    print(
        f"step {step}: {result.skipped or 'trained'}, {result.trained_tokens} tokens in {seconds:.2f} s; generator "
        f"{decoded:,.0f} tokens/s; weights in {way:.2f} s; loss {result.loss:.4f}, grad {result.grad_norm:.3f}, "
        f"mismatch_kl {result.mismatch_kl:.2e}"
    )


def _conclude(
    options: argparse.Namespace,
    shape: Shape,
    gpu: Gpu,
    device: torch.device,
    train: Sequence[tuple[float, float]],
    peaks: Sequence[float],
) -> None:
    longest = min(PROMPT, options.length) + options.length
    tokens = micro_batch(options.micro_batch, longest)
    planned = _planned(shape, gpu, tokens, options.recompute)
    print(
        f"plan: {planned.total / GIB:.2f} GiB at the peak of a step (state {planned.state / GIB:.2f}, gathered "
        f"{planned.gathered / GIB:.2f}, activations {planned.activations / GIB:.2f}, logits {planned.logits / GIB:.2f})"
    )
    seconds, work = sum(s for s, _ in train) / len(train), sum(w for _, w in train) / len(train)
    measured: dict[str, float | None] = {"plan_gib": planned.total / GIB, "peak_gib": None, "mfu": None}
    if device.type == "cuda":
        measured |= {"peak_gib": max(peaks) / GIB, "mfu": work / seconds / gpu.bf16}
        print(
            f"measured: {max(peaks) / GIB:.2f} GiB; {seconds:.2f} s a step, MFU {work / seconds / gpu.bf16:.1%} of bfloat16 on {gpu.name}"
        )
    else:
        print(f"measured: {seconds:.2f} s a step on a CPU; no peak and no allocator to compare with")
    print(json.dumps({"shape": options.shape, "device": _name(device), "seconds": seconds, "flops": work, **measured}))


def _planned(shape: Shape, gpu: Gpu, tokens: int, recompute: bool) -> LearnerMemory:
    """The plan's figures without its reserve, which is assumed. One rank of FSDP gathers what it has itself, as many do;
    the plan for one GPU is that of a learner without FSDP."""
    values = corners({"reserve": (0.0, 0.0)})[0]  # nothing else of the memory is assumed
    one, many = (learner_memory(shape, gpu, ranks, tokens, 2, 4, recompute, values) for ranks in (1, 2))
    return replace(one, gathered=many.gathered)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "a CPU"


if __name__ == "__main__":
    main()
