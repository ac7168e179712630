"""The gradient noise scale of a case in which it is known, and what the learner feeds it."""

import math

import pytest
import torch

from trainer.learn.noise_scale import FEWEST, NoiseScale


def fed(
    true_gradient: float, sd: float, dimensions: int, halves: tuple[int, int], steps: int, scale: float = 1.0
) -> NoiseScale:
    """Prompts' gradients are normal around a known one; a batch's gradient is their mean, times `scale`."""
    generator, estimate = torch.Generator().manual_seed(0), NoiseScale()
    n = sum(halves)
    for _ in range(steps):
        prompts = true_gradient + sd * torch.randn(n, dimensions, generator=generator)
        first = scale * prompts[: halves[0]].sum(0) / n
        estimate.half_way([first])
        estimate.end([scale * prompts.sum(0) / n], *halves)
    return estimate


@pytest.mark.parametrize("halves", [(8, 8), (3, 2)])
@pytest.mark.parametrize(("true_gradient", "sd"), [(0.1, 1.0), (0.2, 0.5)])
def test_a_known_noise_scale_is_found_whatever_the_batch(
    true_gradient: float, sd: float, halves: tuple[int, int]
) -> None:
    expected = (sd / true_gradient) ** 2  # tr(Sigma)/|G|^2: both grow with the dimensions
    assert fed(true_gradient, sd, 2000, halves, 50).prompts == pytest.approx(expected, rel=0.25)


def test_it_does_not_hang_on_the_scale_of_the_loss() -> None:
    one, other = (fed(0.1, 1.0, 500, (4, 4), 30, scale).prompts for scale in (1.0, 1e-3))
    assert one == pytest.approx(other, rel=1e-3)


def test_without_signal_it_is_infinite_or_huge_and_without_steps_unknown() -> None:
    assert fed(0.0, 1.0, 1000, (8, 8), 30).prompts > 1000
    assert math.isnan(fed(0.1, 1.0, 10, (8, 8), FEWEST - 1).prompts)


def test_a_batch_of_one_prompt_and_a_nonfinite_step_say_nothing() -> None:
    estimate = NoiseScale()
    estimate.end([torch.ones(3)], 1, 0)
    estimate.half_way([torch.ones(3)])
    estimate.end([torch.tensor([1.0, math.nan, 1.0])], 1, 1)
    assert not estimate._noise
