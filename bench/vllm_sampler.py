"""How fast vLLM samples in this process or in one of its own: the warm-started tiny model, arithmetic prompts, one JSON line.

    build/vllm-env/bin/python bench/vllm_sampler.py --prompts 64 --samples 8 --max-new-tokens 64 --threads 1 --process own

The first, short round pays for what vLLM sets up at its first step and is not counted; neither is the import of vllm in
the time to start. CPU seconds are of all processes. New weights come as a file in shared memory, as on a cluster, while
completions are under way: the time to have them in force, digest compared. The log-probabilities are compared with the
learner's float32 forward pass over the same tokens.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from trainer.learn.fp32_head import hidden_states, logprobs
from trainer.model import Model, load_model, load_tokenizer
from trainer.rollout.length import Interruption
from trainer.rollout.vllm_async import SHARED_MEMORY, AsyncEngine
from trainer.rollout.vllm_async_generator import AsyncVllmGenerator
from trainer.rollout.vllm_common import import_vllm
from trainer.rollout.vllm_engine import VllmEngine
from trainer.rollout.vllm_generator import VllmGenerator
from trainer.settings import TinyModel, WarmStart
from trainer.sync import files
from trainer.tasks.arithmetic import Arithmetic, ArithmeticSpec
from trainer.types import Group, GroupRequest, Prompt, Sampling, Version
from trainer.warmstart import warm_started


def sample(generator: VllmGenerator, prompts: list[Prompt], n: int, sampling: Sampling) -> list[Group]:
    for index, prompt in enumerate(prompts):
        generator.submit(GroupRequest(index, prompt, n, sampling, seed=index))
    groups: list[Group] = []
    while len(groups) < len(prompts):
        groups += generator.poll()
    return groups


def update_seconds(generator: VllmGenerator, prompts: list[Prompt], weights: Model, rounds: int) -> list[float]:
    """Seconds of each of `rounds` changes of weights, with completions under way."""
    taken = []
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as directory:
        path = Path(directory) / "weights"
        digest = files.write(path, weights, weights.items())
        for n in range(1, rounds + 1):
            for index, prompt in enumerate(prompts[:8]):
                generator.submit(GroupRequest(index, prompt, 8, Sampling(1.0, 256, 0), seed=index))
            for _ in range(5):
                generator.poll()
            started = time.perf_counter()
            if isinstance(generator, AsyncVllmGenerator):
                generator.load_file(path, digest, Version(0, n))
            else:
                generator.load(files.read(path, digest), Version(0, n))
            taken.append(time.perf_counter() - started)
            generator.abort()
    return taken


def cpu_seconds(processes: tuple[int, ...]) -> float:
    """CPU time of this process and of others, user and system."""
    ticks = 0
    for process in (os.getpid(), *processes):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def largest_difference(model: Model, groups: list[Group]) -> float:
    """Largest absolute difference between recorded log-probabilities and the learner's."""
    largest = 0.0
    for group in groups:
        prompt = group.request.prompt.tokens
        for completion in group.completions:
            with torch.no_grad():
                hidden = hidden_states(model, input_ids=torch.tensor([prompt + completion.tokens]), use_cache=False)
                every = logprobs(model, hidden[0, len(prompt) - 1 : -1], group.request.sampling.temperature)
            chosen = every.gather(1, torch.tensor(completion.tokens).unsqueeze(1)).squeeze(1)
            largest = max(largest, float((chosen - torch.tensor(completion.logprobs)).abs().max()))
    return largest


def made(
    arguments: argparse.Namespace, path: Path, length: int, end: int, rule: Interruption
) -> tuple[VllmGenerator, tuple[int, ...]]:
    """The generator, and the other processes that it has."""
    if arguments.process == "same":
        return VllmGenerator(VllmEngine(path, arguments.slots, length, end), arguments.slots, rule), ()
    engine = AsyncEngine(path, arguments.slots, length, end, threads=arguments.threads)
    return AsyncVllmGenerator(engine, arguments.slots, rule), engine.processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="model directory; default: the warm-started tiny model")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, default=128)
    parser.add_argument("--process", choices=["same", "own"], default="same")
    parser.add_argument("--updates", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spec = ArithmeticSpec()
    path = arguments.model or warm_started(TinyModel(), spec, WarmStart())
    tokenizer = load_tokenizer(path)
    prompts = list(Arithmetic(spec, tokenizer).prompts("train")[: arguments.prompts])
    length = max(len(prompt.tokens) for prompt in prompts) + arguments.max_new_tokens
    rule = Interruption((), tokenizer.convert_tokens_to_ids("</think>"), (1.0, 1.0))
    import_vllm("ERROR")
    started = time.perf_counter()
    generator, processes = made(arguments, path, length, tokenizer.eos_token_id, rule)
    start = time.perf_counter() - started
    sample(generator, prompts, 1, Sampling(1.0, 8, 0))
    started, before = time.perf_counter(), cpu_seconds(processes)
    groups = sample(generator, prompts, arguments.samples, Sampling(1.0, arguments.max_new_tokens, 0))
    seconds, cpu = time.perf_counter() - started, cpu_seconds(processes) - before
    learner = load_model(path)
    updates = update_seconds(generator, prompts, learner.state_dict(), arguments.updates)
    tokens = sum(len(completion.tokens) for group in groups for completion in group.completions)
    result = {
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "cpu_seconds": round(cpu, 2),
        "start_seconds": round(start, 2),
        "update_seconds": [round(statistics.median(updates), 4), round(min(updates), 4), round(max(updates), 4)],
        "max_abs_logprob_diff_vs_learner": largest_difference(learner, groups),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
