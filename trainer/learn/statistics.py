"""What the importance ratios of a batch look like; measured at every step, whatever the loss."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RatioStats:
    """Of rho = pi_learner / pi_generator over all tokens that carry loss."""

    mean: float
    maximum: float
    kl: float
    """k3 estimate of KL(generator || learner): mean of rho - 1 - log rho, nats per token."""
    effective_sample_ratio: float
    """(sum rho)^2 / (n sum rho^2): 1 when all ratios are equal, 1/n when one outweighs the rest."""


def ratio_stats(logp: Tensor, behaviour: Tensor) -> RatioStats:
    """Statistics of [T] log-probabilities of learner and generator; one transfer from the device."""
    log_ratio = logp.double() - behaviour.double()  # one column of numbers: squares of large ratios need the range
    ratio = log_ratio.exp()
    mean = ratio.mean()
    kl = (ratio - 1 - log_ratio).mean()
    return RatioStats(*torch.stack([mean, ratio.max(), kl, mean.square() / ratio.square().mean()]).tolist())
