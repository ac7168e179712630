"""What the importance ratios of a batch look like; measured at every step, whatever the loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.learn.peers import Alone, Peers


@dataclass(frozen=True)
class RatioStats:
    """Of rho = pi_learner / pi_generator over all tokens that carry loss."""

    mean: float
    maximum: float
    kl: float
    """k3 estimate of KL(generator || learner): mean of rho - 1 - log rho, nats per token."""
    effective_sample_ratio: float
    """(sum rho)^2 / (n sum rho^2): 1 when all ratios are equal, 1/n when one outweighs the rest."""


def ratio_stats(logp: Tensor, behaviour: Tensor, peers: Peers | None = None) -> RatioStats:
    """Statistics of [T] log-probabilities of learner and generator, over the tokens of all ranks; T may be 0 on some.

    One transfer from the device.
    """
    peers = peers or Alone()
    log_ratio = logp.double() - behaviour.double()  # one column of numbers: squares of large ratios need the range
    ratio = log_ratio.exp()
    count = torch.full_like(ratio.sum(), len(ratio))
    sums = peers.total(torch.stack([count, ratio.sum(), (ratio - 1 - log_ratio).sum(), ratio.square().sum()]))
    largest = peers.largest(torch.cat([ratio, ratio.new_zeros(1)]).max())
    mean, kl, square = sums[1:] / sums[0]
    return RatioStats(*torch.stack([mean, largest, kl, mean.square() / square]).tolist())
