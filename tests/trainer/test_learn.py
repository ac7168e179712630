"""The optimizer step on a real model: against float64, what must not change it, and what it refuses to do."""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from tests.trainer.learn_cases import TUNABLES, reference, scored
from trainer.learn import fp32_head
from trainer.learn.batch import assemble
from trainer.learn.learner import PlainLearner, schedule
from trainer.learn.noise_scale import FEWEST
from trainer.learn.peers import Alone
from trainer.model import make_tiny
from trainer.settings import Loss, OptimizerSpec, Precision, TinyModel
from trainer.types import ScoredGroup

GROUPS = [
    scored([1.0, -1.0, -1.0], [3, 9, 5]),
    scored([1.0, 1.0, -1.0], [7, 2, 4], mask=lambda t: t != 1, behaviour=-6.0, ordinal=5),
]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def gradients(learner: PlainLearner, groups: list[ScoredGroup]) -> tuple[Any, list[torch.Tensor]]:
    """Result of a step and the clipped gradients that the optimizer saw."""
    seen: list[torch.Tensor] = []
    hook = learner._optimizer.register_step_pre_hook(
        lambda *_: seen.extend(p.grad.clone() for p in learner.model.parameters())
    )
    result = learner.step(1, groups, TUNABLES)
    hook.remove()
    return result, seen


def reference_gradient(model: Any, groups: list[ScoredGroup], ratio_max: float) -> tuple[float, list[torch.Tensor]]:
    """ScaleRL's loss written down naively, one completion at a time, with the Hugging Face model in float64."""
    centred = [[r - sum(g.rewards) / len(g.rewards) for r in g.rewards] for g in groups]
    flat = [a for group in centred for a in group]
    std = math.sqrt(sum(a * a for a in flat) / len(flat))
    total = torch.zeros((), dtype=torch.float64)
    for group, advantages in zip(groups, centred, strict=True):
        tokens = sum(sum(c.loss_mask) for c in group.group.completions)
        for completion, advantage in zip(group.group.completions, advantages, strict=True):
            prompt = group.group.request.prompt.tokens
            logp = torch.log_softmax(model(input_ids=torch.tensor([prompt + completion.tokens])).logits[0], dim=-1)
            for t, token in enumerate(completion.tokens):
                if completion.loss_mask[t]:
                    value = logp[len(prompt) + t - 1, token]
                    ratio = min(math.exp(value.item() - completion.logprobs[t]), ratio_max)
                    total = total - ratio * advantage / std * value / tokens / len(groups)
    return total.item(), list(torch.autograd.grad(total, list(model.parameters())))


def test_loss_and_gradient_equal_a_float64_reference_whatever_the_micro_batches(model: Any) -> None:
    loss, gradient = reference_gradient(model.double(), GROUPS, 5.0)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradient))
    learners = [
        PlainLearner(model, OptimizerSpec(lr=1e-30, tokens_per_micro_batch=budget)) for budget in (10, 40, 100_000)
    ]
    for learner in learners:
        result, seen = gradients(learner, [*GROUPS, scored([1.0, 1.0], [4, 4], ordinal=9)])
        assert result.loss == pytest.approx(loss, rel=1e-4)
        assert result.grad_norm == pytest.approx(norm, rel=1e-4)
        assert 0 < result.clipped_ratio < 1
        assert result.clipped_low_ratio == 0
        assert result.trained_tokens == 17 + 10
        for mine, theirs in zip(seen, gradient, strict=True):
            torch.testing.assert_close(mine, (theirs * min(1.0, 1.0 / norm)).float(), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["cispo", "grpo", "gspo", "reinforce"])
def test_every_loss_is_measured_alike_and_equals_the_reference(model: Any, kind: Any) -> None:
    loss = Loss(kind=kind, ratio_max=3.0, clip_low=0.1, clip_high=0.1)
    with torch.no_grad():
        # one token per completion, so that the prompt alone decides every log-probability
        scores = torch.log_softmax(model(input_ids=torch.tensor([[10, 11, 12]])).logits[0, -1], dim=-1)
        logp = scores.tolist()
    groups = [
        scored([1.0, -1.0, -1.0], [1, 1, 1], behaviour=-3.9),
        scored([1.0, -1.0], [1, 1], behaviour=-5.5, ordinal=7),
    ]
    result = PlainLearner(model, OptimizerSpec(lr=1e-30), loss).step(1, groups, TUNABLES)
    assert result.loss == pytest.approx(reference(groups, loss, logp.__getitem__, logp.__getitem__), rel=1e-4)
    ratios = [math.exp(logp[c.tokens[0]] - c.logprobs[0]) for g in groups for c in g.group.completions]
    assert result.ratio_max == pytest.approx(max(ratios), rel=1e-4)
    assert result.ratio_mean == pytest.approx(sum(ratios) / 5, rel=1e-4)
    assert result.mismatch_kl == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / 5, rel=1e-3)
    squares = sum(r * r for r in ratios)
    assert result.effective_sample_ratio == pytest.approx(sum(ratios) ** 2 / 5 / squares, rel=1e-4)


