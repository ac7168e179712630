"""Length penalty (ScaleRL, appendix A.10): the other way to keep completions short. Pure.

    R = factor * clip((longest - tokens) / cache - 1, -1, 0)

Nothing up to `longest - cache` tokens, then down in a straight line to `-factor` at `longest`. Right answers alone are
charged: a wrong one must not gain by being short.
"""

from dataclasses import replace

from trainer.settings import LengthPenalty
from trainer.types import Verdict


def length_penalty(tokens: int, factor: float, shape: LengthPenalty) -> float:
    """What a completion of `tokens` tokens is charged: between -factor and 0."""
    return factor * min(0.0, max(-1.0, (shape.longest - tokens) / shape.cache - 1))


def penalised(verdict: Verdict, tokens: int, factor: float, shape: LengthPenalty) -> Verdict:
    """The verdict with the penalty in its reward; whether it passed does not change."""
    if not verdict.passed:
        return verdict
    return replace(verdict, reward=verdict.reward + length_penalty(tokens, factor, shape))
