"""The settings of a running job that may be changed from outside, as data.

A tunable is named here once: unit, when a change takes effect, and the widest bounds that make sense at all. The
trainer narrows the bounds (guard rails), the policy narrows them again; nobody can widen them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class TunableSpec:
    """One runtime-mutable setting. `lowest` and `highest` are absolute limits in `unit`; `whole` means integers only."""

    name: str
    unit: str
    effect: str
    lowest: float
    highest: float
    whole: bool = False


_SPECS = (
    TunableSpec("lr_scale", "factor on the learning-rate schedule", "next step", 1e-4, 10.0),
    TunableSpec("prompts_per_step", "prompts", "next collection", 1, 1_000_000, whole=True),
    TunableSpec("ratio_max", "absolute bound on the importance ratio (CISPO)", "next batch", 1.0, 1_000.0),
    TunableSpec("clip_low", "eps- of the clipped ratio", "next batch", 0.0, 1.0),
    TunableSpec("clip_high", "eps+ of the clipped ratio", "next batch", 0.0, 10.0),
    TunableSpec("temperature", "softmax temperature of sampler and learner", "next request", 0.01, 10.0),
    TunableSpec("max_new_tokens", "tokens", "next request", 1, 10_000_000, whole=True),
    TunableSpec("thinking_budget", "tokens", "next request", 1, 10_000_000, whole=True),
    TunableSpec("length_penalty", "factor", "next request", 0.0, 100.0),
    TunableSpec("max_staleness", "optimiser steps (k of PipelineRL-k)", "next admission", 0, 1_000, whole=True),
)

TUNABLES: Mapping[str, TunableSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""Every tunable by name, in the order in which people look at them."""