def test_halves_of_a_batch_are_whole_prompts_and_their_gradients_give_the_noise_scale(model: Any) -> None:
    groups = [scored([1.0, -1.0], [3, 5], ordinal=n) for n in range(5)]
    assembled = assemble(groups, Loss())
    assert assembled is not None
    (one, first), (other, second) = assembled[0].halves()
    assert (first, second) == (3, 2)
    assert not set(one.group.tolist()) & set(other.group.tolist())
    assert sorted(one.group.tolist() + other.group.tolist()) == sorted(assembled[0].group.tolist())
    learner = PlainLearner(model, OptimizerSpec(lr=1e-30))
    results = [learner.step(n + 1, groups, TUNABLES) for n in range(FEWEST)]
    assert math.isnan(results[-2].noise_scale_prompts)
    assert results[-1].noise_scale_prompts > 0
    single = PlainLearner(model, OptimizerSpec(lr=1e-30))
    single.step(1, groups[:1], TUNABLES)
    assert not single._noise_scale._noise


def test_prompts_are_shared_without_a_trace(model: Any) -> None:
    together, first = gradients(PlainLearner(model, OptimizerSpec(lr=1e-30)), GROUPS)
    padded = PlainLearner(model, OptimizerSpec(lr=1e-30))
    padded._forward._padded = padded._forward._hugging_face
    apart, second = gradients(padded, GROUPS)
    assert together.loss == pytest.approx(apart.loss, rel=1e-5)
    assert together.entropy == pytest.approx(apart.entropy, rel=1e-5)
    for mine, theirs in zip(first, second, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_a_tied_head_gets_both_gradients(tokenizer: Any) -> None:
    model = make_tiny(TinyModel(hidden=32, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=48), tokenizer, seed=1)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    reference_loss, expected = reference_gradient(model.double(), GROUPS, 5.0)
    result, seen = gradients(PlainLearner(model, OptimizerSpec(lr=1e-30, clip_norm=1e9)), GROUPS)
    assert result.loss == pytest.approx(reference_loss, rel=1e-4)
    for mine, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(mine, theirs.float(), rtol=2e-3, atol=1e-6)


def test_forced_tokens_carry_no_loss(model: Any) -> None:
    def loss_with(behaviour: float) -> float:
        group = scored([1.0, -1.0], [6, 6], mask=lambda t: t < 4)
        spoiled = tuple(replace(c, logprobs=(*c.logprobs[:4], behaviour, behaviour)) for c in group.group.completions)
        changed = replace(group, group=replace(group.group, completions=spoiled))
        return PlainLearner(model, OptimizerSpec(lr=1e-12)).step(1, [changed], TUNABLES).loss

    assert loss_with(-2.0) == loss_with(-30.0) == loss_with(math.nan)


def test_truncated_completions_can_be_left_out(model: Any) -> None:
    group = scored([1.0, -1.0, -1.0], [4, 4, 6])
    cut = tuple(replace(c, finish="length" if len(c.tokens) == 6 else "stop") for c in group.group.completions)
    group = replace(group, group=replace(group.group, completions=cut))
    result = PlainLearner(model, OptimizerSpec(lr=1e-12), Loss(mask_truncated=True)).step(1, [group], TUNABLES)
    assert result.trained_tokens == 8
    assert result.advantage_std == pytest.approx(math.sqrt(8) / 3)  # its reward still counts: 4/3, -2/3, -2/3


@pytest.mark.parametrize("loss", [Loss(), Loss(zero_variance_filter=False), Loss(advantage="prompt")])
def test_a_batch_without_signal_changes_nothing(model: Any, loss: Loss) -> None:
    before = weights(model)
    result = PlainLearner(model, OptimizerSpec(lr=1.0), loss).step(1, [scored([1.0, 1.0], [3, 3])], TUNABLES)
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
    before = weights(model)
    result = learner.step(1, [group], TUNABLES)
    assert result.skipped == "nonfinite"
    assert quantity in result.nonfinite
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not learner._optimizer.state


def test_one_rank_that_is_not_finite_makes_all_skip(model: Any) -> None:
    class Another(Alone):
        def largest(self, values: torch.Tensor) -> torch.Tensor:
            return values.clamp(min=1.0)  # its vote

    before = weights(model)
    learner = PlainLearner(model, OptimizerSpec(lr=1.0), peers=Another())
    result = learner.step(1, GROUPS, TUNABLES)
    assert (result.skipped, result.nonfinite, result.trained_tokens) == ("nonfinite", ("elsewhere",), 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_learning_rate_is_schedule_times_scale_and_written_in_one_place(model: Any) -> None:
    learner = PlainLearner(model, OptimizerSpec(lr=2e-3, warmup_steps=4))
    group = scored([1.0, -1.0], [3, 3])
    for step, scale in ((1, 1.0), (2, 0.5), (4, 1.0), (9, 2.0)):
        result = learner.step(step, [group], {**TUNABLES, "lr_scale": scale})
        assert result.lr == schedule(2e-3, step, 4) * scale == 2e-3 * min(1, step / 4) * scale
        assert all(group["lr"] == result.lr for group in learner._optimizer.param_groups)


def test_a_restored_learner_goes_on_bit_exactly(model: Any, tokenizer: Any) -> None:
    learner = PlainLearner(model, OptimizerSpec(lr=1e-3))
    learner.step(1, GROUPS, TUNABLES)
    state = deepcopy(learner.state_dict())
    other_model = make_tiny(TinyModel(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48), tokenizer, seed=9)
    other = PlainLearner(other_model, OptimizerSpec(lr=5.0))
    other.load_state_dict(state)
    results = [each.step(2, GROUPS, TUNABLES) for each in (learner, other)]
    assert results[0] == results[1]
    for name, value in learner.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name])


