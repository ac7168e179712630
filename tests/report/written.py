"""Run directories as a trainer and a real controller write them: learning, a fault, a collapse, a rollback, recovery.

The trainer is a curve with noise; the controller, its journal, detectors and forecasts are the real ones.
"""

import json
from math import exp, nan
from pathlib import Path
from typing import Any

import numpy as np

from controlplane.contract.documents import Ack, AckState, Health, Observed, Phase
from controlplane.contract.rundir import RunDir, RunInfo, append_line, write_atomic
from controlplane.contract.yamlfile import parse
from controlplane.decide import Kind
from controlplane.journal import Journal
from controlplane.loop import Controller
from controlplane.policy import Policy
from controlplane.policy.load import find
from controlplane.policy.models import Autonomy
from controlplane.sources.base import Sample
from tests.looks import Run

START = 1_760_000_000.0
N, LIMIT, PLANNED = 256, 64, 250


class Trainer:
    """One run; `write` writes it to its end or to step `until`. `fault_at` multiplies the learning rate by ten there."""

    def __init__(self, root: Path, name: str = "demo", fault_at: int | None = 110, seed: int = 0) -> None:
        self.dir, self.fault_at, self.rng = RunDir(root), fault_at, np.random.default_rng(seed)
        self.seen = Run(seed=seed, at=START, planned=PLANNED)
        self.at, self.steps_in_fault, self.fault = START, 0, False
        self.controller: Controller | None = None
        root.mkdir(parents=True)
        write_atomic(self.dir.key, "00" * 32)
        info = RunInfo(
            run_uid="run",
            name=name,
            created_at=START - 3,
            planned_steps=PLANNED,
            config_hash="c0ffee",
            framework="torch",
            algorithm="ScaleRL",
            model="tiny-qwen3",
        )
        write_atomic(self.dir.info, info.model_dump_json())
        self._event("start")

    def attach(self, at_most: Autonomy = Autonomy.act) -> None:
        """A controller with the policy of the demo."""
        file, text = find("demo")
        policy: Policy = parse(text, Policy, file).capped(at_most)
        self._observed()
        journal = Journal(self.dir.journal)
        self.controller = Controller(self.dir, policy, text, self, journal, clock=lambda: self.at + 0.05)
        self.controller.attach()

    def read(self, _series: Any) -> Sample:
        snapshot = self.seen.look()
        return Sample(at=self.at, values=snapshot.metrics)

    def write(self, until: int = PLANNED, steps: bool = True, evals: bool = True, broken: bool = False) -> Path:
        """`steps` and `evals` say which of its own files the trainer writes; `broken` puts NaN into them."""
        if evals:
            self._evaluate(broken)
        while self.seen.step < until:
            self._step(steps, broken)
            if evals and self.seen.step % 10 == 0:
                self._evaluate(broken)
            if self.seen.step % 10 == 0:
                self.seen.checkpoint(Health.fresh if self.steps_in_fault else Health.good)
                self._event("checkpoint")
            self._observed()
            self._look()
        if until >= PLANNED:
            self._event("end")
            self._observed(Phase.stopped)
            self._look()
        return self.dir.root

    def _skill(self) -> float:
        learnt = 0.12 + 0.83 / (1 + (24 / max(self.seen.step, 0.1)) ** 1.8)
        return learnt * exp(-0.32 * max(0, self.steps_in_fault - 1)) + 0.01

    def _step(self, write: bool, broken: bool) -> None:
        if self.seen.step + 1 == self.fault_at and self.seen.branch == 0:
            self.fault = True
            self._event("fault", factor=10)
        self.steps_in_fault += self.fault
        sick = min(self.steps_in_fault, 12) / 12
        skill, self.at = self._skill(), self.at + 0.35 + 0.05 * self.rng.random()
        grad = 0.42 * exp(self.rng.normal(0, 0.2)) * (1 + 9 * sick)
        cut = min(0.9, max(0.0, 0.1 * exp(-self.seen.step / 15) + 0.8 * sick**2 + self.rng.normal(0, 0.004)))
        self.seen.at = self.at
        self.seen.advance(skill, grad, cut, 0.25 + 0.6 * sick)
        self.seen.at = self.at
        row = {
            "step": self.seen.step, "branch": self.seen.branch, "time": self.at,
            "pass_ratio": self.rng.binomial(N, skill) / N, "n": N, "loss": -0.04 * (1 - sick) + 0.01 * self.rng.normal(),
            "grad_norm": nan if broken and self.seen.step % 7 == 0 else grad,
            "lr": 1e-4 * min(1, self.seen.step / 10) * self.seen.lr_scale * (10 if self.fault else 1),
            "lr_scale": self.seen.lr_scale, "truncated": cut, "mean_length": 38 + 26 * cut + self.rng.normal(0, 1.5),
            "entropy": 0.25 * exp(-self.seen.step / 25) + 0.018 + 0.5 * sick, "mismatch_kl": 1e-9, "ratio_max": 1.00001,
            "zero_variance": 0.25 + 0.6 * sick, "staleness_max": int(self.rng.integers(0, 2)), "seconds": 0.37,
            "compute": self.seen.step * 0.37, "utilization": 0.85 + 0.05 * self.rng.random(), "skipped": None,
        }  # fmt: skip
        if write:
            append_line(self.dir.steps, row)

    def _evaluate(self, broken: bool) -> None:
        value = nan if broken and self.seen.step % 20 == 0 else float(self.rng.binomial(1024, self._skill())) / 1024
        self.seen.evaluate(value)
        row = {
            "dataset": "heldout", "step": self.seen.step, "branch": self.seen.branch, "compute": self.seen.step * 0.37,
            "prompts": 256, "k": 4, "pass_ratio": value, "pass_at_k": min(1.0, value * 1.05), "mean_length": 38.0,
            "truncated_ratio": 0.01, "seconds": 0.8, "time": self.at,
        }  # fmt: skip
        append_line(self.dir.evals, row)

    def _look(self) -> None:
        if self.controller is None:
            return
        _, decision = self.controller.tick()
        if decision.kind is not Kind.act or decision.change is None or decision.change.target is None:
            return
        self.seen.restore(decision.change.target.step)
        self.seen.lr_scale = decision.change.set["lr_scale"].value or 1.0
        self.seen.applied_generation = decision.generation or 0
        self.seen.last_ack = Ack(
            decision_id=decision.decision_id or "", generation=decision.generation or 0, state=AckState.applied,
            at_step=decision.step or 0, readback={"lr_scale": self.seen.lr_scale},
        )  # fmt: skip
        self.fault, self.steps_in_fault = False, 0
        self.at += 1.2
        self._event("rollback", reason=decision.reason, from_step=decision.step)

    def _observed(self, phase: Phase = Phase.training) -> None:
        observed: Observed = self.seen.observed(phase)
        write_atomic(self.dir.observed, observed.model_dump_json())

    def _event(self, event: str, **more: Any) -> None:
        row = {"event": event, "step": self.seen.step, "branch": self.seen.branch, "time": self.at, **more}
        append_line(self.dir.events, json.loads(json.dumps(row)))


def write_run(root: Path, kind: str) -> Path:
    """One of the runs that pictures and tests are made from."""
    if kind == "empty":
        return root
    trainer = Trainer(root, name=f"demo-{kind}", fault_at=None if kind == "undisturbed" else 110)
    if kind not in ("alone", "started"):
        trainer.attach(Autonomy.observe if kind == "observe" else Autonomy.act)
    until = {"started": 0, "young": 64, "collapsed": 117, "recovering": 125}.get(kind, PLANNED)
    return trainer.write(until, kind != "foreign", kind not in ("foreign", "unevaluated"), kind == "broken")


KINDS = (
    "empty", "started", "young", "collapsed", "recovering", "act", "observe", "undisturbed", "alone", "foreign",
    "unevaluated", "broken",
)  # fmt: skip
