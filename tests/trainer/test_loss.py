"""Losses, advantages and weights against numbers worked out by hand."""

import math
from typing import Any

import pytest
import torch

from tests.trainer.learn_cases import scored
from trainer.learn.advantage import advantages
from trainer.learn.batch import assemble
from trainer.learn.loss import Tokens, cispo, grpo, gspo, objective, reinforce
from trainer.learn.statistics import ratio_stats
from trainer.learn.weights import token_weights
from trainer.settings import Loss


def tokens(ratios: list[float], advantage: list[float], sequence: list[int] | None = None) -> Tokens:
    """Tokens whose generator gave log-probability -1 and whose learner gives these ratios."""
    sequence = sequence or [0] * len(ratios)
    return Tokens(
        logp=(torch.tensor(ratios, dtype=torch.float64).log() - 1.0).requires_grad_(),
        behaviour=torch.full((len(ratios),), -1.0, dtype=torch.float64),
        advantage=torch.tensor(advantage, dtype=torch.float64),
        sequence=torch.tensor(sequence),
        sequences=max(sequence) + 1,
    )


def gradient(terms: Any, of: Tokens) -> list[float]:
    (grad,) = torch.autograd.grad(terms.value.sum(), of.logp)
    return [float(g) for g in grad]


def test_cispo_cuts_the_ratio_at_an_absolute_bound_and_lets_no_gradient_through_it() -> None:
    given = tokens([2.0, 9.0, 0.01], [3.0, 3.0, -1.0])
    terms = cispo(given, ratio_max=4.0)
    # sg(min(rho, 4)) A log pi: 2*3*(log 2 - 1), 4*3*(log 9 - 1), 0.01*-1*(log 0.01 - 1)
    assert terms.value.tolist() == pytest.approx(
        [6 * (math.log(2) - 1), 12 * (math.log(9) - 1), -0.01 * (math.log(0.01) - 1)]
    )
    assert gradient(terms, given) == pytest.approx(
        [6, 12, -0.01]
    )  # the clipped token keeps its gradient; no lower bound
    assert terms.high.tolist() == [False, True, False]
    assert not terms.low.any()


def test_grpo_clips_where_going_further_would_be_rewarded() -> None:
    ratios, signs = [1.1, 1.5, 0.5, 1.5, 0.5, 0.9], [1.0, 1.0, 1.0, -1.0, -1.0, -1.0]
    given = tokens(ratios, [2 * sign for sign in signs])
    terms = grpo(given, clip_low=0.2, clip_high=0.3)
    # A = 2: 1.1*2; 1.5 -> 1.3*2, cut; min(0.5*2, 0.8*2) = 1.  A = -2: min(-3, -2.6) = -3; min(-1, -1.6) = -1.6, cut; -1.8
    assert terms.value.tolist() == pytest.approx([2.2, 2.6, 1.0, -3.0, -1.6, -1.8])
    # d(rho A)/d log pi = rho A where not cut
    assert gradient(terms, given) == pytest.approx([2.2, 0.0, 1.0, -3.0, 0.0, -1.8])
    assert terms.high.tolist() == [False, True, False, False, False, False]
    assert terms.low.tolist() == [False, False, False, False, True, False]


def test_gspo_has_one_ratio_per_sequence_the_geometric_mean() -> None:
    # sequence 0: sqrt(2 * 8) = 4, cut at 3 (A > 0). sequence 1: cube root of 1 * 2 * 4 = 2, not cut.
    given = tokens([2.0, 8.0, 1.0, 2.0, 4.0], [1.0, 1.0, 0.5, 0.5, 0.5], [0, 0, 1, 1, 1])
    terms = gspo(given, clip_low=0.5, clip_high=2.0)
    assert terms.value.tolist() == pytest.approx([3.0, 3.0, 1.0, 1.0, 1.0])
    assert terms.high.tolist() == [True, True, False, False, False]
    # d s / d log pi_t = s / |y|; three terms of value s A: 3 * 2 * 0.5 / 3 = 1 for every token, whatever its own ratio
    assert gradient(terms, given) == pytest.approx([0.0, 0.0, 1.0, 1.0, 1.0])


def test_reinforce_has_no_ratio() -> None:
    given = tokens([2.0, 9.0], [3.0, -1.0])
    terms = reinforce(given)
    assert terms.value.tolist() == pytest.approx([3 * (math.log(2) - 1), -(math.log(9) - 1)])
    assert gradient(terms, given) == pytest.approx([3, -1])
    assert not terms.high.any()
    assert not terms.low.any()


def test_a_tunable_goes_before_the_setting() -> None:
    given = tokens([9.0], [1.0])
    for tunables, expected in (({}, 5.0), ({"ratio_max": 8.0}, 8.0)):
        assert gradient(objective(Loss(ratio_max=5.0), tunables)(given), given) == pytest.approx([expected])
    clipped = objective(Loss(kind="grpo", clip_high=0.2), {"clip_high": 0.5, "clip_low": 0.1})(given)
    assert clipped.value.tolist() == pytest.approx([1.5])
    assert objective(Loss(kind="gspo", clip_high=0.25), {})(given).value.tolist() == pytest.approx([1.25])


