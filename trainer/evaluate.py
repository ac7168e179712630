"""Held-out evaluation: mean@k on a fixed set of prompts, with the same random numbers each time.

Settings are the recipe's, not the tunables in force, so that evaluations of one run compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.model import Tokenizer
from trainer.rollout.torch_generator import TorchGenerator
from trainer.tasks import Task
from trainer.types import Completion, GroupRequest, Prompt, Sampling, Verdict

SEED = 20_25


@dataclass(frozen=True)
class EvalResult:
    """Means over prompts, except for length and truncation (over completions)."""

    prompts: int
    k: int
    pass_ratio: float
    pass_at_k: float
    mean_length: float
    truncated_ratio: float


def judge(task: Task, tokenizer: Tokenizer, prompt: Prompt, completion: Completion) -> Verdict:
    """Decode and verify one completion; the end token is not part of the text."""
    finished = completion.finish == "stop"
    tokens = completion.tokens[:-1] if finished else completion.tokens
    return task.verify(prompt, tokenizer.decode(tokens), finished)


def evaluate(
    generator: TorchGenerator, task: Task, tokenizer: Tokenizer, prompts: Sequence[Prompt], k: int, sampling: Sampling
) -> EvalResult:
    """Sample `k` completions for each prompt with the weights that the generator's model holds now."""
    generator.rng.manual_seed(SEED)
    for index, prompt in enumerate(prompts):
        generator.submit(GroupRequest(index, prompt, k, sampling))
    passed, lengths, truncated = [0] * len(prompts), 0, 0
    left = len(prompts)
    while left:
        for group in generator.poll():
            left -= 1
            for completion in group.completions:
                passed[group.request.id] += judge(task, tokenizer, group.request.prompt, completion).passed
                lengths += len(completion.tokens)
                truncated += completion.finish == "length"
    total = len(prompts) * k
    return EvalResult(
        prompts=len(prompts),
        k=k,
        pass_ratio=sum(passed) / total,
        pass_at_k=sum(count > 0 for count in passed) / len(prompts),
        mean_length=lengths / total,
        truncated_ratio=truncated / total,
    )
