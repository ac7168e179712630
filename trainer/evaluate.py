"""Held-out evaluation: mean@k and pass@k on fixed sets of prompts, with the same random numbers each time.

Settings are the recipe's, not the tunables in force, so that evaluations of one run compare. Standard errors are over
prompts: the k completions of a prompt are not independent evidence about the set.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import comb, sqrt

from trainer.model import Tokenizer
from trainer.rollout.generator import Generator
from trainer.rollout.seeds import request_seed
from trainer.tasks import Task
from trainer.types import Completion, GroupRequest, Prompt, Sampling, Verdict

SEED = 20_25


@dataclass(frozen=True)
class EvalResult:
    """Means over prompts, except for length and truncation (over completions)."""

    dataset: str
    prompts: int
    k: int
    pass_ratio: float
    """mean@k: share of passing completions."""
    pass_ratio_stderr: float
    pass_at: Mapping[int, float]
    """pass@j for j = 1, 2, 4, ... and k: probability that one of j completions passes, unbiased (Chen et al. 2021)."""
    pass_at_stderr: Mapping[int, float]
    mean_length: float
    truncated_ratio: float

    @property
    def pass_at_k(self) -> float:
        return self.pass_at[self.k]


def judge(task: Task, tokenizer: Tokenizer, prompt: Prompt, completion: Completion) -> Verdict:
    """Decode and verify one completion; the end token is not part of the text."""
    finished = completion.finish == "stop"
    tokens = completion.tokens[:-1] if finished else completion.tokens
    return task.verify(prompt, tokenizer.decode(tokens), finished)


def evaluate(
    generator: Generator,
    task: Task,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    k: int,
    sampling: Sampling,
    dataset: str = "held_out",
) -> EvalResult:
    """Sample `k` completions for each prompt with the weights that the generator holds now.

    The generator must be idle; what it is given here it finishes. Verdicts of a slow task are made beside generation.
    """
    for index, prompt in enumerate(prompts):
        generator.submit(GroupRequest(index, prompt, k, sampling, request_seed(SEED, prompt.ordinal)))
    passed, lengths, truncated = [0] * len(prompts), 0, 0
    left = len(prompts)
    with ThreadPoolExecutor(max(1, task.workers)) as pool:
        verdicts: list[tuple[int, Future[Verdict]]] = []
        while left:
            for group in generator.poll():
                left -= 1
                lengths += sum(len(completion.tokens) for completion in group.completions)
                truncated += sum(completion.finish == "length" for completion in group.completions)
                for completion in group.completions:
                    request = group.request
                    if task.workers:
                        verdicts.append((request.id, pool.submit(judge, task, tokenizer, request.prompt, completion)))
                    else:
                        passed[request.id] += judge(task, tokenizer, request.prompt, completion).passed
        for index, verdict in verdicts:
            passed[index] += verdict.result().passed
    total = len(prompts) * k
    mean, error = _mean([count / k for count in passed])
    ladder = {j: _mean([pass_at(j, count, k) for count in passed]) for j in _ladder(k)}
    return EvalResult(
        dataset=dataset,
        prompts=len(prompts),
        k=k,
        pass_ratio=mean,
        pass_ratio_stderr=error,
        pass_at={j: value for j, (value, _) in ladder.items()},
        pass_at_stderr={j: spread for j, (_, spread) in ladder.items()},
        mean_length=lengths / total,
        truncated_ratio=truncated / total,
    )


def pass_at(j: int, passed: int, k: int) -> float:
    """Unbiased estimate, from `passed` of `k` completions, that at least one of `j` would pass: 1 - C(k-c, j) / C(k, j)."""
    return 1.0 - comb(k - passed, j) / comb(k, j)


def _ladder(k: int) -> list[int]:
    return sorted({2**power for power in range(k.bit_length()) if 2**power <= k} | {k})


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; NaN for a single value."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, float("nan")
    return mean, sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
