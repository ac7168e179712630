"""What can be measured: signals that every trainer with our agent exports, and named PromQL queries for the rest.

The kind of a signal says how it is judged: the logarithm of a `positive` one, the binomial error of a `proportion`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pydantic import Field, model_validator

from controlplane.policy.parts import Part

Kind = Literal["proportion", "positive", "real", "percent"]
Direction = Literal["higher_better", "lower_better", "neither"]


@dataclass(frozen=True)
class SignalSpec:
    """How a signal is judged. `rare`: not read at every step, so that a look without it is no fault."""

    kind: Kind
    direction: Direction
    what: str
    rare: bool = False
    query: str | None = None
    n: float | None = None
    group_size: int | None = None
    must_have_data: bool = False


BUILT_IN: Mapping[str, SignalSpec] = MappingProxyType(
    {
        "pass_rate": SignalSpec("proportion", "higher_better", "passed over verified completions of the last steps"),
        "eval_pass_rate": SignalSpec("proportion", "higher_better", "held-out pass rate, at each evaluation", rare=True),
        "truncation": SignalSpec("proportion", "lower_better", "completions cut by the length limit"),
        "zero_variance": SignalSpec("proportion", "lower_better", "groups without a gradient: all passed or all failed"),
        "effective_samples": SignalSpec("real", "higher_better", "effective sample size of the importance weights, 0 to 1"),
        "gen_length": SignalSpec("positive", "lower_better", "mean generated tokens"),
        "grad_norm": SignalSpec("positive", "lower_better", "gradient norm before clipping"),
        "loss": SignalSpec("real", "lower_better", "loss of the last step"),
        "entropy": SignalSpec("positive", "neither", "mean token entropy, nats"),
        "mismatch_kl": SignalSpec("positive", "lower_better", "KL between sampler and learner, nats"),
        "staleness": SignalSpec("real", "lower_better", "largest staleness in the batch, steps"),
        "clipped": SignalSpec("real", "neither", "share of tokens whose importance ratio the upper bound cut", rare=True),
        "batch_noise": SignalSpec("positive", "lower_better", "gradient noise scale over the prompts with signal in a batch", rare=True),
        "utilization": SignalSpec("real", "higher_better", "busy share of the held devices, 0 to 1"),
        "checkpoint_age": SignalSpec("positive", "lower_better", "seconds since the newest checkpoint was written", rare=True),
        "good_checkpoint_age": SignalSpec("positive", "lower_better", "steps since the newest checkpoint proved good", rare=True),
    }
)  # fmt: skip
"""Signals that need no declaration."""

VALUE_SIGNALS: frozenset[str] = frozenset({"pass_rate", "eval_pass_rate"})
"""Signals that say the run is worth less; all others say how it breaks. A rollback needs one of each."""

NO_KEY: frozenset[str] = frozenset({"batch_noise", "utilization", "staleness", "checkpoint_age", "good_checkpoint_age"})
"""Signals that say nothing about whether the weights are broken; no rollback rests on them."""


class Signal(Part):
    """A signal that is measured by a query of yours, or what you know about a built-in one.

    With a query under a built-in name, that signal comes from the query and keeps its meaning.
    """

    query: str | None = Field(default=None, min_length=1, max_length=4000)
    """PromQL with one value as its result; `$run` stands for the name of the run. Needs `scalerl control --prometheus`."""
    kind: Kind | None = None
    """Required with a query under a new name."""
    direction: Direction | None = None
    """Which way is good; for people and pictures. Detectors name their side themselves."""
    n: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Samples behind one value of a queried proportion: it cannot be known better than its binomial error."""
    group_size: int | None = Field(default=None, ge=1)
    """Completions per prompt, which are alike and count for less. Our own trainer's is read from its counters."""
    must_have_data: bool = False
    """No value for longer than `freshness.max_age_seconds` counts as stale data: nothing is done and a person is told."""

    @model_validator(mode="after")
    def _meaningful(self) -> "Signal":
        if self.query is None and (self.kind or self.direction or self.n):
            raise ValueError("kind, direction and n belong to a signal with a query")
        return self


def resolve(name: str, config: Signal | None) -> SignalSpec:
    """What is known of a signal: the declaration over what is built in.

    Raises:
        ValueError: neither built in nor declared with query and kind.
    """
    known = BUILT_IN.get(name)
    if config is None:
        if known is None:
            raise ValueError(
                f"no signal {name!r}; built in are {', '.join(BUILT_IN)}; others are declared under signals"
            )
        return known
    if known is None and (config.query is None or config.kind is None):
        raise ValueError("is not built in, so it needs a query and a kind")
    kind = config.kind or (known.kind if known else "real")
    return SignalSpec(
        kind=kind,
        direction=config.direction or (known.direction if known else "neither"),
        what=known.what if known else "query",
        rare=known.rare if known and config.query is None else False,
        query=config.query,
        n=config.n,
        group_size=config.group_size,
        must_have_data=config.must_have_data,
    )
