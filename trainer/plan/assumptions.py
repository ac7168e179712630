"""What a plan assumes, each with a slow and a fast value, and where they come from. Every one can be overridden.

Nothing here was measured with this trainer on a GPU. A figure of the plan that depends on one of these is a range from
all slow values to all fast ones: wide on purpose. Replace them by what your own first steps show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from controlplane.contract.yamlfile import FileError


@dataclass(frozen=True)
class Assumption:
    """A number that has to be guessed before a run."""

    name: str
    slow: float
    """Value that makes the run slower or larger."""
    fast: float
    least: float
    most: float
    what: str
    source: str


ASSUMPTIONS = (
    Assumption("mean_length", 0.85, 0.4, 0.01, 1.0, "mean completion / max_new_tokens", "not published; ours; the slow value is set by docs/plan.md"),
    Assumption("length_spread", 0.7, 0.4, 0.0, 2.0, "standard deviation of lengths / mean", "ours"),
    Assumption("prompt_tokens", 300, 150, 1, 1e6, "mean prompt, tokens", "competition mathematics; ours"),
    Assumption(
        "signal", 0.9, 0.6, 0.01, 1.0, "share of groups whose rewards differ, all the learner computes",
        "ours: pass rates of 0.4 to 0.6 that differ from prompt to prompt",
    ),
    Assumption(
        "mfu", 0.2, 0.4, 0.01, 1.0, "learner, share of the peak of bfloat16 that useful FLOPs reach",
        "torchtitan docs/performance: FSDP2 of an 8B on H100 33 % plain, 39 % compiled; less here for uneven lengths",
    ),
    Assumption("head_mfu", 0.5, 0.8, 0.01, 1.0, "the same of the float32 head, of the peak of float32", "large products; ours"),
    Assumption(
        "mbu", 0.35, 0.6, 0.01, 1.0, "generator, share of the memory bandwidth that decoding reaches",
        "a published sweep of vLLM and an 8B on A100 has 77 % for one request; less with long caches; ours",
    ),
    Assumption("decode_mfu", 0.2, 0.4, 0.01, 1.0, "generator, share of the peak where decoding is bound by products", "ours"),
    Assumption("decode_overhead", 0.006, 0.002, 0.0, 10.0, "seconds per decoding step beside that", "scheduler and sampler; ours"),
    Assumption("link_use", 0.5, 0.8, 0.01, 1.0, "share of a network's rate that collectives reach", "ours"),
    Assumption("reserve", 0.12, 0.06, 0.0, 0.5, "share of GPU memory for CUDA, NCCL and fragments", "ours"),
    Assumption("storage", 1e9, 5e9, 1e6, 1e13, "bytes per second of the shared file system, all writers together", "ours"),
)  # fmt: skip

BY_NAME = {assumption.name: assumption for assumption in ASSUMPTIONS}


class Values(NamedTuple):
    """One value for each assumption: one corner of the plan."""

    mean_length: float
    length_spread: float
    prompt_tokens: float
    signal: float
    mfu: float
    head_mfu: float
    mbu: float
    decode_mfu: float
    decode_overhead: float
    link_use: float
    reserve: float
    storage: float


def corners(overrides: Mapping[str, tuple[float, float]]) -> tuple[Values, Values]:
    """All slow values, and all fast ones. `overrides`: name -> (slow, fast)."""
    pairs = {a.name: overrides.get(a.name, (a.slow, a.fast)) for a in ASSUMPTIONS}
    return Values(**{name: pair[0] for name, pair in pairs.items()}), Values(
        **{n: pair[1] for n, pair in pairs.items()}
    )


def parse(pairs: Sequence[str]) -> dict[str, tuple[float, float]]:
    """`--assume NAME=VALUE` or `NAME=SLOW..FAST`.

    Raises:
        FileError: not of that form, not a known name, or out of its bounds.
    """
    return dict(_parsed(pair) for pair in pairs)


def _parsed(pair: str) -> tuple[str, tuple[float, float]]:
    name, equals, text = pair.partition("=")
    if not equals:
        raise FileError(f"--assume {pair}: give NAME=VALUE or NAME=SLOW..FAST, for example --assume mfu=0.3..0.4")
    if name not in BY_NAME:
        raise FileError(f"--assume {pair}: no such assumption; there are {', '.join(BY_NAME)}")
    slow, dots, fast = text.partition("..")
    known = BY_NAME[name]
    try:
        values = float(slow), float(fast if dots else slow)
    except ValueError:
        raise FileError(f"--assume {pair}: {text!r} is not a number or two joined by ..") from None
    if not all(known.least <= value <= known.most for value in values):
        raise FileError(f"--assume {pair}: must be within {known.least:g} and {known.most:g}")
    return name, values
