"""How fast vLLM samples in this process: the warm-started tiny model, arithmetic prompts, one JSON line.

    build/vllm-env/bin/python bench/vllm_sampler.py --prompts 64 --samples 8 --max-new-tokens 64 --threads 1

The first, short round pays for what vLLM sets up at its first step and is not counted. The log-probabilities are
compared with the learner's float32 forward pass over the same tokens.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from trainer.learn.fp32_head import hidden_states, logprobs
from trainer.model import Model, load_model, load_tokenizer
from trainer.rollout.length import Interruption
from trainer.rollout.vllm_engine import VllmEngine
from trainer.rollout.vllm_generator import VllmGenerator
from trainer.settings import TinyModel, WarmStart
from trainer.tasks.arithmetic import Arithmetic, ArithmeticSpec
from trainer.types import Group, GroupRequest, Prompt, Sampling
from trainer.warmstart import warm_started


def sample(generator: VllmGenerator, prompts: list[Prompt], n: int, sampling: Sampling) -> list[Group]:
    for index, prompt in enumerate(prompts):
        generator.submit(GroupRequest(index, prompt, n, sampling, seed=index))
    groups: list[Group] = []
    while len(groups) < len(prompts):
        groups += generator.poll()
    return groups


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="model directory; default: the warm-started tiny model")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spec = ArithmeticSpec()
    path = arguments.model or warm_started(TinyModel(), spec, WarmStart())
    tokenizer = load_tokenizer(path)
    prompts = list(Arithmetic(spec, tokenizer).prompts("train")[: arguments.prompts])
    length = max(len(prompt.tokens) for prompt in prompts) + arguments.max_new_tokens
    engine = VllmEngine(path, arguments.slots, length, tokenizer.eos_token_id)
    rule = Interruption((), tokenizer.convert_tokens_to_ids("</think>"), (1.0, 1.0))
    generator = VllmGenerator(engine, arguments.slots, rule)
    sample(generator, prompts, 1, Sampling(1.0, 8, 0))
    started = time.perf_counter()
    groups = sample(generator, prompts, arguments.samples, Sampling(1.0, arguments.max_new_tokens, 0))
    seconds = time.perf_counter() - started
    tokens = sum(len(completion.tokens) for group in groups for completion in group.completions)
    result = {
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "max_abs_logprob_diff_vs_learner": largest_difference(load_model(path), groups),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
