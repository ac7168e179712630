"""One token per row from one uniform number per row: the inverse of the cumulative distribution.

The cumulative sum is taken in float64 over unnormalised probabilities whose largest is 1. A number u < 1 with 53 bits,
times the total, stays below the total, so the last bin needs no special case, and the first bin *above* u * total is
never empty: a token of probability 0 is not drawn.
"""

import torch
from torch import Tensor


def choose(scores: Tensor, temperature: Tensor, uniform: Tensor, forced: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sample, and say how probable it was.

    Args:
        scores: [rows, vocabulary] float32 logits; overwritten.
        temperature: [rows].
        uniform: [rows] float64 in [0, 1).
        forced: [rows] tokens that are set rather than sampled, -1 where there is none; None for none at all.

    Returns:
        tokens [rows], and the log-probability of each after temperature [rows], NaN where the logits are not numbers.
    """
    scores = scores.div_(temperature.unsqueeze(1))
    scores -= scores.amax(dim=-1, keepdim=True)
    cumulative = torch.cumsum(scores.exp(), dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, uniform.unsqueeze(1) * total, right=True)
    tokens.clamp_(max=scores.shape[-1] - 1)  # only where the logits are not numbers
    if forced is not None:
        tokens = torch.where(forced.unsqueeze(1) >= 0, forced.unsqueeze(1), tokens)
    logprobs = scores.gather(1, tokens).double() - total.log()
    return tokens.squeeze(1), logprobs.float().squeeze(1)
