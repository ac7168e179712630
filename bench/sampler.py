"""How fast three samplers make completions of the same prompts: ours, Hugging Face `generate`, and vLLM.

    python bench/sampler.py [--size 0.5M 5.4M] [--prompts 64] [--rounds 5] [--threads 1] [--out build/bench]

Each round runs every sampler once, one after the other, so that a busy machine disturbs all alike; the table has medians
and the smallest and largest round. Only useful tokens count, those up to the end token. CPU seconds are the fairer
column on a shared machine. Log-probabilities are compared with the learner's forward pass over the same tokens.

`generate` gets batches of 128 completions, sorted by nothing, as trainers call it; its continuous batching is tried
too. vLLM has an environment and a process of its own (tools/setup-vllm.sh, bench/vllm_sampler.py).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from trainer.learn.fp32_head import hidden_states, logprobs
from trainer.model import Model, Tokenizer, load_model, load_tokenizer
from trainer.recipe import find_recipe, load_recipe
from trainer.rollout.length import Interruption
from trainer.rollout.seeds import request_seed
from trainer.rollout.torch_generator import TorchGenerator
from trainer.settings import TinyModel
from trainer.tasks.arithmetic import Arithmetic, ArithmeticSpec
from trainer.types import GroupRequest, Prompt, Sampling
from trainer.warmstart import warm_started

ROOT = Path(__file__).resolve().parents[1]
VLLM_PYTHON = ROOT / "build" / "vllm-env" / "bin" / "python"
SIZES: dict[str, dict[str, str]] = {
    "0.5M": {},
    "5.4M": {
        "model.hidden": "320",
        "model.layers": "5",
        "model.heads": "10",
        "model.kv_heads": "5",
        "model.head_dim": "32",
        "model.mlp": "800",
    },
}
"""Changes to the tiny recipe; the warm start is the one that its runs begin with."""
BATCH = 128

Sampled = list[tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]]
"""Prompt, completion and, where the sampler tells, its log-probabilities."""
Sampler = Callable[[Sequence[Prompt], int], Sampled]


@dataclass(frozen=True)
class Round:
    """One sampler, once over all prompts."""

    tokens: int
    wall_seconds: float
    cpu_seconds: float
    largest_difference: float | None
    """Largest absolute difference between a recorded log-probability and the learner's."""


def ours(model: Model, tokenizer: Tokenizer, samples: int, limit: int) -> Sampler:
    closing = tokenizer.convert_tokens_to_ids("</think>")
    generator = TorchGenerator(model, BATCH, Interruption((closing,), closing, (1.0, 1.0)), tokenizer.eos_token_id)

    def run(prompts: Sequence[Prompt], seed: int) -> Sampled:
        for index, prompt in enumerate(prompts):
            request = GroupRequest(index, prompt, samples, Sampling(1.0, limit, 0), request_seed(seed, index))
            generator.submit(request)
        sampled, left = [], len(prompts)
        while left:
            for group in generator.poll():
                left -= 1
                sampled += [(group.request.prompt.tokens, each.tokens, each.logprobs) for each in group.completions]
        return sampled

    return run


def hugging_face(model: Model, tokenizer: Tokenizer, samples: int, limit: int, cache: str) -> Sampler:
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=limit, cache_implementation=cache,
        eos_token_id=end, pad_token_id=pad, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip

    def run(prompts: Sequence[Prompt], seed: int) -> Sampled:
        torch.manual_seed(seed)
        rows = [prompt.tokens for prompt in prompts for _ in range(samples)]
        sampled: Sampled = []
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            width = max(map(len, batch))
            ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in batch])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
            with torch.no_grad():
                out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            scores = torch.stack(out.logits, dim=1).log_softmax(dim=-1)
            chosen = scores.gather(2, out.sequences[:, width:].unsqueeze(2)).squeeze(2)
            for prompt, tokens, logps in zip(batch, out.sequences[:, width:].tolist(), chosen.tolist(), strict=True):
                n = tokens.index(end) + 1 if end in tokens else len(tokens)
                sampled.append((prompt, tuple(tokens[:n]), tuple(logps[:n])))
        return sampled

    return run


def continuous(model: Model, tokenizer: Tokenizer, samples: int, limit: int) -> Sampler:
    """transformers' own continuous batching; it does not tell log-probabilities unless asked for them."""
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=limit,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip

    def run(prompts: Sequence[Prompt], seed: int) -> Sampled:
        torch.manual_seed(seed)
        rows = [prompt.tokens for prompt in prompts for _ in range(samples)]
        outputs = model.generate_batch(inputs=[list(row) for row in rows], generation_config=config)
        if len(outputs) != len(rows):
            raise RuntimeError(f"{len(outputs)} of {len(rows)} completions came back")
        return [(tuple(each.prompt_ids), tuple(each.generated_tokens), ()) for each in outputs.values()]

    return run


