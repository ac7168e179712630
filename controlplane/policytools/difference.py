"""What changes between two policies, in what it means: may the controller do more, or less; does it alarm sooner, or later? Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from controlplane.policy.models import Autonomy, Policy


class Effect(StrEnum):
    """looser: the controller may do more, or people hear less. stricter: the other way round. sooner and later: of alarms."""

    looser = "looser"
    stricter = "stricter"
    sooner = "alarms sooner"
    later = "alarms later"
    changed = "changed"


_OPPOSITE = {
    Effect.looser: Effect.stricter,
    Effect.stricter: Effect.looser,
    Effect.sooner: Effect.later,
    Effect.later: Effect.sooner,
}
_ORDER = tuple(Effect)


@dataclass(frozen=True)
class Difference:
    """One place that differs. `old` or `new` is None where the place is only in one of the two."""

    effect: Effect
    place: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.effect.value:<13} {self.place}: {_shown(self.old)} -> {_shown(self.new)}"


_RISES: tuple[tuple[str, Effect], ...] = (
    (r"autonomy\.\w+", Effect.looser),
    (r"observe_until_step", Effect.stricter),
    (r"freshness\.max_age_seconds", Effect.looser),
    (r"clamps\.\w+\.min", Effect.stricter),
    (r"clamps\.\w+\.max", Effect.looser),
    (r"clamps\.\w+\.(decrease|increase)\.min_gap_steps", Effect.stricter),
    (r"clamps\.\w+\.decrease\.max_step", Effect.stricter),
    (r"clamps\.\w+\.increase\.max_step", Effect.looser),
    (r"budget\.\w+", Effect.looser),
    (r"approval\.on_timeout", Effect.looser),
    (r"verdict\.revert", Effect.stricter),
    (r"rules\.[\w-]+\.limits\.max_per_run", Effect.looser),
    (r"rules\.[\w-]+\.limits\.cooldown_steps", Effect.stricter),
    (r"rules\.[\w-]+\.dry_run", Effect.stricter),
    (r"rules\.[\w-]+\.when\.(within|fresh)_steps", Effect.looser),
    (r"rules\.[\w-]+\.recover\.after_quiet_steps", Effect.stricter),
    (r"rules\.[\w-]+\.recover\.step", Effect.looser),
    (r"signals\.\w+\.must_have_data", Effect.stricter),
    (r"tuning\.(design|max_probes|arms|steps|space\.\w+)", Effect.looser),
    (r"tuning\.(cooldown_steps|miss_probability|min_effect|confidence)", Effect.stricter),
    (
        r"detectors\.\w+\.(h|k|above|consecutive|steps|seconds|times|probability|certainty|from_step|min_readings)",
        Effect.later,
    ),
    (r"detectors\.\w+\.(below|within_steps)", Effect.sooner),
)
"""What it means when the value at such a place rises; when it falls it is the opposite."""
_RANKS: Mapping[str, tuple[str, ...]] = {
    "approval.on_timeout": ("drop", "page", "act"),
    "freshness.on_stale": ("hold_and_page", "hold"),
    "tuning.design": ("off", "spare", "inline", "switchback"),  # by what of the run itself an arm touches
}


def difference(old: Policy, new: Policy) -> list[Difference]:
    """Every place where `new` differs from `old`, the looser ones first."""
    found = [*_leaves(old, new), *_sets(old, new), *_whole(old, new)]
    return sorted(found, key=lambda d: (_ORDER.index(d.effect), d.place))


def _leaves(old: Policy, new: Policy) -> Iterator[Difference]:
    """Values that stand in both, at the same place; and options that only one of them has."""
    before, after = _flat(_plain(old)), _flat(_plain(new))
    for place in sorted(before.keys() | after.keys()):
        a, b = before.get(place), after.get(place)
        if a == b or _belongs_to_whole(place, old, new):
            continue
        yield Difference(_effect(place, a, b), place, a, b)


def _effect(place: str, old: Any, new: Any) -> Effect:
    if place == "freshness.on_stale":
        return Effect.looser if new == "hold" else Effect.stricter
    if re.fullmatch(r"clamps\.\w+\.(decrease|increase)\.\w+", place) and None in (old, new):
        return Effect.stricter if old is None else Effect.looser  # a pace that was not there before
    a, b = _rank(place, old), _rank(place, new)
    if a is None or b is None:
        return Effect.changed
    for pattern, rises in _RISES:
        if re.fullmatch(pattern, place):
            return rises if b > a else _OPPOSITE[rises]
    return Effect.changed


def _rank(place: str, value: Any) -> float | None:
    if place.startswith("autonomy."):
        return float(Autonomy[value]) if value is not None else 0.0
    if place in _RANKS:
        return float(_RANKS[place].index(value))
    return float(value) if isinstance(value, bool | int | float) else None


def _sets(old: Policy, new: Policy) -> Iterator[Difference]:
    """Sets whose growth means something: keys of a rule, families that need approval."""
    needed, were = {f.value for f in new.approval.required_for}, {f.value for f in old.approval.required_for}
    yield from _grown("approval.required_for", were, needed, Effect.stricter)
    before = {rule.name: rule for rule in old.rules}
    for rule in new.rules:
        if (was := before.get(rule.name)) is None:
            continue
        yield from _grown(f"rules.{rule.name}.when.all", set(was.when.all), set(rule.when.all), Effect.stricter)
        # Without any second key named, none is needed: the first one named makes it stricter, each further one looser.
        first = Effect.stricter if not was.when.any or not rule.when.any else Effect.looser
        yield from _grown(f"rules.{rule.name}.when.any", set(was.when.any), set(rule.when.any), first)


def _grown(place: str, old: set[str], new: set[str], grows: Effect) -> Iterator[Difference]:
    if old != new:
        effect = grows if new > old else _OPPOSITE[grows] if new < old else Effect.changed
        yield Difference(effect, place, sorted(old), sorted(new))


def _whole(old: Policy, new: Policy) -> Iterator[Difference]:
    """Rules, detectors, clamps and signals that only one of the two has."""
    before, after = {r.name: r for r in old.rules}, {r.name: r for r in new.rules}
    for name in before.keys() ^ after.keys():
        rule = before.get(name) or after[name]
        acts = bool(rule.then.families) and not rule.dry_run
        effect = Effect.looser if acts else Effect.changed
        yield from _only(f"rules.{name}", name in after, effect, "acts" if acts else "tells")
    for part, effect in (("detectors", Effect.changed), ("clamps", Effect.looser), ("signals", Effect.changed)):
        a, b = getattr(old, part), getattr(new, part)
        for name in a.keys() ^ b.keys():
            # The learning rate needs no clamp to be changed, so its clamp is a limit and nothing else.
            one = Effect.stricter if name == "learning_rate" else effect
            yield from _only(f"{part}.{name}", name in b, one, "there")


def _only(place: str, is_new: bool, effect: Effect, words: str) -> Iterator[Difference]:
    if is_new:
        yield Difference(effect, place, None, words)
    else:
        yield Difference(_OPPOSITE.get(effect, effect), place, words, None)


def _belongs_to_whole(place: str, old: Policy, new: Policy) -> bool:
    """Whether a place lies in a rule, detector, clamp or signal that only one policy has, or is told of as a set."""
    part, _, rest = place.partition(".")
    name = rest.partition(".")[0]
    if place.endswith((".when.all", ".when.any")) or place == "approval.required_for":
        return True
    if part == "rules":
        return (name in {r.name for r in old.rules}) != (name in {r.name for r in new.rules})
    return part in ("detectors", "clamps", "signals") and (name in getattr(old, part)) != (name in getattr(new, part))


def _plain(policy: Policy) -> dict[str, Any]:
    body = policy.model_dump(mode="json")
    body["rules"] = {rule.pop("name"): rule for rule in body["rules"]}
    return body


def _flat(value: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        here = f"{place}.{key}" if place else key
        found |= _flat(inner, here) if isinstance(inner, dict) and inner else {here: inner}
    return {name: inner for name, inner in found.items() if inner not in (None, {}, [])}


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return (
        "not there"
        if value is None
        else f"{value:g}"
        if isinstance(value, float)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
