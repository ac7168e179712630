"""The controller's own metrics: what it may do, what it looked at, what it decided, where it thinks the run will end."""

import json
import time
from math import nan

from controlplane.agent.exposition import Store
from controlplane.contract.documents import AckState
from controlplane.contract.metrics import CONTROLLER
from controlplane.contract.rundir import RunDir, write_atomic
from controlplane.decide import STALE, Decision, ForecastView, Judgement, Kind, Standing, episodes
from controlplane.detect import Outcome
from controlplane.policy import Autonomy, Policy, Rule
from controlplane.policy.models import TUNING
from controlplane.snapshot import Snapshot

REFUSED = "refused"
"""Stands for the rule in the count of pages about an action that the trainer did not carry out."""


def _action(rule: Rule) -> str:
    if rule.then.rollback:
        return "rollback"
    return "tune" if rule.then.families else "advise" if rule.then.advise else "page"


_TOLD = frozenset({"page", "advise"})
"""Actions that change nothing in the run."""


def _results(policy: Policy, rule: Rule) -> tuple[str, ...]:
    """What can become of a rule: as far as its autonomy goes, a person's approval, or a page when its limits are used up."""
    return tuple({policy.allows(rule.then.families).name: 0, "advise": 0, "page": 0})


class Telemetry:
    """Exports the controller's metrics on loopback and writes the file_sd target for Prometheus."""

    def __init__(self, rundir: RunDir, policy: Policy, policy_hash: str, run: str, port: int = 0) -> None:
        self._store = Store(CONTROLLER)
        self._rundir = rundir
        self._told: dict[str, tuple[int, int]] = {}
        # Beside the rules of the policy, a person is told of data that cannot be used and of actions that were refused.
        self._actions = {STALE: "page", REFUSED: "page", **{rule.name: _action(rule) for rule in policy.rules}}
        if policy.tuning is not None:
            self._actions[TUNING] = "probe"
        self._policy, self._sent = policy, dict[str, tuple[str, float]]()
        store = self._store
        with store.update():
            store.set("rl_controller_start_timestamp_seconds", time.time())
            store.info("rl_policy_info", name=policy.name, hash=policy_hash)
            store.state("rl_controller_mode", max(policy.autonomy.values(), default=Autonomy.observe).name)
            if policy.forecast.target is not None:
                store.set("rl_forecast_target_pass_ratio", policy.forecast.target)
            for action in {*self._actions.values()} - _TOLD:
                store.observe_many("rl_controller_action_seconds", (), action=action)
            results = {TUNING: ("act",), **{rule.name: _results(policy, rule) for rule in policy.rules}}
            for name, action in self._actions.items():
                for result in (action,) if action in _TOLD else results[name]:
                    store.inc("rl_controller_decisions_total", 0, rule=name, action=action, result=result)
        self.port = store.serve("127.0.0.1", port)
        labels = {"job": "scalerl-controller", "run": run}
        target = [{"targets": [f"127.0.0.1:{self.port}"], "labels": labels}]
        write_atomic(rundir.controller_target, json.dumps(target))

    def record(
        self, snapshot: Snapshot, judgement: Judgement, decision: Decision, standing: Standing, seconds: float
    ) -> None:
        """Take over one look; `standing` is the one after the decision, `seconds` what judging and deciding took."""
        store = self._store
        with store.update():
            store.set("rl_controller_last_evaluation_timestamp_seconds", snapshot.at)
            store.observe_many("rl_controller_evaluation_seconds", [seconds])
            age = snapshot.at - snapshot.sampled_at if snapshot.sampled_at is not None else nan
            store.set("rl_controller_sample_age_seconds", age)
            store.set("rl_controller_blind_seconds", judgement.blind_seconds if judgement.stale else 0.0)
            if snapshot.sampled_at is None:
                store.inc("rl_controller_source_errors_total", origin="metrics")
            if snapshot.observed is None:
                store.inc("rl_controller_source_errors_total", origin="observed")
            else:
                store.set("rl_controller_rollbacks_remaining", snapshot.observed.rollbacks_left)
            for name, finding in judgement.findings.items():
                store.set("rl_controller_detector_active", float(finding.outcome is Outcome.breach), detector=name)
                store.set("rl_controller_detector_value", finding.statistic, detector=name)
                store.set("rl_policy_threshold", finding.threshold, detector=name)
            rule = REFUSED if decision.kind is Kind.page and decision.rule is None else decision.rule
            if rule is not None and decision.kind not in (Kind.verdict, Kind.hold):
                labels = {"rule": rule, "action": self._actions[rule], "result": decision.kind.value}
                store.inc("rl_controller_decisions_total", **labels)
            self._rules(judgement, standing)
            self._answers(snapshot, decision)
            for curve, view in judgement.forecasts.items():
                if (newest := (view.branch, view.step)) != self._told.get(curve):
                    self._told[curve] = newest
                    self._forecast(curve, view, snapshot.at)

    def _rules(self, judgement: Judgement, standing: Standing) -> None:
        """What holds, and what the limits of the policy still allow."""
        store, troubled = self._store, episodes(self._policy, judgement)
        store.set("rl_controller_rule_active", float(STALE in troubled), rule=STALE)
        for rule in self._policy.rules:
            acted = standing.acted.get(rule.name, ())
            store.set("rl_controller_rule_active", float(rule.name in troubled), rule=rule.name)
            if self._actions[rule.name] in _TOLD:
                continue
            store.set("rl_controller_rule_actions_remaining", rule.limits.max_per_run - len(acted), rule=rule.name)
            wait = acted[-1] + rule.limits.cooldown_steps - standing.progress if acted else 0
            store.set("rl_controller_rule_cooldown_steps", max(0, wait), rule=rule.name)

    def _answers(self, snapshot: Snapshot, decision: Decision) -> None:
        """How long the trainer took to answer, and what an action turned out to be worth."""
        store = self._store
        if decision.kind is Kind.verdict:
            store.inc("rl_controller_verdicts_total", helped="true" if decision.helped else "false")
        if decision.kind is Kind.act and decision.decision_id and decision.rule:
            self._sent[decision.decision_id] = self._actions[decision.rule], snapshot.at
        ack = snapshot.observed.last_ack if snapshot.observed else None
        if ack and ack.state is not AckState.accepted and (sent := self._sent.pop(ack.decision_id, None)):
            store.observe_many("rl_controller_action_seconds", [snapshot.at - sent[1]], action=sent[0])

    def _forecast(self, curve: str, view: ForecastView, at: float) -> None:
        store = self._store
        store.set("rl_fit_points", view.points, curve=curve)
        store.set("rl_forecast_refused", float(view.refused), curve=curve)
        axis = self._policy.forecast.axis
        store.set("rl_forecast_compute", view.compute, curve=curve, axis=axis, at="now")
        store.set("rl_forecast_compute", view.budget, curve=curve, axis=axis, at="end")
        if not view.refused:
            store.set("rl_fit_last_success_timestamp_seconds", at, curve=curve)
        for q, value in view.quantiles.items():
            # A refused forecast is a bound, not a forecast: no number that an alert could take for one.
            store.set("rl_forecast_pass_ratio", nan if view.refused else value, curve=curve, q=q)
        if view.target_probability is not None:
            probability = nan if view.refused else view.target_probability
            store.set("rl_forecast_target_probability", probability, curve=curve)
        store.set("rl_forecast_scored_evaluations", view.scored, curve=curve)
        for nominal, share in view.coverage.items():
            store.set("rl_forecast_coverage_ratio", share, curve=curve, nominal=nominal)
        for name, values in view.parameters.items():
            for q, value in zip(("0.1", "0.5", "0.9"), values, strict=True):
                store.set("rl_fit_parameter", value, curve=curve, parameter=name, q=q)

    def told(self, channel: str, result: str) -> None:
        """What became of a notice to others; from any thread."""
        self._store.inc("rl_controller_notices_total", channel=channel, result=result)

    def close(self) -> None:
        """Stop exporting; the target goes away with it, so that Prometheus does not page for a controller that ended well."""
        target = self._rundir.controller_target
        if target.exists() and f'127.0.0.1:{self.port}"' in target.read_text():  # not that of one who has taken over
            target.unlink(missing_ok=True)
        self._store.close()
