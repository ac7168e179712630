"""Advantages: centred per prompt, scaled by the standard deviation over the batch (ScaleRL, section 4)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def batch_normalised(rewards: Sequence[Sequence[float]]) -> tuple[list[Tensor], float]:
    """Advantages per group, and the standard deviation that they were divided by.

    `rewards` holds the surviving groups only (rewards not all equal), because a group without signal says nothing
    about the scale. A_i = r_i - mean of its group; A_i / std of all A_i. Since every A_i is centred, the population
    standard deviation is the root mean square.

    Raises:
        ValueError: no group, or no group with signal.
    """
    centred = [torch.tensor(group, dtype=torch.float64) - sum(group) / len(group) for group in rewards]
    std = float(torch.cat(centred).square().mean().sqrt()) if centred else 0.0
    if std == 0.0:
        raise ValueError("advantages need at least one group with unequal rewards")
    return [(group / std).float() for group in centred], std
