"""Facts that follow from the record of a run: branches, collapses, recoveries, forecasts against what came. Pure.

Trouble is told from what was written down: a collapse is a pass rate that falls to half of its level, a rollback is a
branch that begins at a smaller step. What the controller thought of it is in its decisions, not here.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import isfinite, nan
from typing import Any

import numpy as np

from controlplane.contract.documents import Phase
from controlplane.contract.yamlfile import FileError, parse
from controlplane.decide import ForecastView, Kind
from controlplane.policy.models import Policy
from controlplane.record import Look, Record

Row = Mapping[str, Any]


RECOVERED_WITHIN = 0.02
"""A held-out pass rate this close to the former level counts as recovered: about two standard errors of 1,000 samples."""


_LEVEL, _FALL = 8, 3  # readings in the mean that is the level, and in the mean that fell


_LOWEST_LEVEL = 0.1  # below it there is nothing to collapse from


@dataclass(frozen=True)
class Fork:
    """A rollback as it happened: training stood at `from_step` and went on from `to_step` as branch `branch`."""

    branch: int
    from_step: int
    to_step: int
    at: float


@dataclass(frozen=True)
class Episode:
    """Trouble: a collapse, a rollback, or both, and how it ended."""

    collapsed_at: int | None
    """First of the steps whose pass rate was at most half of its level."""
    lowest: float
    fork: Fork | None
    former: float
    """Highest held-out pass rate before the trouble; NaN without an evaluation."""
    recovered_at: int | None
    """Step of the first evaluation in force that is back at the former level."""


@dataclass(frozen=True)
class ForecastCheck:
    """A forecast against what came. `later` evaluations came after it, `inside` of them lie in its 80 % band."""

    view: ForecastView
    low: float
    middle: float
    high: float
    final: float | None
    """Held-out pass rate at the planned end; None while it has not come."""
    inside: int
    later: int

    @property
    def held(self) -> bool | None:
        """Whether the end lies inside the band; None while it has not come."""
        return None if self.final is None else self.low <= self.final <= self.high


def number(row: Row, key: str) -> float:
    """A value of a trainer's line; NaN where it is missing or no number."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else nan


def name(record: Record) -> str:
    return record.info.name if record.info else record.rundir.root.name


def planned(record: Record) -> int:
    """Step at which the run ends; without a `run.json` the last step known."""
    if record.info:
        return record.info.planned_steps
    return record.observed.planned_steps if record.observed else step_now(record)


def step_now(record: Record) -> int:
    """The step in force."""
    if record.steps:
        return int(record.steps[-1]["step"])
    if record.observed:
        return record.observed.step
    return next((look.step for look in reversed(record.looks) if look.step is not None), 0)


def branch_now(record: Record) -> int:
    if record.steps:
        return int(record.steps[-1].get("branch") or 0)
    return record.observed.branch if record.observed else record.looks[-1].branch if record.looks else 0


def ended(record: Record) -> bool:
    """The trainer said that it stops, and has not started again since."""
    for event in reversed(record.events):
        if event.get("event") in ("end", "stop"):
            return True
        if event.get("event") in ("start", "resume"):
            return False
    return record.observed is not None and record.observed.phase is Phase.stopped


def finished(record: Record) -> bool:
    """The run came to its planned end."""
    return ended(record) and 0 < planned(record) <= step_now(record)


def policy_of(record: Record) -> Policy | None:
    """The policy in force; None where there was no controller."""
    return _policy(record.policy_text) if record.policy_text else None


@lru_cache(maxsize=8)
def _policy(text: str) -> Policy | None:
    try:
        return parse(text, Policy)
    except FileError:
        return None  # written by another version: the text is still shown


