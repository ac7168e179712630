"""The vital signs of a run in words and numbers, each with the limit that it is held against. Pure."""

from dataclasses import dataclass
from math import isfinite

from controlplane.digest import facts
from controlplane.policy.models import Threshold
from controlplane.record import Record

_LIMITS = {"truncation": 0.10, "gen_length": 15_000.0}
"""Used where the policy names no threshold of its own: the limits that people who run such jobs agreed on. A low utilisation
is judged only where a policy names it: what is low depends on the machine."""


@dataclass(frozen=True)
class Vital:
    """`level` is the judgement: none, attention or bad. `limit` is empty where nothing is judged."""

    name: str
    text: str
    limit: str = ""
    level: str = "none"


def vitals(record: Record) -> list[Vital]:
    """The newest vital signs, in the order in which people look at them; what the trainer does not write is left out."""
    limits = _LIMITS | _thresholds(record)

    def now(key: str) -> float:
        return facts.vital(record, key)

    held = facts.in_force(record, facts.heldout(record))
    found = [
        Vital("held-out", f"{held[-1]['pass_ratio']:.3f}") if held else None,
        _plain("pass", now("pass_ratio"), "{:.2f}"),
        _upto("length", now("mean_length"), limits["gen_length"], "{:.0f}", show=now("mean_length") > 1000),
        _upto("truncated", now("truncated"), limits["truncation"], "{:.1%}"),
        _atleast("utilised", now("utilization"), limits.get("utilization"), "{:.0%}"),
        _gradient(record),
        _plain("entropy", now("entropy"), "{:.3f}"),
        _learning_rate(record),
        _staleness(record),
    ]
    return [vital for vital in found if vital is not None]


def _thresholds(record: Record) -> dict[str, float]:
    policy = facts.policy_of(record)
    levels = [d for d in policy.detectors.values() if isinstance(d, Threshold)] if policy else []
    found: dict[str, float] = {}
    for level in levels:  # of several for one signal the most sensitive, as in the alert rules
        known = found.get(level.signal, level.limit)
        found[level.signal] = min(known, level.limit) if level.above is not None else max(known, level.limit)
    return found


def _plain(name: str, value: float, form: str) -> Vital | None:
    return Vital(name, form.format(value)) if isfinite(value) else None


def _upto(name: str, value: float, limit: float, form: str, show: bool = True) -> Vital | None:
    if not isfinite(value):
        return None
    bound = f"≤ {limit:.0%}" if limit <= 1 else f"≤ {limit:,.0f}"
    return Vital(name, form.format(value), bound if show else "", "bad" if value > limit else "none")


def _atleast(name: str, value: float, limit: float | None, form: str) -> Vital | None:
    if not isfinite(value) or limit is None:
        return _plain(name, value, form)
    return Vital(name, form.format(value), f"≥ {form.format(limit)}", "attention" if value < limit else "none")


def _gradient(record: Record) -> Vital | None:
    value = facts.vital(record, "grad_norm")
    last = facts.number(record.steps[-1], "grad_norm") if record.steps else value
    if record.steps and not isfinite(last) and record.steps[-1].get("skipped") != "no_signal":
        return Vital("grad norm", "not finite", level="bad")
    return _plain("grad norm", value, "{:.2g}")


def _learning_rate(record: Record) -> Vital | None:
    rate, scale = facts.vital(record, "lr"), facts.vital(record, "lr_scale")
    if not isfinite(rate):
        return None
    lowered = isfinite(scale) and scale != 1
    return Vital(
        "LR",
        f"{rate:.1e}" + (f" (scale {scale:g})" if isfinite(scale) else ""),
        level="attention" if lowered else "none",
    )


def _staleness(record: Record) -> Vital | None:
    value = facts.vital(record, "staleness_max")
    allowed = record.observed.tunables.get("max_staleness") if record.observed else None
    if not isfinite(value):
        return None
    if allowed is None:
        return Vital("stale", f"{value:.0f}")
    return Vital("stale", f"{value:.0f}", f"≤ {allowed.value:g}", "bad" if value > allowed.value else "none")
