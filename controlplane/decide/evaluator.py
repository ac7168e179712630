"""The fold over snapshots: detectors, forecast and standing move on by one look, then `decide` is asked.

Everything the controller knows is a function of the snapshots in the journal. A restarted controller feeds them through
`recall` and stands where the old one stood; a replay feeds them through `look` and must get the same decisions.
"""

from collections import deque
from dataclasses import replace
from math import isfinite, nan

from controlplane.decide.decision import Decision
from controlplane.decide.judgement import ForecastView, Judgement
from controlplane.decide.outlook import Outlook
from controlplane.decide.rules import decide, episodes
from controlplane.decide.standing import Standing
from controlplane.detect import Detector, Finding, Outcome, build, readings
from controlplane.policy.models import Policy, Stall
from controlplane.snapshot import Snapshot, total

RECENT = 256  # readings kept for verdicts


class Evaluator:
    """Holds the state of one run's evaluation. Deterministic: no clock, no randomness, no I/O."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.standing = Standing()
        self._outlook = Outlook(policy.forecast)
        self._detectors: dict[str, Detector] = {
            n: d for n, c in policy.detectors.items() if (d := build(c)) is not None
        }
        self._findings = {name: Finding(Outcome.inconclusive, detail="no reading yet") for name in policy.detectors}
        self._breached_at: dict[str, int] = {}
        self._before: Snapshot | None = None
        self._seen_at: float | None = None
        self._step: int | None = None
        self._grace_until = 0
        self._recent: deque[tuple[int, float, float]] = deque(maxlen=RECENT)
        self._step_seconds: deque[float] = deque(maxlen=64)

    @property
    def forecast(self) -> ForecastView | None:
        """The newest forecast."""
        return self._outlook.view

    def look(self, snapshot: Snapshot) -> tuple[Judgement, Decision]:
        """Take in a snapshot and decide."""
        judgement = self._take_in(snapshot)
        decision = decide(self.policy, snapshot, judgement, self.standing)
        self._remember(decision, judgement)
        return judgement, decision

    def recall(self, snapshot: Snapshot, decision: Decision) -> None:
        """Take in a snapshot whose decision has already been made and journaled, perhaps under another policy."""
        self._remember(decision, self._take_in(snapshot))

    def _remember(self, decision: Decision, judgement: Judgement) -> None:
        self.standing = self.standing.after(decision, self._reference(decision))
        self.standing = self.standing.quiet(episodes(self.policy, judgement))

    def _take_in(self, snapshot: Snapshot) -> Judgement:
        new_forecast = False
        if self._seen_at is None:
            self._seen_at = snapshot.at  # before the first sample, time counts from the first look
        if not (stale := self._stale(snapshot)):
            self._seen_at = snapshot.sampled_at or snapshot.at
            self._move(snapshot)
            self._detect(snapshot)
            new_forecast = self._outlook.take_in(snapshot, self.standing.branch)
            self._before = snapshot
        self.standing = self.standing.heard(snapshot.observed, self.policy.verdict.after_steps)
        self._close_lost(snapshot)
        for name, config in self.policy.detectors.items():
            if isinstance(config, Stall):
                self._findings[name] = self._stalled(config, snapshot)
        progress = self.standing.progress
        self._breached_at |= {n: progress for n, f in self._findings.items() if f.outcome is Outcome.breach}
        return Judgement(
            step=self._step,
            branch=self.standing.branch,
            findings=dict(self._findings),
            since_breach={name: progress - at for name, at in self._breached_at.items()},
            stale=stale,
            blind_seconds=snapshot.at - self._seen_at,
            forecast=self._outlook.view,
            forecast_is_new=new_forecast,
            recent=tuple(self._recent),
        )

    def _stale(self, snapshot: Snapshot) -> str:
        if snapshot.observed is None or snapshot.sampled_at is None:
            return snapshot.errors[0] if snapshot.errors else "nothing could be read from the trainer"
        age = snapshot.at - snapshot.sampled_at
        limit = self.policy.freshness.max_age_seconds
        return f"the newest sample is {age:.0f} s old; the policy allows {limit:g} s" if age > limit else ""

    def _move(self, snapshot: Snapshot) -> None:
        """Advance step, branch and progress; on a new branch rewind everything that judges."""
        step, branch = snapshot.metrics.get("rl_trainer_global_step"), snapshot.metrics.get("rl_trainer_branch")
        if step is None or branch is None or not isfinite(step) or not isfinite(branch):
            return
        now, old = int(step), self._step
        if int(branch) != self.standing.branch or (old is not None and now < old):
            # A smaller step on the same branch is a trainer that resumed from an older checkpoint: rewind alike.
            restored = min(now, self.standing.rollback_to if self.standing.rollback_to is not None else now)
            for detector in self._detectors.values():
                detector.rewind(restored)
            self._findings = {
                n: Finding(Outcome.inconclusive, detail="starts again after a restore") for n in self._findings
            }
            self._breached_at.clear()
            self._outlook.rewind(restored)
            progress = self.standing.progress + max(0, now - restored)
            self._grace_until = progress + self.policy.verdict.grace_steps
            self.standing = replace(self.standing, branch=int(branch), progress=progress)
        elif old is not None:
            self.standing = replace(self.standing, progress=self.standing.progress + now - old)
        self._step = now

    def _detect(self, snapshot: Snapshot) -> None:
        new = readings(self._before, snapshot)
        if not new or self._before is None:
            return
        self._time_step(self._before, snapshot)
        if (passed := new.get("pass_rate")) is not None:
            self._recent.append((self.standing.progress, passed.value, passed.n))
        if self.standing.progress < self._grace_until:
            return
        for name, detector in self._detectors.items():
            config = self.policy.detectors[name]
            signal = getattr(config, "signal", "nonfinite_steps")
            if (reading := new.get(signal)) is not None:
                self._findings[name] = detector.update(reading)

    def _time_step(self, before: Snapshot, now: Snapshot) -> None:
        steps = (total(now.metrics, "rl_trainer_steps_total") or 0) - (
            total(before.metrics, "rl_trainer_steps_total") or 0
        )
        name = "rl_trainer_last_step_timestamp_seconds"
        seconds = now.metrics.get(name, nan) - before.metrics.get(name, nan)
        if steps > 0 and isfinite(seconds) and seconds > 0:
            self._step_seconds.append(seconds / steps)

    def _stalled(self, config: Stall, snapshot: Snapshot) -> Finding:
        last = snapshot.metrics.get("rl_trainer_last_step_timestamp_seconds", nan)
        if not isfinite(last) or not self._step_seconds:
            return Finding(Outcome.inconclusive, detail="no step timed yet")
        usual = sorted(self._step_seconds)[len(self._step_seconds) // 2]
        limit, waited = max(config.times * usual, config.seconds), snapshot.at - last
        outcome = Outcome.breach if waited > limit else Outcome.ok
        return Finding(outcome, waited, limit, self._step, f"no step for {waited:.0f} s, usual is {usual:.2g} s")

    def _close_lost(self, snapshot: Snapshot) -> None:
        pending, observed = self.standing.pending, snapshot.observed
        if pending is None or observed is None or pending.expires_at_step is None:
            return
        # The agent answers an expired document itself; this is for a trainer that restarted and never saw it.
        if observed.step > pending.expires_at_step + 5:
            self.standing = self.standing.lost()

    def _reference(self, decision: Decision) -> float:
        """Pass rate before the trouble that a decision answers: mean of the readings before its onset."""
        onset, step = decision.onset, self._step
        if onset is None or step is None:
            return nan
        until = self.standing.progress - (step - onset)
        before = [value for at, value, _ in self._recent if at <= until][-16:]
        return sum(before) / len(before) if before else nan