def heldout(record: Record) -> list[dict[str, Any]]:
    """Evaluations of the set that the forecast is about, in order of writing; the first set seen without a policy."""
    policy = policy_of(record)
    sets = [row.get("dataset") for row in record.evals]
    wanted = policy.forecast.dataset if policy and policy.forecast.dataset in sets else sets[0] if sets else None
    return [r for r in record.evals if r.get("dataset") == wanted and isfinite(number(r, "pass_ratio"))]


def forks(record: Record) -> list[Fork]:
    """Every rollback: as the trainer wrote it down, else as its steps or the looks of the controller show it."""
    if record.steps:
        seen = [(int(r.get("branch") or 0), int(r["step"]), number(r, "time")) for r in record.steps]
    else:
        seen = [(look.branch, look.step, look.at) for look in record.looks if look.step is not None]
    found = {}
    for (branch, step, _), (new, first, at) in pairwise(seen):
        if new > branch:
            found[new] = Fork(new, step, max(0, first - 1), at)
    for event in record.events:  # there before the first step of the new branch is, and exact
        if event.get("event") == "rollback" and isfinite(number(event, "from_step")):
            fork = Fork(int(event["branch"]), int(event["from_step"]), int(event["step"]), number(event, "time"))
            found[fork.branch] = fork
    return [found[branch] for branch in sorted(found)]


