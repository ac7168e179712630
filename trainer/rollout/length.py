"""Length control by forced interruption (ScaleRL, section 6).

At a random position in the window (a proportion of the thinking budget) the closing phrase is forced token by token,
and the model must answer with what is left of `max_new_tokens`. Forced tokens were not sampled, so they carry no loss.

    thinking ......|phrase|answer <eos>
                   ^ uniform in [low * budget, high * budget]
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = 2**31 - 1


@dataclass(frozen=True)
class Interruption:
    """The closing phrase as token ids, the token that ends thinking, and the window as proportions of the budget."""

    phrase: tuple[int, ...]
    closing: int
    window: tuple[float, float]

    def draw(self, budget: int, n: int, rng: torch.Generator) -> Tensor:
        """Positions [n] (generated tokens before the phrase) at which thinking is cut; NEVER where budget is 0."""
        if budget == 0:
            return torch.full((n,), NEVER)
        low, high = (round(share * budget) for share in self.window)
        return torch.randint(low, high + 1, (n,), generator=rng)


class Forcer:
    """State of the interruption for every slot; all tensors are [slots], rows in use are the first ones."""

    def __init__(self, slots: int, rule: Interruption) -> None:
        self._rule = rule
        self._phrase = torch.tensor(rule.phrase)
        self.cut = torch.full((slots,), NEVER)
        self.progress = torch.full((slots,), -1)
        self.closed = torch.zeros(slots, dtype=torch.bool)
        self.interrupted = torch.zeros(slots, dtype=torch.bool)

    def admit(self, rows: slice, cuts: Tensor) -> None:
        """Start fresh in `rows` with their cut positions."""
        self.cut[rows] = cuts
        self.progress[rows] = -1
        self.closed[rows] = False
        self.interrupted[rows] = False

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows when the generator compacts its slots."""
        for state in (self.cut, self.progress, self.closed, self.interrupted):
            state[target] = state[source]

    def apply(self, rows: slice, sampled: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Replace sampled tokens [n] by the phrase where it is due; `position` counts tokens generated before.

        Returns:
            tokens [n] and forced [n], true where the token was not the model's own.
        """
        start = (position >= self.cut[rows]) & ~self.closed[rows] & (self.progress[rows] < 0)
        progress = torch.where(start, 0, self.progress[rows])
        forced = progress >= 0
        tokens = torch.where(forced, self._phrase[progress.clamp(min=0)], sampled)
        self.interrupted[rows] |= start
        self.closed[rows] |= start | (tokens == self._rule.closing)
        progress = torch.where(forced, progress + 1, progress)
        self.progress[rows] = torch.where(progress == len(self._phrase), -1, progress)
        return tokens, forced
