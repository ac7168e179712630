"""Everything that one decision is made from, and the short way to say one."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

from controlplane.contract.documents import Observed
from controlplane.decide.decision import Decision, Kind
from controlplane.decide.judgement import Judgement
from controlplane.decide.standing import Standing
from controlplane.detect import Finding, Outcome
from controlplane.policy.models import Policy, Rule
from controlplane.snapshot import Snapshot


@dataclass(frozen=True)
class Situation:
    """Policy, look, what the look means, and what earlier ones left behind."""

    policy: Policy
    snapshot: Snapshot
    judgement: Judgement
    standing: Standing

    @property
    def observed(self) -> Observed:
        """The trainer's own word; the first gates see to it that there is one."""
        assert self.snapshot.observed is not None
        return self.snapshot.observed

    @property
    def step(self) -> int:
        return self.judgement.step or 0

    def say(self, kind: Kind, reason: str, rule: Rule | str | None = None, **more: Any) -> Decision:
        """A decision about this look."""
        name = rule.name if isinstance(rule, Rule) else rule
        return Decision(
            kind=kind, reason=reason, step=self.judgement.step, branch=self.judgement.branch, rule=name, **more
        )

    def finding(self, detector: str) -> Finding:
        return self.judgement.findings[detector]

    def breached(self, detector: str) -> bool:
        return self.finding(detector).outcome is Outcome.breach

    def recent(self, rule: Rule) -> list[str]:
        """Detectors of `any` that are or were in alarm not long ago, and whose alarm is new."""
        when, since, began = rule.when, self.judgement.since_breach, self.judgement.since_began
        return [
            name
            for name in when.any
            if since.get(name, when.within_steps + 1) <= when.within_steps and began.get(name, 0) <= when.fresh_steps
        ]

    def holds(self, rule: Rule) -> bool:
        """Whether the keys of a rule are all there."""
        return self.first_key(rule) and (not rule.when.any or bool(self.recent(rule)))

    def first_key(self, rule: Rule) -> bool:
        """Whether all of `all` are in alarm."""
        return all(self.breached(name) for name in rule.when.all)

    def keys(self, rule: Rule) -> list[str]:
        """Detectors that made the rule hold."""
        return [*rule.when.all, *self.recent(rule)]

    def why(self, rule: Rule) -> str:
        """The keys in words."""
        return "; ".join(self._evidence(name) for name in self.keys(rule))

    def onset(self, rule: Rule) -> int:
        """Step at which the trouble of a rule is thought to have begun: the earliest that a key names, or now."""
        onsets = (self.finding(name).onset for name in self.keys(rule))
        return min((step for step in onsets if step is not None), default=self.step)

    @property
    def statistics(self) -> dict[str, float]:
        """What every detector compares with its threshold."""
        return {n: f.statistic for n, f in self.judgement.findings.items() if isfinite(f.statistic)}

    def _evidence(self, name: str) -> str:
        ago = self.judgement.since_breach.get(name, 0)
        return f"{name}: {self.finding(name).detail}" if not ago else f"{name}: in alarm {ago} steps ago"