@pytest.fixture
def _any_precision() -> Iterator[None]:
    yield
    fp32_head.forbid_tf32()


@pytest.mark.usefixtures("_any_precision")
def test_tf32_cannot_undo_a_float32_head(model: Any) -> None:
    torch.set_float32_matmul_precision("high")  # as somebody's environment may have it
    learner = PlainLearner(model, OptimizerSpec(lr=1e-6))
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not learner.step(1, GROUPS, TUNABLES).skipped
    torch.set_float32_matmul_precision("medium")
    before = weights(model)
    with pytest.raises(RuntimeError, match=r"learner_head is float32 but .*medium"):
        learner.step(2, GROUPS, TUNABLES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fp32_head.forbid_tf32()
    torch.backends.cuda.matmul.allow_tf32 = True
    with pytest.raises(RuntimeError, match="TF32"):
        learner.step(2, GROUPS, TUNABLES)
    free = Precision(dtype="bfloat16", learner_head="model", generator_head="model")
    assert not PlainLearner(model, OptimizerSpec(lr=1e-6), precision=free).step(1, GROUPS, TUNABLES).skipped


def test_bfloat16_keeps_float32_weights_and_stays_close(model: Any) -> None:
    exact = PlainLearner(model, OptimizerSpec(lr=1e-30)).step(1, GROUPS, TUNABLES)
    head: Any
    for head in ("float32", "model"):
        precision = Precision(dtype="bfloat16", learner_head=head, generator_head=head)
        learner = PlainLearner(model, OptimizerSpec(lr=1e-30), precision=precision)
        result = learner.step(1, GROUPS, TUNABLES)
        assert result.loss != exact.loss
        assert result.loss == pytest.approx(exact.loss, rel=0.05)
        assert result.grad_norm == pytest.approx(exact.grad_norm, rel=0.05)
        tensors = [*learner.model.parameters(), *learner._optimizer.state[next(learner.model.parameters())].values()]
        assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_float32_head_is_float32_inside_autocast_and_model_head_is_not(model: Any) -> None:
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    weight = model.get_output_embeddings().weight
    with torch.autocast("cpu", torch.bfloat16):
        full, short = fp32_head.logits(model, hidden), fp32_head.logits(model, hidden, torch.bfloat16)
    assert full.dtype == short.dtype == torch.float32
    torch.testing.assert_close(full.double(), hidden.double() @ weight.double().t(), rtol=1e-5, atol=1e-6)
    assert torch.equal(short, short.bfloat16().float())
    assert not torch.equal(full, short)


def test_chosen_equals_log_softmax_value_gradient_and_entropy() -> None:
    random = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 9, generator=random, dtype=torch.float64).requires_grad_()
    tokens = torch.randint(0, 9, (6,), generator=random)
    temperature = torch.tensor([0.5, 1.0, 2.0, 0.7, 1.3, 1.0], dtype=torch.float64)
    logp, entropy = fp32_head.chosen(scores, tokens, temperature)
    every = torch.log_softmax(scores / temperature.unsqueeze(1), dim=1)
    torch.testing.assert_close(logp, every.gather(1, tokens.unsqueeze(1)).squeeze(1))
    torch.testing.assert_close(entropy, -(every.exp() * every).sum(dim=1).detach())
    assert not entropy.requires_grad
    assert torch.autograd.gradcheck(lambda s: fp32_head.chosen(s, tokens, temperature)[0], (scores,))


def test_a_compiled_forward_gives_the_same_step(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, first = gradients(PlainLearner(model, OptimizerSpec(lr=1e-30)), GROUPS)
    # without the C++ compiler, which takes a minute
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled, second = gradients(PlainLearner(model, OptimizerSpec(lr=1e-30, compile=True)), GROUPS)
    assert compiled.loss == pytest.approx(plain.loss, rel=1e-5)
    for mine, theirs in zip(first, second, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
