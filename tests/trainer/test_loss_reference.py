"""Every loss, aggregation and normalisation against a plain float64 reference: value and gradient; and what must not matter."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer.learn_cases import completion, group_of, reference
from trainer.learn.batch import Batch, assemble
from trainer.learn.learner import PlainLearner
from trainer.learn.loss import objective
from trainer.model import make_tiny
from trainer.settings import Loss, OptimizerSpec, TinyModel
from trainer.tasks.tokenizer import character_tokenizer
from trainer.types import ScoredGroup

VOCABULARY = 12
KINDS: tuple[Any, ...] = ("cispo", "grpo", "gspo", "reinforce")
AGGREGATIONS: tuple[Any, ...] = ("prompt", "sample", "token")
ADVANTAGES: tuple[Any, ...] = ("batch", "prompt", "none")

sixteenths = st.integers(-40, -2).map(lambda n: n / 16)  # the same number in float32 and float64


@st.composite
def batches(draw: st.DrawFn) -> list[ScoredGroup]:
    groups = []
    for ordinal in range(draw(st.integers(1, 4))):
        made = []
        for _ in range(draw(st.integers(2, 4))):
            n = draw(st.integers(1, 6))
            made.append(
                completion(
                    draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=n, max_size=n)),
                    draw(st.lists(sixteenths, min_size=n, max_size=n)),
                    draw(st.lists(st.booleans(), min_size=n, max_size=n)),
                    draw(st.sampled_from(["stop", "length"])),
                )
            )
        rewards = draw(st.lists(st.sampled_from([1.0, -1.0, 0.25]), min_size=len(made), max_size=len(made)))
        groups.append(group_of(rewards, made, ordinal, (1,) * draw(st.integers(1, 5))))
    return groups


losses = st.builds(
    Loss,
    kind=st.sampled_from(KINDS),
    aggregation=st.sampled_from(AGGREGATIONS),
    advantage=st.sampled_from(ADVANTAGES),
    zero_variance_filter=st.booleans(),
    mask_truncated=st.booleans(),
    ratio_max=st.just(1.7),
    clip_low=st.just(0.23),
    clip_high=st.just(0.31),
)
tables = st.lists(sixteenths.map(lambda x: x + 0.003), min_size=VOCABULARY, max_size=VOCABULARY)


@lru_cache
def learner(budget: int) -> PlainLearner:
    model = make_tiny(TinyModel(hidden=8, layers=1, heads=1, kv_heads=1, head_dim=2, mlp=8), character_tokenizer(), 0)
    return PlainLearner(model, OptimizerSpec(tokens_per_micro_batch=budget))


def measured(
    groups: Sequence[ScoredGroup], loss: Loss, table: Sequence[float], budget: int = 10_000
) -> list[float] | None:
    """Loss, shares of clipped tokens (high, low) and gradient of the real learner, with a table in place of a model."""
    assembled = assemble(groups, loss)
    if assembled is None:
        return None
    theta = torch.tensor(table, dtype=torch.float64, requires_grad=True)

    def look_up(batch: Batch) -> tuple[Tensor, Tensor]:
        logp = theta[batch.tokens[batch.carries]]
        return logp, torch.zeros_like(logp)

    mine = learner(budget)
    mine._forward = look_up  # type: ignore[assignment]
    done = mine._accumulate(assembled[0], objective(loss, {}))
    assert theta.grad is not None
    return [float(done.loss), float(done.high.double().mean()), float(done.low.double().mean()), *theta.grad.tolist()]


def away_from_kinks(groups: Sequence[ScoredGroup], loss: Loss, table: Sequence[float]) -> bool:
    """No ratio so near to a bound that a finite difference would straddle it."""
    for group in groups:
        for c in group.group.completions:
            logs = [table[token] - b for token, b in zip(c.tokens, c.logprobs, strict=True)]
            kept = [x for x, m in zip(logs, c.loss_mask, strict=True) if m]
            seen = [math.exp(sum(kept) / len(kept))] if loss.kind == "gspo" and kept else [math.exp(x) for x in logs]
            if any(abs(r - bound) < 1e-4 for r in seen for bound in (1 - loss.clip_low, 1 + loss.clip_high)):
                return False
    return True


def assert_same_as_reference(groups: Sequence[ScoredGroup], loss: Loss, table: Sequence[float]) -> None:
    result = measured(groups, loss, table)
    assert result is not None
    value, gradient = result[0], result[3:]
    assert value == pytest.approx(reference(groups, loss, table.__getitem__, table.__getitem__), rel=1e-5, abs=1e-6)
    for token in range(VOCABULARY):
        h = 1e-5
        up, down = list(table), list(table)
        up[token] += h
        down[token] -= h
        slope = reference(groups, loss, up.__getitem__, table.__getitem__)
        slope -= reference(groups, loss, down.__getitem__, table.__getitem__)
        assert gradient[token] == pytest.approx(slope / (2 * h), rel=1e-4, abs=1e-6)


FIXED = [
    group_of([1.0, -1.0, -1.0], [completion([2, 3, 4], [-1.0, -2.0, -0.5]), completion([5], [-1.5]),
                                 completion([2, 6, 7, 8], [-0.25, -1.0, -3.0, -1.0], [True, False, True, True])]),
    group_of([1.0, 1.0], [completion([9, 2], [-1.0, -1.0]), completion([3], [-1.0])], 1),
    group_of([1.0, 0.25], [completion([4, 4, 10], [-2.0, -0.5, -1.0], finish="length"), completion([11], [-1.0])], 2),
]  # fmt: skip
TABLE = [-0.9 - 0.13 * token for token in range(VOCABULARY)]


@pytest.mark.parametrize(("kind", "aggregation", "advantage"), list(product(KINDS, AGGREGATIONS, ADVANTAGES)))
def test_value_and_gradient_equal_the_reference(kind: Any, aggregation: Any, advantage: Any) -> None:
    for keep, cut in product((True, False), (True, False)):
        loss = Loss(
            kind=kind, aggregation=aggregation, advantage=advantage, zero_variance_filter=keep, mask_truncated=cut,
            ratio_max=1.7, clip_low=0.23, clip_high=0.31,
        )  # fmt: skip
        assert_same_as_reference(FIXED, loss, TABLE)


@settings(max_examples=60, deadline=None)
@given(batches(), losses, tables)
def test_value_and_gradient_equal_the_reference_for_any_batch(
    groups: list[ScoredGroup], loss: Loss, table: list[float]
) -> None:
    assume(assemble(groups, loss) is not None)
    assume(away_from_kinks(groups, loss, table))
    assert_same_as_reference(groups, loss, table)


@settings(max_examples=60, deadline=None)
@given(batches(), losses, tables, st.integers(1, 40), st.randoms(use_true_random=False))
def test_micro_batches_and_order_do_not_matter(
    groups: list[ScoredGroup], loss: Loss, table: list[float], budget: int, rng: Any
) -> None:
    whole = measured(groups, loss, table)
    assume(whole is not None)
    assert measured(groups, loss, table, budget) == pytest.approx(whole, rel=1e-5, abs=1e-6)
    mixed = []
    for group in rng.sample(groups, len(groups)):
        order = rng.sample(range(len(group.verdicts)), len(group.verdicts))
        made = tuple(group.group.completions[i] for i in order)
        verdicts = tuple(group.verdicts[i] for i in order)
        mixed.append(replace(group, group=replace(group.group, completions=made), verdicts=verdicts))
    assert measured(mixed, loss, table) == pytest.approx(whole, rel=1e-5, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(batches(), losses, tables, st.sampled_from([math.nan, math.inf, -math.inf, -1e30, 0.0]))
def test_masked_tokens_change_nothing_whatever_they_hold(
    groups: list[ScoredGroup], loss: Loss, table: list[float], junk: float
) -> None:
    spoiled = [
        replace(
            group,
            group=replace(
                group.group,
                completions=tuple(
                    replace(c, logprobs=tuple(b if m else junk for b, m in zip(c.logprobs, c.loss_mask, strict=True)))
                    for c in group.group.completions
                ),
            ),
        )
        for group in groups
    ]
    assert measured(spoiled, loss, table) == measured(groups, loss, table)


@settings(max_examples=40, deadline=None)
@given(batches(), losses)
def test_weights_sum_to_one_when_every_counted_group_is_computed(groups: list[ScoredGroup], loss: Loss) -> None:
    assembled = assemble(groups, loss.model_copy(update={"zero_variance_filter": True}))
    assume(assembled is not None)
    assert assembled is not None
    batch, _ = assembled
    assert float((batch.carries.sum(dim=1) * batch.weight).sum()) == pytest.approx(1.0, rel=1e-5)
