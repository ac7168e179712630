"""Evaluation: estimators against brute force, errors over prompts, the same score whatever the slots."""

from collections.abc import Sequence
from itertools import combinations
from math import isclose, isnan, sqrt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluate import evaluate, pass_at
from trainer.types import Completion, Group, GroupRequest, Prompt, Sampling, Span, Verdict, Version


@given(st.integers(1, 8), st.data())
def test_pass_at_j_is_the_mean_over_all_choices_of_j_completions(k: int, data: st.DataObject) -> None:
    passed = data.draw(st.integers(0, k))
    j = data.draw(st.integers(1, k))
    outcomes = [index < passed for index in range(k)]
    choices = [any(choice) for choice in combinations(outcomes, j)]
    assert isclose(pass_at(j, passed, k), sum(choices) / len(choices), abs_tol=1e-12)


class Scripted:
    """A generator whose completions say in their only token whether they pass."""

    inflight, room = 0, 99

    def __init__(self, outcomes: Sequence[Sequence[int]]) -> None:
        self._outcomes = outcomes
        self.requests: list[GroupRequest] = []

    def submit(self, request: GroupRequest) -> None:
        self.requests.append(request)

    def poll(self) -> list[Group]:
        request = self.requests[len(self._done)] if hasattr(self, "_done") else self.requests[0]
        self._done = [*getattr(self, "_done", []), request]
        span = (Span(Version(0, 0), 2),)
        completions = tuple(
            Completion((token, 9), (0.0, 0.0), (True, True), span, "stop" if token < 2 else "length", False, 0.0)
            for token in self._outcomes[request.id]
        )
        return [Group(request, completions)]

    def load(self, weights: Any, version: Version) -> None: ...

    def abort(self) -> int:
        return 0


class OneMeansPass:
    """A task whose verdict is the first token."""

    name, held_out = "scripted", ("held_out",)

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def prompts(self, split: str) -> Sequence[Prompt]:
        return ()

    def verify(self, prompt: Prompt, completion: str, finished: bool) -> Verdict:
        return Verdict(1.0, completion.startswith("1"))


class Digits:
    """Decodes tokens as digits."""

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(str, tokens))


@pytest.mark.parametrize("workers", [0, 2])
def test_mean_and_error_are_over_prompts(workers: int) -> None:
    outcomes = [(1, 1, 1, 1), (1, 1, 0, 0), (0, 0, 0, 2)]
    prompts = [Prompt(ordinal, "", ()) for ordinal in range(3)]
    generator = Scripted(outcomes)
    result = evaluate(generator, OneMeansPass(workers), Digits(), prompts, 4, Sampling(1.0, 4, 0), "some")
    assert (result.dataset, result.prompts, result.k) == ("some", 3, 4)
    assert isclose(result.pass_ratio, 0.5)
    assert isclose(result.pass_ratio_stderr, sqrt((0.5**2 + 0 + 0.5**2) / 2 / 3))
    assert list(result.pass_at) == [1, 2, 4]
    assert isclose(result.pass_at[2], (1 + 5 / 6 + 0) / 3)
    assert isclose(result.pass_at_k, 2 / 3)
    assert isclose(result.truncated_ratio, 1 / 12)
    assert len({request.seed for request in generator.requests}) == 3


def test_one_prompt_has_no_error_estimate() -> None:
    result = evaluate(Scripted([(1,)]), OneMeansPass(0), Digits(), [Prompt(0, "", ())], 1, Sampling(1.0, 4, 0))
    assert isnan(result.pass_ratio_stderr)
