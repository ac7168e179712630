"""How terms of tokens become one number: a weight per token, constant within a sequence, summing to one over the batch.

    prompt   mean over the tokens of a prompt, then over prompts   1 / (P T_p)      ScaleRL, DAPO
    sample   mean over the tokens of a completion, then over them  1 / (N |y_i|)    GRPO
    token    mean over all tokens                                  1 / T

Only tokens that carry loss count. A completion or prompt without any counts in no denominator.
"""

from collections.abc import Sequence
from typing import Literal


def token_weights(
    counts: Sequence[int], prompts: Sequence[int], aggregation: Literal["prompt", "sample", "token"]
) -> list[float]:
    """Weight of each token of every sequence.

    Args:
        counts: tokens with loss of each sequence of the effective batch.
        prompts: the prompt each sequence belongs to.

    Returns:
        One weight per sequence, 0 where there is nothing to weigh; sum(count * weight) is 1 if any count is positive.
    """
    match aggregation:
        case "prompt":
            totals: dict[int, int] = {}
            for prompt, count in zip(prompts, counts, strict=True):
                totals[prompt] = totals.get(prompt, 0) + count
            present = sum(total > 0 for total in totals.values())
            return [1 / (present * totals[p]) if n else 0.0 for p, n in zip(prompts, counts, strict=True)]
        case "sample":
            present = sum(count > 0 for count in counts)
            return [1 / (present * n) if n else 0.0 for n in counts]
        case "token":
            total = sum(counts)
            return [1 / total if n else 0.0 for n in counts]
