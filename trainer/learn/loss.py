"""CISPO with prompt average (ScaleRL, section 4). Pure functions of tensors.

    L = - 1/P sum over prompts 1/T_p sum over its tokens  sg(min(rho, ratio_max)) * A * log pi
    rho = pi_learner / pi_generator,   T_p = tokens of the prompt's completions that carry loss,   P = surviving prompts

The ratio is cut by an absolute bound, never `1 + eps`; there is no lower bound (a positive one can make sampler and
learner drift apart). The gradient flows through log pi alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossStats:
    """Sums over tokens that carry loss, so that micro-batches add up."""

    tokens: int
    ratio: float
    ratio_squared: float
    ratio_max: float
    clipped: int
    kl: float
    """k3 estimator of KL(generator || learner): rho - 1 - log rho, nats."""

    def __add__(self, other: "LossStats") -> "LossStats":
        return LossStats(
            self.tokens + other.tokens,
            self.ratio + other.ratio,
            self.ratio_squared + other.ratio_squared,
            max(self.ratio_max, other.ratio_max),
            self.clipped + other.clipped,
            self.kl + other.kl,
        )

    @property
    def effective_sample_ratio(self) -> float:
        """Effective sample size of the importance weights over their number: (sum rho)^2 / (n sum rho^2)."""
        return self.ratio**2 / (self.tokens * self.ratio_squared)


def prompt_average_weights(loss_mask: Tensor, prompt: Tensor, prompts: int) -> Tensor:
    """Weight of every token so that a plain sum is the prompt average.

    Args:
        loss_mask: [sequences, tokens], true where a token carries loss.
        prompt: [sequences], index of each sequence's prompt in 0..prompts-1.
        prompts: number of surviving prompts in the whole batch.

    Returns:
        [sequences, tokens] float32; sums to 1 over the batch.
    """
    counts = torch.zeros(prompts).index_add_(0, prompt, loss_mask.sum(dim=1).float())
    weights = 1.0 / (counts * prompts)
    return loss_mask * weights[prompt].unsqueeze(1)


def cispo(
    logprobs: Tensor, behaviour: Tensor, advantages: Tensor, weights: Tensor, ratio_max: float
) -> tuple[Tensor, LossStats]:
    """Loss (scalar) and statistics. All arguments [sequences, tokens] but `advantages` [sequences]; tokens of weight 0
    (padding, forced) count for nothing, whatever they hold."""
    mask = weights > 0
    log_ratio = torch.where(mask, logprobs.detach() - behaviour, 0.0)
    ratio = log_ratio.exp()
    capped = ratio.clamp(max=ratio_max)
    loss = -(weights * capped * advantages.unsqueeze(1) * torch.where(mask, logprobs, 0.0)).sum()
    chosen = ratio[mask]
    stats = LossStats(
        tokens=int(mask.sum()),
        ratio=float(chosen.sum()),
        ratio_squared=float(chosen.square().sum()),
        ratio_max=float(chosen.max()) if chosen.numel() else 0.0,
        clipped=int((chosen > ratio_max).sum()),
        kl=float((chosen - 1.0 - log_ratio[mask]).sum()),
    )
    return loss, stats
