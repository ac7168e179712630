"""Advantages: rewards centred per prompt, then divided by a standard deviation or by nothing. Pure."""

from collections.abc import Sequence
from math import fsum, sqrt
from typing import Literal

EPS = 1e-8
"""Added to the standard deviation of a prompt; the ScaleRL paper gives no value, GRPO code commonly takes this one."""


def advantages(
    rewards: Sequence[Sequence[float]], normalisation: Literal["batch", "prompt", "none"]
) -> tuple[list[list[float]], float]:
    """Advantages per group, and the standard deviation of all centred rewards.

        A_i = r_i - mean of its group       batch: A_i / std of all A_i       prompt: A_i / (std of its group + EPS)

    Standard deviations are those of a population. A group of equal rewards has advantages of exactly zero. Every A_i is
    centred, so the standard deviation over the batch is the root mean square.

    Raises:
        ValueError: no group, or no group with unequal rewards.
    """
    centred = [_centred(group) for group in rewards]
    std = _rms([advantage for group in centred for advantage in group])
    if not std:  # not finite passes: the learner votes on it
        raise ValueError("advantages need at least one group with unequal rewards")
    match normalisation:
        case "batch":
            return [[a / std for a in group] for group in centred], std
        case "prompt":
            return [[a / (_rms(group) + EPS) for a in group] for group in centred], std
        case "none":
            return centred, std


def _centred(group: Sequence[float]) -> list[float]:
    if len(set(group)) == 1:  # rounding of the mean must not make a signal
        return [0.0] * len(group)
    mean = fsum(group) / len(group)
    return [reward - mean for reward in group]


def _rms(values: Sequence[float]) -> float:
    return sqrt(fsum(value * value for value in values) / len(values)) if values else 0.0
