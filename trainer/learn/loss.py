"""The losses, as pure functions of tensors: for every token that carries loss, its term of the objective J.

    J = sum over tokens  weight * term         weights: trainer/learn/weights.py, they sum to one over the batch
    rho = pi_learner / pi_generator            per token, with the log-probability recorded when the token was sampled

    cispo       sg(min(rho, ratio_max)) * A * log pi                       ScaleRL, section 4; gradient through log pi alone
    grpo        min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A)   DAPO is this with unequal clips
    gspo        the same with s = exp(mean of log rho over the sequence)   GSPO (arXiv 2507.18071), equation 5
    reinforce   A * log pi                                                 no ratio

The derivations, sources and open points are in docs/losses.md. The learner knows none of this: it calls what `objective`
returns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.settings import Loss


@dataclass(frozen=True)
class Tokens:
    """All tokens that carry loss of some whole sequences; every tensor is [T]."""

    logp: Tensor
    """Log-probability under the learner; the gradient flows through it."""
    behaviour: Tensor
    """Log-probability under the generator when the token was sampled."""
    advantage: Tensor
    """Of the token's sequence."""
    sequence: Tensor
    """Index of the token's sequence in 0..sequences-1."""
    sequences: int


class Terms(NamedTuple):
    """One entry per token, [T] each."""

    value: Tensor
    """The term of J, to be maximised."""
    high: Tensor
    """Whether the upper bound changed the token's gradient."""
    low: Tensor
    """Whether the lower bound did."""


Objective = Callable[[Tokens], Terms]


def objective(loss: Loss, tunables: Mapping[str, float]) -> Objective:
    """The function of the recipe, with the bounds that are in force; a tunable goes before the setting."""
    match loss.kind:
        case "cispo":
            return partial(cispo, ratio_max=tunables.get("ratio_max", loss.ratio_max))
        case "reinforce":
            return reinforce
        case "grpo" | "gspo" as kind:
            low, high = tunables.get("clip_low", loss.clip_low), tunables.get("clip_high", loss.clip_high)
            return partial(grpo if kind == "grpo" else gspo, clip_low=low, clip_high=high)


def cispo(tokens: Tokens, ratio_max: float) -> Terms:
    """The ratio is cut by an absolute bound, never `1 + eps`; there is no lower bound."""
    ratio = (tokens.logp.detach() - tokens.behaviour).exp()
    high = ratio > ratio_max
    return Terms(ratio.clamp(max=ratio_max) * tokens.advantage * tokens.logp, high, torch.zeros_like(high))


def grpo(tokens: Tokens, clip_low: float, clip_high: float) -> Terms:
    """Clipped surrogate per token."""
    return _clipped((tokens.logp - tokens.behaviour).exp(), tokens.advantage, clip_low, clip_high)


def gspo(tokens: Tokens, clip_low: float, clip_high: float) -> Terms:
    """Clipped surrogate with the geometric mean of a sequence's ratios; each of its tokens has the sequence's term."""
    sums = tokens.logp.new_zeros(tokens.sequences).index_add(0, tokens.sequence, tokens.logp - tokens.behaviour)
    counts = torch.zeros_like(sums).index_add_(0, tokens.sequence, torch.ones_like(tokens.logp))
    ratio = (sums / counts.clamp(min=1)).exp()
    return _clipped(ratio[tokens.sequence], tokens.advantage, clip_low, clip_high)


def reinforce(tokens: Tokens) -> Terms:
    """Advantage times log-probability."""
    never = torch.zeros_like(tokens.logp, dtype=torch.bool)
    return Terms(tokens.advantage * tokens.logp, never, never)


def _clipped(ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> Terms:
    """The minimum takes the bound only where going further would still be rewarded: above for A > 0, below for A < 0."""
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    value = torch.minimum(ratio * advantage, bounded * advantage)
    return Terms(value, (ratio > 1 + clip_high) & (advantage > 0), (ratio < 1 - clip_low) & (advantage < 0))
