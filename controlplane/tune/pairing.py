"""What two arms did on the same prompts: differences, step by step, clustered by prompt. Pure.

A prompt's completions share their difficulty, so a prompt is one observation: the difference of its pass rates in the two arms.
Where batches differ (an arm with larger ones, stragglers), prompts are paired over the whole arm and counted at the
candidate's step. How noisy a step's mean is comes from the spread of its prompts, smoothed over the steps before it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from controlplane.tune.evidence import Array, Noise, Sums
from controlplane.tune.planner import information

MEMORY = 8
"""Steps over which the spread between prompts is smoothed; fewer are too noisy, and the spread changes slowly."""
DOUBT = 16.0
"""Prompts that the binomial spread of unpaired arms counts for, so that a first step without differences is not believed."""


@dataclass(frozen=True)
class PromptResult:
    """One prompt in one step of an arm."""

    t: int
    """Step of the arm, from 1."""
    prompt: tuple[int, int]
    """Epoch and ordinal."""
    passed: int
    samples: int


@dataclass(frozen=True)
class Paired:
    """Differences candidate minus control; one entry per step of the candidate that shares a prompt with the control."""

    t: Array
    difference: Array
    """Mean over the step's prompts of the difference of pass rates."""
    error: Array
    """Its standard error, prompts as clusters."""
    prompts: Array

    def __len__(self) -> int:
        return len(self.t)

    @property
    def unit(self) -> float:
        """Noise of a step: root mean square of the standard errors."""
        return float(np.sqrt(np.mean(self.error**2)))

    @property
    def done(self) -> int:
        """Steps so far."""
        return int(self.t[-1])

    def planned(self, steps: int) -> int:
        """Steps in all, where each arm has `steps`."""
        return steps

    def standardised(self, steps: int) -> tuple[Array, Array]:
        """Share of the arm that has passed, and difference, each in units of the noise of its step."""
        weight = self.unit / self.error
        return self.t / steps * weight, self.difference / self.unit * weight

    def sums(self, steps: int, noise: Noise) -> Sums:
        """What the evidence needs."""
        return Sums.of(*self.standardised(steps), noise)

    def information(self, steps: int, noise: Noise) -> float:
        """Inverse variance of the effect after all steps, in units of the noise of a step."""
        return information(steps, noise)


def results(lines: Iterable[Mapping[str, Any]], arm: str) -> list[PromptResult]:
    """The steps of an arm in the record of a probe."""
    return [
        PromptResult(line["t"], (epoch, ordinal), passed, samples)
        for line in lines
        if line["kind"] == "step" and line["arm"] == arm
        for epoch, ordinal, passed, samples in line["prompts"]
    ]


def pair(control: Sequence[PromptResult], candidate: Sequence[PromptResult]) -> Paired:
    """Match prompts that both arms have trained."""
    known = {result.prompt: result for result in control}
    steps: dict[int, list[float]] = {}
    rates = []
    for mine in candidate:
        theirs = known.get(mine.prompt)
        if theirs is not None:
            steps.setdefault(mine.t, []).append(mine.passed / mine.samples - theirs.passed / theirs.samples)
            rates += [(mine.passed / mine.samples, mine.samples), (theirs.passed / theirs.samples, theirs.samples)]
    if not steps:
        return Paired(*(np.zeros(0),) * 4)
    t = sorted(steps)
    counts = np.array([len(steps[step]) for step in t], dtype=float)
    means = np.array([np.mean(steps[step]) for step in t])
    squares = np.array([float(np.sum(np.square(steps[step]))) for step in t])
    rate = np.mean([r for r, _ in rates])
    unpaired = 2 * float(rate * (1 - rate)) / float(np.mean([n for _, n in rates]))
    return Paired(np.array(t, dtype=float), means, step_errors(means, squares, counts, unpaired), counts)


def step_errors(means: Array, squares: Array, counts: Array, unpaired: float) -> Array:
    """Standard error of each step's mean, [..., steps], from the sums of squares of its prompts' differences.

    `unpaired`: variance of one prompt's difference if the arms shared nothing.
    """
    spread = np.maximum(squares - counts * means**2, 0.0)
    kernel = [spread, np.maximum(counts - 1, 0.0)]
    summed = []
    for values in kernel:
        total = np.cumsum(values, -1)
        shifted = np.zeros_like(total)
        shifted[..., MEMORY:] = total[..., :-MEMORY]
        summed.append(total - shifted)
    variance = (summed[0] + DOUBT * max(unpaired, 1e-6)) / (summed[1] + DOUBT)
    return np.asarray(np.sqrt(variance / counts))