def test_worked_grpo_example() -> None:
    # "if 2x + 5 = 15, what is x?", four answers, rewards +1 -1 +1 -1: mean 0, standard deviation 1
    (group,), std = advantages([[1.0, -1.0, 1.0, -1.0]], "prompt")
    assert group == pytest.approx([1.0, -1.0, 1.0, -1.0])
    assert std == 1.0


def test_advantages_by_hand() -> None:
    rewards = [[1.0, -1.0], [1.0, 1.0, 1.0, -1.0]]
    # centred: 1, -1 and 0.5, 0.5, 0.5, -1.5; mean square over the batch (1 + 1 + 3*0.25 + 2.25) / 6 = 5/6
    batch, std = advantages(rewards, "batch")
    assert std == pytest.approx(math.sqrt(5 / 6))
    assert batch[0] == pytest.approx([1 / std, -1 / std])
    assert batch[1] == pytest.approx([0.5 / std] * 3 + [-1.5 / std])
    # per prompt: 1 and sqrt((3*0.25 + 2.25) / 4) = sqrt(0.75)
    prompt, same = advantages(rewards, "prompt")
    assert same == std
    assert prompt[0] == pytest.approx([1.0, -1.0])
    assert prompt[1] == pytest.approx([0.5 / math.sqrt(0.75)] * 3 + [-1.5 / math.sqrt(0.75)])
    assert advantages(rewards, "none")[0] == [[1.0, -1.0], [0.5, 0.5, 0.5, -1.5]]


@pytest.mark.parametrize("kind", ["batch", "prompt", "none"])
def test_a_group_of_equal_rewards_has_advantages_of_exactly_zero(kind: Any) -> None:
    (equal, _), _ = advantages([[0.1] * 3, [1.0, 0.0]], kind)  # 0.1 * 3 / 3 is not 0.1 in floating point
    assert equal == [0.0, 0.0, 0.0]


def test_advantages_refuse_a_batch_without_signal() -> None:
    for rewards in ([[1.0, 1.0]], []):
        with pytest.raises(ValueError, match="unequal"):
            advantages(rewards, "batch")


def test_weights_by_hand() -> None:
    counts, prompts = [3, 1, 0, 2], [0, 0, 0, 1]
    # two prompts with 4 and 2 tokens; three completions with tokens; six tokens
    assert token_weights(counts, prompts, "prompt") == [1 / 8, 1 / 8, 0.0, 1 / 4]
    assert token_weights(counts, prompts, "sample") == [1 / 9, 1 / 3, 0.0, 1 / 6]
    assert token_weights(counts, prompts, "token") == [1 / 6, 1 / 6, 0.0, 1 / 6]
    assert token_weights([0, 2], [0, 1], "prompt") == [0.0, 0.5]  # a prompt without tokens is no prompt


def test_without_the_filter_equal_groups_dilute_the_denominators() -> None:
    groups = [scored([1.0, -1.0], [2, 4]), scored([1.0, 1.0], [6, 6], ordinal=1)]

    def made(**settings: Any) -> tuple[list[float], list[float], float]:
        result = assemble(groups, Loss(**settings))
        assert result is not None
        batch, std = result
        assert batch.length.tolist() == [3 + 4, 3 + 2]  # the group without signal is never computed
        return batch.weight.tolist(), batch.advantage.tolist(), std

    weights, values, std = made()
    assert (weights, values, std) == (pytest.approx([1 / 6] * 2), [-1.0, 1.0], 1.0)
    # now two prompts, and the centred rewards are 1, -1, 0, 0: standard deviation sqrt(1/2)
    weights, values, std = made(zero_variance_filter=False)
    assert (weights, std) == (pytest.approx([1 / 12] * 2), pytest.approx(math.sqrt(0.5)))
    assert values == pytest.approx([-math.sqrt(2), math.sqrt(2)])
    assert made(zero_variance_filter=False, aggregation="token")[0] == pytest.approx([1 / 18] * 2)
    assert made(zero_variance_filter=False, aggregation="sample")[0] == pytest.approx([1 / 16, 1 / 8])


def test_ratio_statistics_by_hand() -> None:
    stats = ratio_stats(torch.tensor([2.0, 9.0]).log(), torch.zeros(2))
    assert (stats.mean, stats.maximum) == (pytest.approx(5.5), pytest.approx(9))
    assert stats.kl == pytest.approx(((2 - 1 - math.log(2)) + (9 - 1 - math.log(9))) / 2)
    assert stats.effective_sample_ratio == pytest.approx(11**2 / (2 * (4 + 81)))


def test_effective_sample_ratio_of_enormous_ratios_is_still_a_number() -> None:
    stats = ratio_stats(torch.tensor([60.0, 0.0]), torch.zeros(2))  # exp(60)^2 overflows float32
    assert stats.effective_sample_ratio == pytest.approx(0.5)