def in_force(record: Record, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that lead to the weights in force: what an abandoned branch did after its fork is left out."""
    ends = [(fork.branch, fork.to_step) for fork in forks(record)]
    kept = [r for r in rows if all((r.get("branch") or 0) >= branch or r["step"] <= end for branch, end in ends)]
    return record.lineage(kept)


def abandoned(record: Record, rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The other rows, in stretches; each begins with the row from which it went its own way."""
    kept = {id(row) for row in in_force(record, rows)}
    stretches: list[list[dict[str, Any]]] = []
    for before, row in zip([None, *rows], rows, strict=False):
        if id(row) in kept:
            continue
        if before is None or id(before) in kept or row["step"] <= before["step"]:
            stretches.append([before] if before is not None and before["step"] < row["step"] else [])
        stretches[-1].append(row)
    return stretches


def episodes(record: Record) -> list[Episode]:
    """Every trouble of the run, in order."""
    rollbacks = forks(record)
    found = []
    falls = _falls(record)
    for branch in sorted({fall[0] for fall in falls} | {fork.branch - 1 for fork in rollbacks}):
        fall = next((f for f in falls if f[0] == branch), None)
        fork = next((f for f in rollbacks if f.branch == branch + 1), None)
        onset = fall[1] - 1 if fall else fork.to_step if fork else 0
        before = [r for r in heldout(record) if (r.get("branch") or 0) <= branch and r["step"] <= onset]
        # The highest, not the last: the last evaluation before a collapse is seen may already be part of it.
        former = max((number(r, "pass_ratio") for r in before), default=nan)
        recovered = _recovered(record, former, branch, fall[1] if fall else onset, fork)
        found.append(Episode(fall[1] if fall else None, fall[2] if fall else nan, fork, former, recovered))
    return found


def _falls(record: Record) -> list[tuple[int, int, float]]:
    """(branch, step, lowest) of each collapse: at most one per branch."""
    rows, level_of, fall_of = (record.steps, _LEVEL, _FALL) if record.steps else (heldout(record), 1, 1)
    found: list[tuple[int, int, float]] = []
    level, recent, branch = 0.0, deque[tuple[int, float]](maxlen=level_of), 0
    for row in rows:
        value = number(row, "pass_ratio")
        if (row.get("branch") or 0) != branch:
            branch = row.get("branch") or 0
            recent.clear()
        if not isfinite(value):
            continue
        recent.append((int(row["step"]), value))
        if found and found[-1][0] == branch:
            found[-1] = (branch, found[-1][1], min(found[-1][2], value))
            continue
        last = list(recent)[-fall_of:]
        mean = sum(v for _, v in last) / len(last)
        if len(last) == fall_of and level >= _LOWEST_LEVEL and mean <= level / 2:
            first = next((s for s, v in last if v <= level / 2), last[-1][0])
            found.append((branch, first, min(v for _, v in last)))
        elif len(recent) == level_of:
            level = max(level, sum(v for _, v in recent) / level_of)
    return found


def _recovered(record: Record, former: float, branch: int, since: int, fork: Fork | None) -> int | None:
    for row in in_force(record, heldout(record)):
        later = (row.get("branch") or 0) > branch if fork else row["step"] > since
        if later and number(row, "pass_ratio") >= former - RECOVERED_WITHIN:
            return int(row["step"])
    return None


def said(record: Record) -> list[Look]:
    """Looks at which the controller had something new to say: not nothing, and not what it said just before."""
    new, before = [], None
    for look in record.looks:
        now = (look.decision.kind, look.decision.rule, look.decision.rule is None and look.decision.reason)
        if look.decision.kind is not Kind.nothing and now != before:
            new.append(look)
        before = now
    return new


def band_by_step(record: Record, view: ForecastView) -> list[tuple[float, float, float, float]]:
    """(step, q10, q50, q90) of a forecast: its compute axis laid over the steps that were left."""
    span, left = view.budget - view.compute, planned(record) - view.step
    if span <= 0 or left <= 0:
        return []
    rows = [(view.step + (c - view.compute) / span * left, low, mid, high) for c, low, mid, high in view.band]
    return [row for row in rows if all(map(isfinite, row))]


def check_forecast(record: Record, view: ForecastView) -> ForecastCheck:
    """Hold a forecast against the evaluations that came after it, on the weights in force."""
    band = band_by_step(record, view)
    later = [r for r in in_force(record, heldout(record)) if r["step"] > view.step]
    inside = 0
    if band:
        steps, lows, _, highs = (list(column) for column in zip(*band, strict=True))
        for row in later:
            low, high = np.interp(row["step"], steps, lows), np.interp(row["step"], steps, highs)
            inside += bool(low <= number(row, "pass_ratio") <= high)
    low, middle, high = (view.quantiles.get(q, nan) for q in ("0.1", "0.5", "0.9"))
    came = later and later[-1]["step"] >= planned(record)
    final = number(later[-1], "pass_ratio") if came else None
    return ForecastCheck(view, low, middle, high, final, inside, len(later))


def vital(record: Record, key: str) -> float:
    """The newest finite value of a column of the trainer's lines; NaN without one."""
    return next((v for r in reversed(record.steps) if isfinite(v := number(r, key))), nan)


def last_seen(record: Record) -> float:
    """Unix seconds of the last sign of life of the trainer; NaN without one."""
    times = [number(r, "time") for r in (*record.steps[-1:], *record.evals[-1:], *record.events[-1:])]
    times += [record.observed.written_at] if record.observed else []
    return max((t for t in times if isfinite(t)), default=nan)


def elapsed(record: Record, now: float) -> float:
    """Seconds since the run was created."""
    times = [record.info.created_at] if record.info else [number(r, "time") for r in record.steps[:1]]
    times += [look.at for look in record.looks[:1]]
    return now - times[0] if times else nan


def seconds_per_step(record: Record) -> float:
    """Median wall time of the last steps, evaluation included; NaN before two steps."""
    times = [number(r, "time") for r in record.steps[-31:]]
    gaps = [b - a for a, b in pairwise(times) if isfinite(b - a)]
    return float(np.mean(gaps)) if gaps else nan


def seconds_left(record: Record) -> float:
    """Wall time to the planned end at the present pace; NaN where it is not known."""
    return max(0, planned(record) - step_now(record)) * seconds_per_step(record)


def counts(looks: Iterable[Look]) -> list[tuple[str, int]]:
    """How often each kind of decision was made, in the order of the ladder; kinds that never came are left out."""
    kinds = [look.decision.kind for look in looks]
    return [(kind.value, kinds.count(kind)) for kind in Kind if kind in kinds]
