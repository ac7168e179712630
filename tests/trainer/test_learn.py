"""Advantages, loss and optimizer step against values computed by hand and in float64."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from trainer.learn.advantage import batch_normalised
from trainer.learn.learner import PlainLearner, schedule
from trainer.learn.loss import cispo, prompt_average_weights
from trainer.settings import OptimizerSpec
from trainer.types import Completion, Group, GroupRequest, Item, Prompt, Sampling, ScoredGroup, Span, Verdict, Version

TUNABLES = {"lr_scale": 1.0, "ratio_max": 5.0}


def scored(
    rewards: list[float], lengths: list[int], mask: Any = None, behaviour: float = -2.0, ordinal: int = 0
) -> ScoredGroup:
    prompt = Prompt(ordinal, "", (10, 11, 12), "")
    completions = tuple(
        Completion(
            tokens=tuple(13 + (ordinal + index + t) % 40 for t in range(n)),
            logprobs=(behaviour,) * n,
            loss_mask=tuple(mask(t) if mask else True for t in range(n)),
            spans=(Span(Version(0, 0), n),),
            finish="stop",
            interrupted=False,
            seconds=0.0,
        )
        for index, n in enumerate(lengths)
    )
    group = Group(GroupRequest(ordinal, prompt, len(lengths), Sampling(1.0, 64, 64)), completions)
    return ScoredGroup(Item(0, ordinal), group, tuple(Verdict(r, r > 0) for r in rewards))


def test_advantages_are_centred_per_prompt_and_scaled_over_the_batch() -> None:
    advantages, std = batch_normalised([[1.0, -1.0], [1.0, 1.0, 1.0, -1.0]])
    # centred: 1, -1 and 0.5, 0.5, 0.5, -1.5; mean square (1+1+.25*3+2.25)/6
    assert std == pytest.approx(math.sqrt(5 / 6))
    assert advantages[0].tolist() == pytest.approx([1 / std, -1 / std])
    assert advantages[1].tolist() == pytest.approx([0.5 / std] * 3 + [-1.5 / std])


def test_advantages_refuse_a_batch_without_signal() -> None:
    with pytest.raises(ValueError, match="unequal"):
        batch_normalised([[1.0, 1.0]])
    with pytest.raises(ValueError, match="unequal"):
        batch_normalised([])


def test_prompt_average_counts_every_prompt_equally_and_only_tokens_with_loss() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 0]]).bool()
    weights = prompt_average_weights(mask, torch.tensor([0, 0, 1]), 2)
    assert weights.tolist() == [[0.125] * 3, [0.125, 0, 0], [0, 0.5, 0]]
    assert float(weights.sum()) == 1.0


def test_cispo_by_hand() -> None:
    logp = torch.tensor([[math.log(0.5), math.log(0.9)]], requires_grad=True)
    behaviour = torch.tensor([[math.log(0.25), math.log(0.1)]])  # ratios 2 and 9
    loss, stats = cispo(logp, behaviour, torch.tensor([3.0]), torch.tensor([[0.5, 0.5]]), ratio_max=4.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(-0.5 * 3 * (2 * math.log(0.5) + 4 * math.log(0.9)))
    assert logp.grad is not None
    assert logp.grad.tolist()[0] == pytest.approx([-0.5 * 3 * 2, -0.5 * 3 * 4])  # nothing flows through the ratio
    assert (stats.tokens, stats.clipped) == (2, 1)
    assert stats.ratio_max == pytest.approx(9)
    assert stats.kl == pytest.approx((2 - 1 - math.log(2)) + (9 - 1 - math.log(9)), rel=1e-5)
    assert stats.effective_sample_ratio == pytest.approx(11**2 / (2 * (4 + 81)))


def test_masked_tokens_count_for_nothing_even_when_they_are_not_finite() -> None:
    logp = torch.tensor([[-1.0, -5.0]], requires_grad=True)
    behaviour = torch.tensor([[-1.0, math.nan]])
    loss, stats = cispo(logp, behaviour, torch.tensor([1.0]), torch.tensor([[1.0, 0.0]]), 5.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 1.0
    assert stats.tokens == 1
    assert logp.grad is not None
    assert logp.grad[0, 1] == 0


def reference_gradient(model: Any, groups: list[ScoredGroup], ratio_max: float) -> tuple[float, list[torch.Tensor]]:
    """ScaleRL's loss written down naively, one completion at a time, in float64."""
    model = model.double()
    centred = [[r - sum(g.rewards) / len(g.rewards) for r in g.rewards] for g in groups]
    flat = [a for group in centred for a in group]
    std = math.sqrt(sum(a * a for a in flat) / len(flat))
    total = torch.zeros((), dtype=torch.float64)
    for group, advantages in zip(groups, centred, strict=True):
        tokens = sum(sum(c.loss_mask) for c in group.group.completions)
        for completion, advantage in zip(group.group.completions, advantages, strict=True):
            prompt = group.group.request.prompt.tokens
            ids = torch.tensor([prompt + completion.tokens])
            logp = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
            for t, token in enumerate(completion.tokens):
                if completion.loss_mask[t]:
                    value = logp[len(prompt) + t - 1, token]
                    ratio = min(math.exp(value.item() - completion.logprobs[t]), ratio_max)
                    total = total - ratio * advantage / std * value / tokens / len(groups)
    gradient = torch.autograd.grad(total, list(model.parameters()))
    return total.item(), list(gradient)


