"""The controller's own metrics: what it may do, what it looked at, what it decided, where it thinks the run will end."""

import json
from math import nan

from controlplane.agent.exposition import Store
from controlplane.contract.metrics import CONTROLLER
from controlplane.contract.rundir import RunDir, write_atomic
from controlplane.decide import STALE, Decision, ForecastView, Judgement, Kind
from controlplane.detect import Outcome
from controlplane.policy import Autonomy, Policy, Rule
from controlplane.snapshot import Snapshot

REFUSED = "refused"
"""Stands for the rule in the count of pages about an action that the trainer did not carry out."""


def _action(rule: Rule) -> str:
    return "rollback" if rule.then.rollback else "tune" if rule.then.families else "page"


class Telemetry:
    """Exports the controller's metrics on loopback and writes the file_sd target for Prometheus."""

    def __init__(self, rundir: RunDir, policy: Policy, policy_hash: str, run: str, port: int = 0) -> None:
        self._store = Store(CONTROLLER)
        self._rundir, self._curve = rundir, policy.forecast.dataset
        # Beside the rules of the policy, a person is told of data that cannot be used and of actions that were refused.
        self._actions = {STALE: "page", REFUSED: "page", **{rule.name: _action(rule) for rule in policy.rules}}
        store = self._store
        with store.update():
            store.info("rl_policy_info", name=policy.name, hash=policy_hash)
            store.state("rl_controller_mode", max(policy.autonomy.values(), default=Autonomy.observe).name)
            if policy.forecast.target is not None:
                store.set("rl_forecast_target_pass_ratio", policy.forecast.target)
            for rule, action in self._actions.items():
                for result in ("act", "advise", "observe", "page", "hold") if action != "page" else ("page", "hold"):
                    store.inc("rl_controller_decisions_total", 0, rule=rule, action=action, result=result)
        self.port = store.serve("127.0.0.1", port)
        labels = {"job": "scalerl-controller", "run": run}
        target = [{"targets": [f"127.0.0.1:{self.port}"], "labels": labels}]
        write_atomic(rundir.controller_target, json.dumps(target))

    def record(self, snapshot: Snapshot, judgement: Judgement, decision: Decision, seconds: float) -> None:
        """Take over one look."""
        store = self._store
        with store.update():
            store.set("rl_controller_last_evaluation_timestamp_seconds", snapshot.at)
            store.observe_many("rl_controller_evaluation_seconds", [seconds])
            age = snapshot.at - snapshot.sampled_at if snapshot.sampled_at is not None else nan
            store.set("rl_controller_sample_age_seconds", age)
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
            if rule is not None and decision.kind is not Kind.verdict:
                labels = {"rule": rule, "action": self._actions[rule], "result": decision.kind.value}
                store.inc("rl_controller_decisions_total", **labels)
            if judgement.forecast_is_new and judgement.forecast is not None:
                self._forecast(judgement.forecast)

    def _forecast(self, view: ForecastView) -> None:
        store, curve = self._store, self._curve
        store.set("rl_fit_points", view.points, curve=curve)
        store.set("rl_forecast_refused", float(view.refused), curve=curve)
        for q, value in view.quantiles.items():
            # A refused forecast is a bound, not a forecast: no number that an alert could take for one.
            store.set("rl_forecast_pass_ratio", nan if view.refused else value, curve=curve, q=q)
        if view.target_probability is not None:
            probability = nan if view.refused else view.target_probability
            store.set("rl_forecast_target_probability", probability, curve=curve)
        for name, values in view.parameters.items():
            for q, value in zip(("0.1", "0.5", "0.9"), values, strict=True):
                store.set("rl_fit_parameter", value, curve=curve, parameter=name, q=q)

    def close(self) -> None:
        """Stop exporting; the target goes away with it, so that Prometheus does not page for a controller that ended well."""
        self._rundir.controller_target.unlink(missing_ok=True)
        self._store.close()
