"""Scored groups for the tests of the learner, and the losses written down a second time, plainly and in float64."""

import math
from collections.abc import Callable, Sequence

from trainer.settings import Loss
from trainer.types import (
    Completion,
    Finish,
    Group,
    GroupRequest,
    Item,
    Prompt,
    Sampling,
    ScoredGroup,
    Span,
    Verdict,
    Version,
)

TUNABLES = {"lr_scale": 1.0}


def completion(
    tokens: Sequence[int], behaviour: Sequence[float], mask: Sequence[bool] | None = None, finish: Finish = "stop"
) -> Completion:
    return Completion(
        tokens=tuple(tokens),
        logprobs=tuple(behaviour),
        loss_mask=tuple(mask) if mask is not None else (True,) * len(tokens),
        spans=(Span(Version(0, 0), len(tokens)),),
        finish=finish,
        interrupted=False,
        seconds=0.0,
    )


def group_of(
    rewards: Sequence[float],
    completions: Sequence[Completion],
    ordinal: int = 0,
    prompt: tuple[int, ...] = (10, 11, 12),
) -> ScoredGroup:
    request = GroupRequest(ordinal, Prompt(ordinal, "", prompt), len(completions), Sampling(1.0, 64, 64))
    return ScoredGroup(Item(0, ordinal), Group(request, tuple(completions)), tuple(Verdict(r, r > 0) for r in rewards))


def scored(
    rewards: Sequence[float],
    lengths: Sequence[int],
    mask: Callable[[int], bool] = lambda t: True,
    behaviour: float = -2.0,
    ordinal: int = 0,
) -> ScoredGroup:
    """A group with made-up tokens."""
    made = [
        completion([13 + (ordinal + index + t) % 40 for t in range(n)], [behaviour] * n, [mask(t) for t in range(n)])
        for index, n in enumerate(lengths)
    ]
    return group_of(rewards, made, ordinal)


def reference(
    groups: Sequence[ScoredGroup], loss: Loss, logp: Callable[[int], float], held: Callable[[int], float]
) -> float:
    """-J of a batch, one completion and one token at a time.

    `logp(token)` stands for the learner; `held(token)` is the same where the formula has a stop-gradient, so that finite
    differences in `logp` alone give the gradient of the surrogate.
    """
    counted = [g for g in groups if len(set(g.rewards)) > 1 or not loss.zero_variance_filter]
    centred = [[r - sum(g.rewards) / len(g.rewards) for r in g.rewards] for g in counted]
    everything = [a for group in centred for a in group]
    batch_std = math.sqrt(sum(a * a for a in everything) / len(everything))
    kept = [
        [
            [t for t in range(len(c.tokens)) if c.loss_mask[t] and not (loss.mask_truncated and c.finish == "length")]
            for c in g.group.completions
        ]
        for g in counted
    ]
    prompts = sum(any(ts for ts in group) for group in kept)
    samples = sum(bool(ts) for group in kept for ts in group)
    total = sum(len(ts) for group in kept for ts in group)
    objective = 0.0
    for g, advantages, positions in zip(counted, centred, kept, strict=True):
        of_prompt = sum(map(len, positions))
        prompt_std = math.sqrt(sum(a * a for a in advantages) / len(advantages))
        for c, centred_reward, ts in zip(g.group.completions, advantages, positions, strict=True):
            if not ts:
                continue
            divisor = {"batch": batch_std, "prompt": prompt_std + 1e-8, "none": 1.0}[loss.advantage]
            advantage = centred_reward / divisor
            mean_log_ratio = sum(logp(c.tokens[t]) - c.logprobs[t] for t in ts) / len(ts)
            for t in ts:
                token = c.tokens[t]
                ratio = math.exp(logp(token) - c.logprobs[t])
                if loss.kind == "cispo":
                    term = min(math.exp(held(token) - c.logprobs[t]), loss.ratio_max) * advantage * logp(token)
                elif loss.kind == "reinforce":
                    term = advantage * logp(token)
                else:
                    ratio = math.exp(mean_log_ratio) if loss.kind == "gspo" else ratio
                    bounded = max(1 - loss.clip_low, min(1 + loss.clip_high, ratio))
                    term = min(ratio * advantage, bounded * advantage)
                share = {
                    "prompt": 1 / prompts / of_prompt,
                    "sample": 1 / samples / len(ts),
                    "token": 1 / total,
                }[loss.aggregation]
                objective += share * term
    return -objective
