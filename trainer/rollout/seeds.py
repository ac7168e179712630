"""Random numbers without a state: a counter goes in, a number comes out (SplitMix64; Steele, Lea, Flood, OOPSLA 2014).

    request_seed(run_seed, step, ordinal, ...)  ->  seed of one group
    uniforms(stream(seed, completion), token)   ->  the one uniform number that decides that token

Nothing is remembered between two draws, so a token depends on its seed, its completion and its place alone: not on the
batch it was computed in, on its slot, nor on what was sampled before it. Two runs that share the seeds share the
numbers. Everything is integer arithmetic modulo 2**64, the same in every process, on every device and in every version.
"""

import torch
from torch import Tensor

_WORD = 2**64
_GAMMA = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(word: int) -> int:
    """The same 64 bits as a two's complement number, which is what torch's int64 holds."""
    return word - _WORD if word >= _WORD // 2 else word


def _mix(word: int) -> int:
    """A bijection of 64-bit words in which every input bit flips half of the output bits."""
    word = (word + _GAMMA) % _WORD
    word = ((word ^ (word >> 30)) * _FIRST) % _WORD
    word = ((word ^ (word >> 27)) * _SECOND) % _WORD
    return word ^ (word >> 31)


def request_seed(run_seed: int, *parts: int) -> int:
    """A seed in [0, 2**63) for `parts` of a run, such as (step, ordinal); order and number of the parts matter."""
    word = _mix(run_seed % _WORD)
    for part in parts:
        word = _mix(word ^ _mix(part % _WORD))
    return _mix(word ^ len(parts)) >> 1


def stream(seed: int, *parts: int) -> int:
    """The stream of one completion of a request, as a signed 64-bit word for `uniforms`."""
    return _signed(_mix(request_seed(seed, *parts)))


def uniforms(streams: Tensor, counters: Tensor | int) -> Tensor:
    """Uniform float64 numbers in [0, 1), one for each stream (int64) and counter; the two broadcast."""
    word = streams + (counters + 1) * _signed(_GAMMA)
    word = (word ^ _shifted(word, 30)) * _signed(_FIRST)
    word = (word ^ _shifted(word, 27)) * _signed(_SECOND)
    word = word ^ _shifted(word, 31)
    return _shifted(word, 11).to(torch.float64) * 2.0**-53


def _shifted(word: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own one repeats the sign."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)
