"""Readings of one series as few bytes.

Neighbouring readings of a metric are alike: most bits of a value are those of the value before. So values are XORed with
their predecessor (as in Facebook's Gorilla, VLDB 2015), the bytes are laid out by significance, and zlib does the rest.
A series that never changes is one value. Bits are kept exactly, NaN payloads included.
"""

import zlib

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

ABSENT = np.uint64(0x7FF0000000000002)
"""Bits of "this series was not on the page": a NaN that no computation gives. Prometheus marks staleness in the same way."""


def pack(values: Bits) -> bytes:
    """At least one value -> bytes; 8 of them for a constant series."""
    if (values == values[0]).all():
        return values[:1].tobytes()
    deltas = values.copy()
    deltas[1:] ^= values[:-1]
    planes = deltas.view(np.uint8).reshape(-1, 8).T
    return zlib.compress(np.ascontiguousarray(planes).tobytes(), 6)


def unpack(data: bytes, count: int) -> Bits:
    """The `count` values that `pack` was given."""
    if len(data) == 8:
        return np.repeat(np.frombuffer(data, np.uint64), count)
    planes = np.frombuffer(zlib.decompress(data), np.uint8).reshape(8, count)
    deltas = np.ascontiguousarray(planes.T).view(np.uint64).ravel()
    return np.bitwise_xor.accumulate(deltas)
