"""Length control by forced interruption (ScaleRL, section 2 and appendix A.10).

At a random position in the window (a proportion of the thinking budget) the closing phrase is forced token by token,
and the model must answer with what is left of `max_new_tokens`. Forced tokens were not sampled, so they carry no loss.

    thinking ......|phrase|answer <eos>
                   ^ uniform in [low * budget, high * budget], decided by the request's seed and the completion
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.rollout.seeds import stream, uniforms

NEVER = 2**31 - 1
_CUT = 1
"""Sets the stream of the cut apart from that of the tokens."""


@dataclass(frozen=True)
class Interruption:
    """The closing phrase as token ids, the token that ends thinking, and the window as proportions of the budget."""

    phrase: tuple[int, ...]
    closing: int
    window: tuple[float, float]

    def draw(self, budget: int, seed: int, n: int) -> list[int]:
        """For each of `n` completions, the tokens generated before thinking is cut; NEVER where budget is 0."""
        if budget == 0:
            return [NEVER] * n
        low, high = (round(share * budget) for share in self.window)
        streams = np.array([stream(seed, completion, _CUT) for completion in range(n)], dtype=np.uint64)
        share = uniforms(streams, np.zeros(n, dtype=np.int64))
        return [low + int(each * (high + 1 - low)) for each in share]


class Forcer:
    """State of the interruption for every slot; all arrays are [slots], rows in use are the first ones."""

    def __init__(self, slots: int, rule: Interruption) -> None:
        self._rule = rule
        self._phrase = np.array(rule.phrase, dtype=np.int64)
        self.cut = np.full(slots, NEVER, dtype=np.int64)
        self.progress = np.full(slots, -1, dtype=np.int64)
        self.closed = np.zeros(slots, dtype=np.bool_)
        self.interrupted = np.zeros(slots, dtype=np.bool_)

    @property
    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """The arrays, to be moved and kept with the other things that a row has."""
        return {"cut": self.cut, "progress": self.progress, "closed": self.closed, "interrupted": self.interrupted}

    def admit(self, rows: slice, cuts: list[int]) -> None:
        """Start fresh in `rows` with their cut positions."""
        self.cut[rows] = cuts
        self.progress[rows] = -1
        self.closed[rows] = False
        self.interrupted[rows] = False

    def due(self, position: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Tokens to force in rows 0..n-1 now, -1 where the model chooses; None when it chooses everywhere.

        Args:
            position: [n], tokens generated before this one.
        """
        n = len(position)
        progress, closed = self.progress[:n], self.closed[:n]
        start = (position >= self.cut[:n]) & ~closed & (progress < 0)
        progress[start] = 0
        closed |= start
        self.interrupted[:n] |= start
        forced = progress >= 0
        if not forced.any():
            return None
        tokens = np.where(forced, self._phrase[progress], -1)
        progress[forced] += 1
        progress[progress == len(self._phrase)] = -1
        return tokens

    def saw(self, tokens: NDArray[np.int64]) -> None:
        """Rows 0..n-1 went on with these tokens; one that closed its thinking by itself is not cut later."""
        self.closed[: len(tokens)] |= tokens == self._rule.closing
