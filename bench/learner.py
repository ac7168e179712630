"""Seconds per optimizer step of the learner: `python bench/learner.py`, or with `--threads 2 --model 5M`.

Random completions of about 38 tokens (8 to 64), 16 prompts x 8, another batch in every round, all groups with signal, at
0.5 and about 5 million parameters. Variants take turns inside every round, so that other work on the machine hits them alike:

    lean       the forward pass of trainer/decoder.py (prompts shared, flat tokens, oneDNN products)
    blas       the same, its products by the BLAS that PyTorch takes by itself
    padded     the Hugging Face forward pass on padded rows

CPU time counts the process alone, wall time also what others took. The median and the least of all rounds are printed.
"""

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trainer import decoder
from trainer.learn.learner import PlainLearner
from trainer.model import make_tiny
from trainer.settings import OptimizerSpec, TinyModel
from trainer.tasks.tokenizer import character_tokenizer
from trainer.types import Completion, Group, GroupRequest, Item, Prompt, Sampling, ScoredGroup, Span, Verdict, Version

SHAPES = {"0.5M": TinyModel(), "5M": TinyModel(hidden=256, layers=6, heads=8, kv_heads=4, head_dim=32, mlp=768)}
TUNABLES = {"lr_scale": 1.0}
WARM_UP = 8
"""Rounds that are not counted: oneDNN compiles a kernel for every shape that it meets for the first time."""


def batch(prompts: int, samples: int, seed: int = 0) -> list[ScoredGroup]:
    """Random groups in the shape of the tiny recipe's."""
    rng = random.Random(seed)

    def completion() -> Completion:
        n = min(64, max(8, round(rng.gauss(38, 12))))
        tokens, logprobs = (tuple(rng.randrange(8, 60) for _ in range(n)), tuple(rng.gauss(-4, 0.3) for _ in range(n)))
        return Completion(tokens, logprobs, (True,) * n, (Span(Version(0, 0), n),), "stop", False, 0.0)

    def group(ordinal: int) -> ScoredGroup:
        prompt = Prompt(ordinal, "", tuple(rng.randrange(8, 60) for _ in range(rng.choice((6, 8, 10, 12)))))
        request = GroupRequest(ordinal, prompt, samples, Sampling(1.0, 64, 64))
        verdicts = tuple(Verdict(1.0 if i % 3 == 0 else -1.0, i % 3 == 0) for i in range(samples))
        return ScoredGroup(Item(0, ordinal), Group(request, tuple(completion() for _ in range(samples))), verdicts)

    return [group(ordinal) for ordinal in range(prompts)]


@contextmanager
def variant(name: str, learner: PlainLearner) -> Iterator[None]:
    """Switch the learner to one of the three, and back."""
    forward: Any = learner._forward
    product, padded = decoder._onednn, forward._padded
    if name == "blas":
        decoder._onednn = None
    if name == "padded":
        forward._padded = forward._hugging_face
    try:
        yield
    finally:
        decoder._onednn, forward._padded = product, padded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=list(SHAPES), nargs="*", default=list(SHAPES))
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--budget", type=int, nargs="*", default=[2048], help="tokens per micro-batch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    options = parser.parse_args()
    batches = [batch(options.prompts, options.samples, seed) for seed in range(options.rounds + WARM_UP)]
    tokens = sum(len(c.tokens) for groups in batches for g in groups for c in g.group.completions) / len(batches)
    print(f"{options.prompts} prompts x {options.samples}, {tokens:.0f} completion tokens, torch {torch.__version__}")
    print("model  threads  budget  variant   cpu s median (least)   wall s median (least)   tokens/s")
    for name in options.model:
        model = make_tiny(SHAPES[name], character_tokenizer(), seed=0)
        learners = {b: PlainLearner(model, OptimizerSpec(lr=1e-9, tokens_per_micro_batch=b)) for b in options.budget}
        for threads in options.threads:
            torch.set_num_threads(threads)
            times: dict[tuple[int, str], list[tuple[float, float]]] = {}
            for round_, groups in enumerate(batches):
                for budget, learner in learners.items():
                    for kind in ("lean", "blas", "padded"):
                        with variant(kind, learner):
                            cpu, wall = time.process_time(), time.perf_counter()
                            learner.step(round_ + 1, groups, TUNABLES)
                            spent = time.process_time() - cpu, time.perf_counter() - wall
                        if round_ >= WARM_UP:
                            times.setdefault((budget, kind), []).append(spent)
            for (budget, kind), spents in times.items():
                cpus, walls = zip(*spents, strict=True)
                cpu, wall = statistics.median(cpus), statistics.median(walls)
                print(
                    f"{name:5}  {threads:7}  {budget:6}  {kind:8}  {cpu:12.3f} ({min(cpus):.3f})  "
                    f"{wall:14.3f} ({min(walls):.3f})  {tokens / wall:9.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
