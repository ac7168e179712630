"""What `scalerl plan` says a learner rank holds is what a rank holds."""

import pytest

from tests.cluster.gloo import Ranks
from tests.cluster.test_sharded import SPEC, batch, model, shards
from tests.trainer.learn_cases import TUNABLES
from trainer.learn.sharded import ShardedLearner
from trainer.plan.assumptions import corners
from trainer.plan.hardware import GPUS
from trainer.plan.memory import learner_memory
from trainer.plan.shape import shape_of


def held() -> tuple[int, int]:
    """Bytes of weights and moments on this rank, and of its gradients after a batch that is not applied yet."""
    learner = ShardedLearner(model(), SPEC)
    sizes: list[int] = []
    clip = learner._clip

    def measured() -> float:
        sizes.append(sum(gradient.numel() * gradient.element_size() for gradient in learner._gradients()))
        return clip()

    learner._clip = measured  # type: ignore[method-assign]
    learner.step(1, batch(1), TUNABLES)
    return sum(t.numel() * t.element_size() for t in shards(learner).values() if t.numel() > 1), sizes[0]


def test_weights_moments_and_gradients_of_a_rank_are_as_planned(ranks: Ranks) -> None:
    planned = learner_memory(
        shape_of(model().config.to_dict(), "tiny"), GPUS["h100"], 2, 100, 4, 4, False, corners({})[0]
    )
    answers = ranks(held)
    for state, gradients in answers:
        assert state == pytest.approx(planned.weights + planned.moments, rel=0.02)
        assert gradients == pytest.approx(planned.gradients, rel=0.02)
    assert sum(state for state, _ in answers) == pytest.approx(2 * (planned.weights + planned.moments), rel=1e-3)
