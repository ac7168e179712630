"""What goes between trainer, warden and children: fixed headers, and Python values as tagged JSON. Nothing is pickled."""

import os
import struct
from collections.abc import Callable
from typing import Any, Literal, get_args

JOB = struct.Struct("!BIIIIIQ")
"""mode, bytes of code, bytes of data, processor seconds, wall milliseconds, output bytes, memory bytes; then both texts."""
REPLY = struct.Struct("!BII")
"""outcome, milliseconds, bytes of output; then the output."""

MODES = ("stdin", "call", "asserts", "trusted")
Outcome = Literal["ok", "error", "time", "output", "threads", "lost"]
"""The last one is said of a warden that has gone; the others are what a warden says."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


def read_exactly(descriptor: int, count: int) -> bytes:
    """`count` bytes.

    Raises:
        EOFError: the other end closed before that.
    """
    parts = []
    while count:
        part = os.read(descriptor, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """All of `data`, however little the other end takes at a time."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def encode(value: Any, keep: Callable[[Any], int] | None = None) -> Any:
    """Plain data as JSON can hold it; lists stay lists, the rest is tagged. `keep` makes a number of anything else.

    Raises:
        TypeError: not plain data, and no `keep`.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, list):
        return [encode(item, keep) for item in value]
    for name, sequence in (("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, sequence):
            return {name: [encode(item, keep) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key, keep), encode(item, keep)] for key, item in value.items()]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if keep is None:
        raise TypeError(f"{type(value).__name__} is not plain data")
    return {"object": keep(value)}


def decode(value: Any, thing: Callable[[int], Any] | None = None) -> Any:
    """The inverse of `encode`; `thing` makes something of the number of an object.

    Raises:
        ValueError: not what `encode` makes.
    """
    if isinstance(value, list):
        return [decode(item, thing) for item in value]
    if not isinstance(value, dict):
        return value
    try:
        ((name, inner),) = value.items()
        if name == "dict":
            return {decode(key, thing): decode(item, thing) for key, item in inner}
        if name == "object" and thing is not None:
            return thing(int(inner))
        if name in ("tuple", "set", "frozenset"):
            kinds: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
            return kinds[name](decode(item, thing) for item in inner)
        if name == "bytes":
            return bytes.fromhex(inner)
        if name == "complex":
            return complex(*inner)
    except TypeError as error:
        raise ValueError(f"not an encoded value: {error}") from None
    raise ValueError(f"not an encoded value: {name!r}")
