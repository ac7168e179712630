"""The fold over snapshots: detectors, forecast and standing move on by one look, then `decide` is asked.

Everything the controller knows is a function of the snapshots in the journal. A restarted controller feeds them through
`recall` and stands where the old one stood; a replay feeds them through `look` and must get the same decisions.
"""

from collections import deque
from dataclasses import replace
from math import isfinite, nan
from statistics import median

from controlplane.decide.decision import Decision
from controlplane.decide.expectation import gain_per_step, of_evaluation
from controlplane.decide.judgement import ForecastView, Judgement
from controlplane.decide.outlook import Outlooks
from controlplane.decide.panel import Panel, Presence
from controlplane.decide.rules import decide, episodes
from controlplane.decide.standing import Standing
from controlplane.detect import MISS_PROBABILITY, Finding, Outcome, Reading, Totals
from controlplane.detect.signals import difference, queried
from controlplane.policy.models import Policy, Stall
from controlplane.snapshot import Snapshot

RECENT = 256  # readings kept for verdicts
_TIMED = 64  # steps whose duration and compute are remembered


class Evaluator:
    """Holds the state of one run's evaluation. Deterministic: no clock, no randomness, no I/O."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.standing = Standing()
        self._outlook = Outlooks(policy.forecast)
        self._panel, self._presence = Panel(policy), Presence(policy)
        self._queried = {name: policy.signal(name) for name in policy.queries}
        self._stalls = {name: config for name, config in policy.detectors.items() if isinstance(config, Stall)}
        self._before: Totals | None = None
        self._seen_at: float | None = None
        self._step: int | None = None
        self._grace_until = 0
        self._recent: deque[tuple[int, float, float]] = deque(maxlen=RECENT)
        self._step_seconds: deque[float] = deque(maxlen=_TIMED)
        self._step_compute: deque[float] = deque(maxlen=_TIMED)

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
        gain, expires = judgement.gain_per_step, self.policy.approval.expires_steps
        self.standing = self.standing.after(decision, self._reference(decision), gain, expires)
        self.standing = self.standing.quiet(episodes(self.policy, judgement))

    def _take_in(self, snapshot: Snapshot) -> Judgement:
        new_forecast = False
        if self._seen_at is None:
            self._seen_at = snapshot.at  # before the first sample, time counts from the first look
        if not (stale := self._stale(snapshot)):
            now = Totals.of(snapshot)
            self._seen_at = snapshot.sampled_at or snapshot.at
            self._move(snapshot)
            self._detect(now)
            new_forecast = self._forecast(snapshot)
            self._before = now
            stale = self._presence.absent(snapshot.at)
        self.standing = self.standing.heard(snapshot.observed, self.policy.verdict.after_steps)
        self._close_lost(snapshot)
        for name, config in self._stalls.items():
            self._panel.findings[name] = self._stalled(config, snapshot)
        self._panel.see_breaches(self.standing.progress)
        return Judgement(
            step=self._step,
            branch=self.standing.branch,
            findings=dict(self._panel.findings),
            since_breach=self._panel.since_breach(self.standing.progress),
            since_began=self._panel.since_began(self.standing.progress),
            stale=stale,
            blind_seconds=snapshot.at - self._seen_at,
            forecast=self._outlook.view,
            forecast_is_new=new_forecast,
            forecasts=self._outlook.views,
            recent=tuple(self._recent),
            gain_per_step=self._gain_per_step(),
        )

    def _stale(self, snapshot: Snapshot) -> str:
        if snapshot.observed is None or snapshot.sampled_at is None:
            return snapshot.errors[0] if snapshot.errors else "nothing could be read from the trainer"
        age = snapshot.at - snapshot.sampled_at
        limit = self.policy.freshness.max_age_seconds
        if age > limit:
            return f"the newest sample is {age:.0f} s old; the policy allows {limit:g} s"
        # A page whose step is gone says nothing about the run, and old findings must not be acted on beside it.
        gone = self._step is not None and not isfinite(snapshot.metrics.get("rl_trainer_global_step", nan))
        return "the metrics no longer say at which step the trainer is" if gone else ""

    def _move(self, snapshot: Snapshot) -> None:
        """Advance step, branch and progress; on a new branch rewind everything that judges."""
        step, branch = snapshot.metrics.get("rl_trainer_global_step"), snapshot.metrics.get("rl_trainer_branch")
        if step is None or branch is None or not isfinite(step) or not isfinite(branch):
            return
        now, old = int(step), self._step
        if int(branch) != self.standing.branch or (old is not None and now < old):
            # A smaller step on the same branch is a trainer that resumed from an older checkpoint: rewind alike.
            restored = min(now, self.standing.rollback_to if self.standing.rollback_to is not None else now)
            self._panel.rewind(restored)
            self._outlook.rewind(restored)
            progress = self.standing.progress + max(0, now - restored)
            self._grace_until = progress + self.policy.verdict.grace_steps
            self.standing = replace(self.standing, branch=int(branch), progress=progress)
        elif old is not None:
            self.standing = replace(self.standing, progress=self.standing.progress + now - old)
        self._step = now

    def _detect(self, now: Totals) -> None:
        new = difference(self._before, now) if self._before is not None else {}
        if not new or self._before is None or self._step is None:
            return
        self._time_step(self._before, now)
        new |= queried(self._queried, now.snapshot, self._step)
        self._presence.see(new, now.snapshot.at)
        if (passed := new.get("pass_rate")) is not None:
            self._recent.append((self.standing.progress, passed.value, passed.n))
            new["pass_rate"] = replace(passed, drift=self._gain_per_step())
        if self.standing.progress >= self._grace_until:
            self._panel.judge(new)

    def _forecast(self, snapshot: Snapshot) -> bool:
        """Take in a new evaluation: it is judged by the forecast before it, and makes a new one."""
        before, known = self._outlook.view, self._outlook.newest
        is_new = self._outlook.take_in(snapshot, self.standing.branch)
        point, view = self._outlook.newest, self._outlook.view
        if point is None or point is known or self.standing.progress < self._grace_until:
            return is_new
        if "eval_pass_rate" not in self._queried:
            expected, sd = of_evaluation(before, point.compute, point.prompts)
            reading = Reading(point.step, point.pass_rate, point.samples or nan, expected=expected, expected_sd=sd)
            self._panel.judge_one("eval_pass_rate", reading)
        if view is not None and view.target_probability is not None:
            miss = nan if view.refused else 1 - view.target_probability
            self._panel.judge_one(MISS_PROBABILITY, Reading(point.step, miss))
        return is_new

    def _gain_per_step(self) -> float:
        if self.policy.forecast.axis == "step":
            return gain_per_step(self._outlook.view, 1.0)
        return gain_per_step(self._outlook.view, median(self._step_compute)) if self._step_compute else 0.0

    def _time_step(self, before: Totals, now: Totals) -> None:
        """How long a step takes, and what it costs."""
        steps = now.sums.get("rl_trainer_steps_total", 0.0) - before.sums.get("rl_trainer_steps_total", 0.0)

        def grown(name: str) -> float:
            return now.snapshot.metrics.get(name, nan) - before.snapshot.metrics.get(name, nan)

        for name, kept in (
            ("rl_trainer_last_step_timestamp_seconds", self._step_seconds),
            ("rl_trainer_lineage_compute_gpu_seconds", self._step_compute),
        ):
            if steps > 0 and isfinite(amount := grown(name)) and amount > 0:
                kept.append(amount / steps)

    def _stalled(self, config: Stall, snapshot: Snapshot) -> Finding:
        last = snapshot.metrics.get("rl_trainer_last_step_timestamp_seconds", nan)
        if snapshot.observed is not None and snapshot.observed.standing_still:
            return Finding(Outcome.inconclusive, detail="arms of a probe are trained; the run stands still meanwhile")
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