def measured(sampler: Sampler, prompts: Sequence[Prompt], seed: int, learner: Model) -> Round:
    wall, cpu = time.perf_counter(), time.process_time()
    sampled = sampler(prompts, seed)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    known = [each for each in sampled if each[2]]
    return Round(
        tokens=sum(len(tokens) for _, tokens, _ in sampled),
        wall_seconds=wall,
        cpu_seconds=cpu,
        largest_difference=max(difference(learner, *each) for each in known[:256]) if known else None,
    )


def difference(learner: Model, prompt: tuple[int, ...], tokens: tuple[int, ...], recorded: tuple[float, ...]) -> float:
    with torch.no_grad():
        hidden = hidden_states(learner, input_ids=torch.tensor([prompt + tokens]), use_cache=False)
        every = logprobs(learner, hidden[0, len(prompt) - 1 : -1], 1.0)
    chosen = every.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)
    return float((chosen - torch.tensor(recorded)).abs().max())


def vllm(path: Path, arguments: argparse.Namespace) -> Round:
    command = [str(VLLM_PYTHON), str(ROOT / "bench" / "vllm_sampler.py"), "--model", str(path)]
    for key in ("prompts", "samples", "max_new_tokens", "threads"):
        command += [f"--{key.replace('_', '-')}", str(getattr(arguments, key))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it failed without a word")
    said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return Round(
        said["tokens"], said["seconds"], said.get("cpu_seconds", float("nan")), said["max_abs_logprob_diff_vs_learner"]
    )


def compare(size: str, arguments: argparse.Namespace) -> dict[str, list[Round]]:
    """All samplers on one model, `arguments.rounds` times; the first, short pass of each is not counted."""
    recipe = load_recipe(find_recipe("tiny"), SIZES.get(size))
    assert isinstance(recipe.model, TinyModel)
    assert isinstance(recipe.task, ArithmeticSpec)
    path = warm_started(recipe.model, recipe.task, recipe.warm_start) if size in SIZES else Path(size)
    tokenizer, learner = load_tokenizer(path), load_model(path).eval()
    prompts = Arithmetic(recipe.task, tokenizer).prompts("train")[: arguments.prompts]
    shape = (tokenizer, arguments.samples, arguments.max_new_tokens)
    samplers: dict[str, Callable[[int], Round]] = {}

    def add(name: str, sampler: Sampler) -> None:
        try:
            sampler(prompts[:16], 0)
        except Exception as error:  # a competitor that does not run here is told, not hidden
            print(f"!! {size}: {name} does not run here: {type(error).__name__}: {error}", file=sys.stderr)
            return
        samplers[name] = lambda seed: measured(sampler, prompts, seed, learner)

    add("ours", ours(load_model(path), *shape))
    add("generate, dynamic cache", hugging_face(load_model(path).eval(), *shape, "dynamic"))
    add("generate, static cache", hugging_face(load_model(path).eval(), *shape, "static"))
    if arguments.continuous:
        add("generate_batch (continuous)", continuous(load_model(path).eval(), *shape))
    if VLLM_PYTHON.exists() and not arguments.no_vllm:
        samplers["vLLM, CPU"] = lambda seed: vllm(path, arguments)
    else:
        print(f"!! NO vLLM in this comparison ({VLLM_PYTHON} missing, or --no-vllm)", file=sys.stderr)
    rounds: dict[str, list[Round]] = {name: [] for name in samplers}
    for seed in range(1, arguments.rounds + 1):
        for name, once in samplers.items():
            try:
                rounds[name].append(once(seed))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"!! {size}: {name}, round {seed}: {error}", file=sys.stderr)
    return {name: each for name, each in rounds.items() if each}


def table(size: str, rounds: dict[str, list[Round]]) -> str:
    def spread(values: list[float], digits: int = 0) -> str:
        return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    lines = []
    for name, each in rounds.items():
        known = [r.largest_difference for r in each if r.largest_difference is not None]
        lines.append(
            f"| {Path(size).name} | {name} | {spread([r.tokens / r.cpu_seconds for r in each])} "
            f"| {spread([r.tokens / r.wall_seconds for r in each])} "
            f"| {statistics.mean(r.tokens for r in each):.0f} | {f'{max(known):.1e}' if known else 'not told'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=list(SIZES), help="0.5M, 5.4M or model directories")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8, help="completions per prompt")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--continuous", action="store_true", help="also transformers' continuous batching (very slow)")
    parser.add_argument("--no-vllm", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| model | sampler | tokens per CPU second | tokens per second | tokens | largest log-prob difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    results = {}
    for size in arguments.size:
        results[size] = compare(size, arguments)
        print(table(size, results[size]), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({size: {k: [asdict(r) for r in v] for k, v in each.items()} for size, each in results.items()})
    (arguments.out / "sampler.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
