"""Gradient noise scale: how many prompts a batch needs before its gradient is more signal than noise.

    B_noise = tr(Sigma) / |G|^2        Sigma: covariance of one prompt's gradient, G: the true gradient, both per prompt

(McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162.) With batches far smaller than B_noise a
step is mostly noise, and a larger batch is worth its cost; far beyond it, it is not.

Estimated from the two halves of a batch, whose gradients the learner has on the way: with a and b the mean gradients over
n_a and n_b prompts, |a - b|^2 estimates tr(Sigma) (1/n_a + 1/n_b), and |mean|^2 - tr(Sigma)/n estimates |G|^2, both without
bias. A prompt is the unit: the completions of one share their baseline. One step's ratio is useless, so sums over a window are
divided. Costs one copy of the gradients and two norms a step.
"""

import math
from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

from trainer.learn.peers import Alone, Peers

WINDOW = 50
"""Steps behind an estimate; the scale changes over hundreds of steps."""
FEWEST = 10
"""Steps before there is an estimate."""


class NoiseScale:
    """Fed with the gradients of the two halves of each batch. Starts anew with the process: it is a measurement.

    With several ranks each one passes its shards of the gradients; the norms are those of the whole.
    """

    def __init__(self, peers: Peers | None = None) -> None:
        self._peers = peers or Alone()
        self._noise: deque[float] = deque(maxlen=WINDOW)
        self._signal: deque[float] = deque(maxlen=WINDOW)
        self._first: list[Tensor] = []

    def half_way(self, gradients: Iterable[Tensor]) -> None:
        """Keep the gradient of the first half: the sum of its prompts' contributions."""
        self._first = [gradient.detach().clone() for gradient in gradients]

    def end(self, gradients: Iterable[Tensor], first: int, second: int) -> None:
        """The gradient of the whole batch, before clipping; `first` and `second` are the prompts of its halves."""
        kept, self._first = self._first, []
        n = first + second
        if not kept or not first or not second:
            return
        # A batch's gradient is a weighted sum over its prompts that is normalised by all of them.
        norms = [
            torch.stack([(half * (n / first) - (whole - half) * (n / second)).square().sum(), whole.square().sum()])
            for half, whole in zip(kept, gradients, strict=True)
        ]
        apart, together = self._peers.total(torch.stack(norms).double().sum(0)).tolist()  # one transfer from the device
        noise = apart / (1 / first + 1 / second)
        signal = together - noise / n
        if math.isfinite(noise) and math.isfinite(signal):
            self._noise.append(noise)
            self._signal.append(signal)

    @property
    def prompts(self) -> float:
        """The noise scale; NaN before `FEWEST` steps, and infinite while the signal is lost in the noise."""
        if len(self._noise) < FEWEST:
            return math.nan
        signal = sum(self._signal)
        return sum(self._noise) / signal if signal > 0 else math.inf