def test_loss_and_gradient_equal_a_float64_reference_whatever_the_micro_batches(model: Any) -> None:
    groups = [
        scored([1.0, -1.0, -1.0], [3, 9, 5]),
        scored([1.0, 1.0, -1.0], [7, 2, 4], mask=lambda t: t != 1, behaviour=-6.0, ordinal=5),
    ]
    for budget in (10, 100_000):
        learner = PlainLearner(model.float(), OptimizerSpec(lr=1e-30, tokens_per_micro_batch=budget))
        seen: list[torch.Tensor] = []

        def look(*_: Any, seen: list[torch.Tensor] = seen) -> None:
            seen += [p.grad.clone() for p in model.parameters()]

        learner._optimizer.register_step_pre_hook(look)
        result = learner.step(1, [*groups, scored([1.0, 1.0], [4, 4], ordinal=9)], TUNABLES)
        loss, gradient = reference_gradient(model, groups, 5.0)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradient))
        scale = min(1.0, 1.0 / norm)
        assert result.loss == pytest.approx(loss, rel=1e-4)
        assert result.grad_norm == pytest.approx(norm, rel=1e-4)
        assert 0 < result.clipped_ratio < 1
        for mine, theirs in zip(seen, gradient, strict=True):
            torch.testing.assert_close(mine, (theirs * scale).float(), rtol=2e-3, atol=1e-6)


def test_forced_tokens_carry_no_loss(model: Any) -> None:
    def loss_with(behaviour: float) -> float:
        group = scored([1.0, -1.0], [6, 6], mask=lambda t: t < 4)
        spoiled = tuple(replace(c, logprobs=(*c.logprobs[:4], behaviour, behaviour)) for c in group.group.completions)
        changed = replace(group, group=replace(group.group, completions=spoiled))
        return PlainLearner(model, OptimizerSpec(lr=1e-12)).step(1, [changed], TUNABLES).loss

    assert loss_with(-2.0) == loss_with(-30.0)


def test_a_batch_without_signal_changes_nothing(model: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = PlainLearner(model, OptimizerSpec(lr=1.0)).step(1, [scored([1.0, 1.0], [3, 3])], TUNABLES)
    assert result.skipped == "no_signal"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("spoil", "quantity"), [("reward", "reward"), ("behaviour", "logprob"), ("weight", "loss")])
def test_a_non_finite_step_changes_nothing(model: Any, spoil: str, quantity: str) -> None:
    group = scored(
        [math.nan if spoil == "reward" else 1.0, -1.0], [3, 3], behaviour=math.nan if spoil == "behaviour" else -2.0
    )
    if spoil == "weight":
        with torch.no_grad():
            model.get_output_embeddings().weight[0, 0] = math.inf
    learner = PlainLearner(model, OptimizerSpec(lr=1.0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = learner.step(1, [group], TUNABLES)
    assert result.skipped == "nonfinite"
    assert quantity in result.nonfinite
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_learning_rate_is_schedule_times_scale_and_written_in_one_place(model: Any) -> None:
    learner = PlainLearner(model, OptimizerSpec(lr=2e-3, warmup_steps=4))
    group = scored([1.0, -1.0], [3, 3])
    for step, scale in ((1, 1.0), (2, 0.5), (4, 1.0), (9, 2.0)):
        result = learner.step(step, [group], {**TUNABLES, "lr_scale": scale})
        assert result.lr == schedule(2e-3, step, 4) * scale == 2e-3 * min(1, step / 4) * scale
        assert all(group["lr"] == result.lr for group in learner._optimizer.param_groups)
