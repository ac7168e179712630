"""Snapshots as a trainer would give them, for tests of everything that judges."""

from dataclasses import dataclass, field

import numpy as np

from controlplane.contract.approvals import Approval, Order
from controlplane.contract.documents import (
    Ack,
    AckState,
    Action,
    CheckpointState,
    Health,
    Observed,
    Phase,
    TunableState,
)
from controlplane.decide import Decision
from controlplane.snapshot import Snapshot

BATCH = 128
GROUPS = 16


@dataclass
class Run:
    """A trainer as the controller sees it: counters that grow, gauges of the last step, an observed document."""

    seed: int = 0
    step: int = 0
    branch: int = 0
    at: float = 1_000_000.0
    incarnation: str = "one"
    lr_scale: float = 1.0
    planned: int = 250
    applied_generation: int = 0
    last_ack: Ack | None = None
    checkpoints: list[CheckpointState] = field(default_factory=list)
    rollbacks_left: int = 3
    tunables: dict[str, TunableState] = field(default_factory=dict)
    """Beside lr_scale."""
    actions: tuple[Action, ...] = tuple(Action)
    approvals: tuple[Approval, ...] = ()
    orders: tuple[Order, ...] = ()
    totals: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def advance(
        self,
        pass_rate: float = 0.8,
        grad_norm: float = 0.4,
        truncation: float = 0.0,
        zero: float = 0.2,
        nonfinite: bool = False,
        busy: float | None = None,
    ) -> Snapshot:
        """One step with noise around these values, and the look after it."""
        self.step, self.at = self.step + 1, self.at + 1.0
        passed = float(self.rng.binomial(BATCH, pass_rate))
        self._add('rl_rollout_samples_total{outcome="pass"}', passed)
        self._add('rl_rollout_samples_total{outcome="fail"}', BATCH - passed)
        self._add('rl_rollout_truncated_total{reason="length"}', float(self.rng.binomial(BATCH, truncation)))
        flat = float(self.rng.binomial(GROUPS, zero))
        self._add('rl_rollout_groups_total{signal="all_fail"}', flat)
        self._add('rl_rollout_groups_total{signal="mixed"}', GROUPS - flat)
        self._add("rl_trainer_steps_total", 1)
        for quantity in ("loss", "grad"):
            self._add(f'rl_trainer_nonfinite_total{{quantity="{quantity}"}}', float(nonfinite))
        self.gauges["rl_trainer_grad_norm"] = grad_norm * float(np.exp(self.rng.normal(0, 0.25)))
        if busy is not None:
            self.gauges['rl_trainer_utilization_ratio{role="process"}'] = busy
        return self.look()

    def carry_out(self, decision: Decision) -> None:
        """What a trainer does with an action: values in force, a rollback, an acknowledgement with what was read back."""
        assert decision.change is not None
        assert decision.decision_id is not None
        assert decision.generation is not None
        if decision.change.target is not None:
            self.restore(decision.change.target.step)
        for name, setting in decision.change.set.items():
            self.put(name, setting.resolve(self.value(name)))
        self.applied_generation = decision.generation
        self.last_ack = Ack(
            decision_id=decision.decision_id,
            generation=decision.generation,
            state=AckState.applied,
            at_step=self.step,
            readback={name: self.value(name) for name in decision.change.set},
        )

    def value(self, name: str) -> float:
        return self.lr_scale if name == "lr_scale" else self.tunables[name].value

    def put(self, name: str, value: float) -> None:
        if name == "lr_scale":
            self.lr_scale = value
        else:
            self.tunables[name] = self.tunables[name].model_copy(update={"value": value})

    def evaluate(self, pass_rate: float) -> None:
        """A held-out evaluation at the present step; seen in the next look."""
        self.gauges['rl_eval_pass_ratio{dataset="held_out",k="4"}'] = pass_rate
        self.gauges['rl_eval_prompts{dataset="held_out"}'] = 256
        self.gauges['rl_eval_last_step{dataset="held_out"}'] = self.step
        self.gauges['rl_eval_branch{dataset="held_out"}'] = self.branch
        self.gauges['rl_eval_compute_gpu_seconds{dataset="held_out"}'] = float(self.step)

    def checkpoint(self, health: Health = Health.good) -> None:
        state = CheckpointState(step=self.step, branch=self.branch, digest=f"d{self.step}-{self.branch}", health=health)
        self.checkpoints.append(state)

    def restore(self, step: int) -> None:
        """What a rollback does to everything the controller can see."""
        self.step, self.branch = step, self.branch + 1
        self.checkpoints = [
            c.model_copy(update={"health": Health.bad}) if c.step > step else c for c in self.checkpoints
        ]

    def look(self, phase: Phase = Phase.training) -> Snapshot:
        metrics = {
            **self.totals,
            **self.gauges,
            "rl_trainer_global_step": float(self.step),
            "rl_trainer_branch": float(self.branch),
            "rl_trainer_planned_steps": float(self.planned),
            "rl_trainer_last_step_timestamp_seconds": self.at,
            f'rl_trainer_incarnation_info{{uuid="{self.incarnation}"}}': 1.0,
        }
        return Snapshot(
            at=self.at + 0.1,
            sampled_at=self.at,
            metrics=metrics,
            observed=self.observed(phase),
            approvals=self.approvals,
            orders=self.orders,
        )

    def observed(self, phase: Phase = Phase.training) -> Observed:
        return Observed(
            run_uid="run",
            incarnation=self.incarnation,
            branch=self.branch,
            step=self.step,
            planned_steps=self.planned,
            compute=float(self.step),
            written_at=self.at,
            applied_generation=self.applied_generation,
            last_ack=self.last_ack,
            tunables={"lr_scale": TunableState(value=self.lr_scale, min=0.01, max=2.0), **self.tunables},
            actions=self.actions,
            rollbacks_left=self.rollbacks_left,
            checkpoints=tuple(self.checkpoints),
            phase=phase,
        )

    def _add(self, name: str, amount: float) -> None:
        self.totals[name] = self.totals.get(name, 0.0) + amount
