"""Where thinking is cut."""

import numpy as np
from scipy import stats

from trainer.rollout.length import NEVER, Forcer, Interruption
from trainer.rollout.seeds import request_seed

RULE = Interruption(phrase=(7, 8), closing=7, window=(0.5, 1.0))


def test_the_cut_is_uniform_in_the_window_and_decided_by_seed_and_completion() -> None:
    cuts = [cut for seed in range(500) for cut in RULE.draw(10, request_seed(seed), 8)]
    assert (min(cuts), max(cuts)) == (5, 10)
    assert stats.chisquare(np.bincount(cuts)[5:]).pvalue > 1e-3
    assert RULE.draw(10, 1, 8)[:3] == RULE.draw(10, 1, 3)


def test_no_budget_is_no_cut() -> None:
    assert RULE.draw(0, 1, 3) == [NEVER] * 3


def test_the_phrase_is_forced_once_and_a_closed_thought_is_left_alone() -> None:
    forcer = Forcer(4, RULE)
    forcer.admit(slice(0, 3), [1, 1, NEVER])
    seen = []
    own = np.array([[1, 7, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]])
    for position, sampled in enumerate(own):
        due = forcer.due(np.full(3, position))
        tokens = sampled if due is None else np.where(due >= 0, due, sampled)
        forcer.saw(tokens)
        seen.append(tokens.tolist())
    assert seen == [[1, 7, 1], [7, 1, 1], [8, 1, 1], [1, 1, 1]]
    assert forcer.interrupted[:3].tolist() == [True, False, False]
