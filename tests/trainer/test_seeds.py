"""Random numbers without a state, and the tokens that they choose."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainer.rollout.inverse_cdf import choose
from trainer.rollout.seeds import request_seed, stream, uniforms


def table(seeds: int, counters: int) -> np.ndarray:
    streams = np.array([stream(request_seed(7, 3), index) for index in range(seeds)], dtype=np.uint64)
    return uniforms(streams[:, None], np.arange(counters))


def draw(probabilities: torch.Tensor, uniform: np.ndarray, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """One token per uniform number, all from one distribution."""
    n = uniform.size
    scores = probabilities.log().repeat(n, 1) * temperature
    tokens, logprobs = choose(scores, torch.full((n,), temperature), torch.from_numpy(uniform.ravel()), None)
    return tokens.numpy(), logprobs.numpy()


def test_seeds_are_the_same_in_every_process_and_version() -> None:
    assert request_seed(0, 1, 2) == 970084483268568335
    assert stream(5, 1) == 15452165872372396590
    published = (6457827717110365317, 3203168211198807973, 9817491932198370423)  # SplitMix64 seeded with 1234567
    drawn = uniforms(np.array([1234567], dtype=np.uint64), np.arange(3))
    assert drawn.tolist() == [(word >> 11) * 2.0**-53 for word in published]


@given(st.integers(), st.lists(st.integers(), max_size=4), st.lists(st.integers(), max_size=4))
def test_seeds_fit_63_bits_and_tell_their_parts_apart(run: int, one: list[int], other: list[int]) -> None:
    first, second = request_seed(run, *one), request_seed(run, *other)
    assert 0 <= first < 2**63
    same = [part % 2**64 for part in one] == [part % 2**64 for part in other]
    assert (first == second) == same


def test_uniforms_are_uniform_and_independent_along_completions_and_tokens() -> None:
    numbers = table(512, 256)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    for one, other in (
        (numbers[:-1], numbers[1:]),  # neighbouring completions
        (numbers[:, :-1], numbers[:, 1:]),  # neighbouring tokens
        (numbers[:-1, 1:], numbers[1:, :-1]),  # next completion, previous token
        (numbers[:256], numbers[256:]),
    ):
        pairs = np.histogram2d(one.ravel(), other.ravel(), bins=8, range=((0, 1), (0, 1)))[0]
        assert stats.chisquare(pairs.ravel()).pvalue > 1e-3
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / one.size**0.5


def test_tokens_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.0, 0.4, 0.05, 0.0, 0.3, 0.2, 0.049, 0.001, 0.0])
    for temperature in (1.0, 0.7):
        tokens, logprobs = draw(probabilities, table(256, 256), temperature)
        counts = np.bincount(tokens, minlength=9)
        expected = probabilities.double().numpy()
        expected *= counts.sum() / expected.sum()
        possible = expected > 0
        assert not counts[~possible].any()
        assert stats.chisquare(counts[possible], expected[possible]).pvalue > 1e-3
        np.testing.assert_allclose(logprobs, probabilities.log().numpy()[tokens], atol=1e-6)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.integers(0, 2**53 - 1))
def test_no_token_of_probability_zero_is_drawn_even_at_the_edges(weights: list[float], bits: int) -> None:
    if not any(weight > 1e-6 for weight in weights):
        return
    probabilities = torch.tensor(weights, dtype=torch.float32)
    for uniform in (0.0, bits * 2.0**-53, 1 - 2.0**-53):
        tokens, logprobs = draw(probabilities, np.array([uniform]))
        assert probabilities[tokens[0]] > 0
        assert np.isfinite(logprobs).all()


def test_a_forced_token_keeps_its_own_log_probability() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    expected = torch.log_softmax(scores, dim=-1)
    tokens, logprobs = choose(
        scores.clone(), torch.ones(2), torch.tensor([0.99, 0.99], dtype=torch.float64), torch.tensor([0, -1])
    )
    assert tokens.tolist() == [0, 2]
    torch.testing.assert_close(logprobs, torch.stack((expected[0, 0], expected[1, 2])))


def test_seed_and_part_do_not_change_places() -> None:
    assert request_seed(0, 1) != request_seed(1, 0)
    assert len({request_seed(a, b) for a in range(30) for b in range(30)}) == 900
