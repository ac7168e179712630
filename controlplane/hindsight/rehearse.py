"""The policy on a recorded run. Nothing recorded can be changed any more, so every action is asked for and none is made.

After the first action the rest of the record is what the controller would have spared the run; it is judged on, because
a policy must also be seen to keep telling.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.contract.documents import Action
from controlplane.decide import Change, Evaluator, ForecastView, Kind
from controlplane.detect import Finding, Outcome, Reading
from controlplane.detect.signals import readings
from controlplane.hindsight.frames import Frame
from controlplane.policy import Autonomy, Policy
from controlplane.policy.signals import Signal
from controlplane.recorded import Table

ASSUMED_GROUP = 16
"""Completions per prompt where a log does not tell."""


@dataclass(frozen=True)
class Said:
    """Something that a person or the trainer would have heard."""

    step: int
    verb: str
    """page, advise, or what autonomy would have made of a change: act, or only observe."""
    rule: str
    reason: str
    change: Change | None = None
    onset: int | None = None

    @property
    def rolls_back(self) -> bool:
        return self.verb == "act" and self.change is not None and self.change.action is Action.rollback


@dataclass(frozen=True)
class Hindsight:
    """What a policy made of a run."""

    policy: Policy
    said: tuple[Said, ...]
    alarms: dict[str, list[tuple[int, int]]]
    """Detector -> (first, last) step of each stretch in which it was in alarm."""
    readings: dict[str, list[Reading]]
    """Signal -> what its detectors were given."""
    first_alarm: dict[str, tuple[int, Finding]]
    """Detector -> step and finding of its first alarm."""
    forecast: ForecastView | None
    """The last one."""

    @property
    def acts(self) -> tuple[Said, ...]:
        return tuple(each for each in self.said if each.verb == "act")


def fitted(policy: Policy, table: Table) -> tuple[Policy, list[str]]:
    """The policy as far as a log can carry it, and what was assumed or must be left out for that."""
    notes = [f"signal {name} has a query of its own, which no log can answer" for name in policy.queries]
    known = policy.signals.get("truncation")
    if table.known("truncation") and not table.known("zero_variance") and not (known and known.group_size):
        notes.append(f"completions per prompt are unknown: {ASSUMED_GROUP} assumed")
        grouped = (known or Signal()).model_copy(update={"group_size": ASSUMED_GROUP})
        policy = policy.model_copy(update={"signals": {**policy.signals, "truncation": grouped}})
    return policy, notes


def rehearse(frames: Sequence[Frame], policy: Policy) -> Hindsight:
    """Judge the looks of a recorded run in order. Pure."""
    evaluator = Evaluator(policy.capped(Autonomy.advise))
    said: list[Said] = []
    alarms: dict[str, list[tuple[int, int]]] = {}
    seen: dict[str, list[Reading]] = {}
    first: dict[str, tuple[int, Finding]] = {}
    standing: set[str] = set()
    before = None
    for frame in frames:
        judgement, decision = evaluator.look(frame.snapshot)
        for name, reading in readings(before, frame.snapshot).items():
            seen.setdefault(name, []).append(reading)
        before = frame.snapshot
        step = judgement.step if judgement.step is not None else 0
        breached = {name for name, finding in judgement.findings.items() if finding.outcome is Outcome.breach}
        for name in sorted(breached):
            stretches = alarms.setdefault(name, [])
            if name in standing:
                stretches[-1] = (stretches[-1][0], step)
            else:
                stretches.append((step, step))
                first.setdefault(name, (step, judgement.findings[name]))
        standing = breached
        if decision.kind in (Kind.page, Kind.advise, Kind.observe):
            verb = decision.kind.value
            if decision.change is not None:
                verb = _verb(policy, decision.rule)
            said.append(Said(step, verb, decision.rule or "", decision.reason, decision.change, decision.onset))
    return Hindsight(policy, tuple(said), alarms, seen, first, evaluator.forecast)


def _verb(policy: Policy, rule: str | None) -> str:
    """How far the policy itself would have gone with a rule."""
    found = next((each for each in policy.rules if each.name == rule), None)
    level = policy.allows(found.then.families) if found is not None else Autonomy.advise
    return level.name
