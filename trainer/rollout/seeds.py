"""Random numbers without a state: a counter goes in, a number comes out (SplitMix64; Steele, Lea, Flood, OOPSLA 2014).

    request_seed(run_seed, step, ordinal, ...)  ->  seed of one group
    stream(seed, completion)                    ->  stream of one completion
    uniforms(streams, tokens)                   ->  the one uniform number that decides that token

Nothing is remembered between two draws, so a token depends on its seed, its completion and its place alone: not on the
batch it was computed in, on its slot, nor on what was sampled before it. Runs that share seeds share the numbers.
Everything is integer arithmetic modulo 2**64: the same in every process, on every machine and in every version.
"""

import numpy as np
from numpy.typing import NDArray

_WORD = 2**64
_GAMMA = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix(word: int) -> int:
    """A bijection of 64-bit words in which every input bit flips about half of the output bits."""
    word = (word + _GAMMA) % _WORD
    word = ((word ^ (word >> 30)) * _FIRST) % _WORD
    word = ((word ^ (word >> 27)) * _SECOND) % _WORD
    return word ^ (word >> 31)


def request_seed(run_seed: int, *parts: int) -> int:
    """A seed in [0, 2**63) for `parts` of a run, such as (step, ordinal); order and number of the parts matter."""
    word = _mix(run_seed % _WORD)
    for part in parts:
        word = _mix(word ^ part % _WORD)
    return _mix(word ^ len(parts)) >> 1


def stream(seed: int, *parts: int) -> int:
    """A stream of numbers for one part of a request, such as a completion: a 64-bit word for `uniforms`."""
    return _mix(request_seed(seed, *parts))


def uniforms(streams: NDArray[np.uint64], counters: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) with 53 random bits, one for each stream and counter (0, 1, ...); the two broadcast."""
    word = streams + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(_GAMMA)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(_FIRST)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(_SECOND)
    word = word ^ (word >> np.uint64(31))
    numbers: NDArray[np.float64] = (word >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers
