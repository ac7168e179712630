"""What the tests of the agent share: a mailbox in memory, documents, an agent without thread and server."""

from typing import Any

from controlplane.agent import Agent, BoundaryState, Bounds, GuardRails, read_key
from controlplane.contract.documents import Action, CheckpointState, Desired, Health, Observed, Setting
from controlplane.contract.reports import RolloutStats, StepReport
from controlplane.contract.rundir import RunDir, RunInfo

INFO = RunInfo(
    run_uid="run-1",
    name="tiny",
    created_at=0.0,
    planned_steps=100,
    config_hash="abc",
    framework="test",
    algorithm="cispo",
    model="none",
)
RAILS = GuardRails(
    bounds={"lr_scale": Bounds(min=0.1, max=4.0), "max_staleness": Bounds(min=0, max=16)},
    max_relative_change=2.0,
    cooldown_steps=0,
    max_rollbacks=2,
)
VALUES = {"lr_scale": 1.0, "max_staleness": 8.0}
GOOD = CheckpointState(step=3, branch=0, digest="good-3", health=Health.good)
FRESH = CheckpointState(step=6, branch=0, digest="fresh-6", health=Health.fresh)


class MemoryMailbox:
    """A mailbox without a disk; shows what was published."""

    def __init__(self) -> None:
        self.desired: bytes | None = None
        self.observed: Observed | None = None

    def fetch(self) -> bytes | None:
        return self.desired

    def publish(self, observed_json: str) -> None:
        self.observed = Observed.model_validate_json(observed_json)


def make_agent(rundir: RunDir, mailbox: MemoryMailbox | None = None, **changes: Any) -> Agent:
    options: dict[str, Any] = {
        "values": VALUES,
        "rails": RAILS,
        "actions": tuple(Action),
        "port": None,
        "mailbox": mailbox,
        "poll_seconds": None,
        **changes,
    }
    return Agent(rundir, INFO, options.pop("values"), options.pop("rails"), options.pop("actions"), **options)


def state(agent: Agent, step: int = 10, branch: int = 0, **changes: Any) -> BoundaryState:
    return BoundaryState(
        **{
            "step": step,
            "branch": branch,
            "compute": float(step),
            "values": agent.values,
            "checkpoints": (GOOD, FRESH),
            **changes,
        }
    )


def desired(agent: Agent, decision_id: str = "d1", **changes: Any) -> Desired:
    scale = changes.pop("scale", None)
    return Desired(
        **{
            "run_uid": INFO.run_uid,
            "incarnation": agent.incarnation,
            "epoch": 1,
            "generation": 1,
            "base_generation": 0,
            "decision_id": decision_id,
            "issued_at": 0.0,
            "expires_at_step": 1000,
            "set": {"lr_scale": Setting(scale=scale)} if scale else {},
            "reason": "because",
            **changes,
        }
    )


def send(mailbox: MemoryMailbox, rundir: RunDir, document: Desired) -> None:
    mailbox.desired = document.signed(read_key(rundir)).model_dump_json().encode()


def report(step: int = 1, branch: int = 0, **changes: Any) -> StepReport:
    """A step report with every field set."""
    return StepReport(
        **{
            "step": step,
            "branch": branch,
            "seconds": 0.3,
            "phase_seconds": {"generating": 0.1, "training": 0.2},
            "compute": 0.3 * step,
            "device_seconds": {"generator": 0.1, "learner": 0.2},
            "rollouts": rollouts(),
            "loss": -0.04,
            "grad_norm": 0.3,
            "entropy": 0.1,
            "mismatch_kl": 1e-4,
            "ratio_mean": 1.0,
            "ratio_max": 1.2,
            "clipped_ratio": 0.01,
            "masked_ratio": 0.0,
            "effective_sample_ratio": 0.99,
            "advantage_std": 0.9,
            "trained_tokens": 4000,
            "lr": 1e-4,
            "tunables": VALUES,
            "weights_version": step,
            "weight_sync_seconds": 0.01,
            "buffer": {"waiting": 1, "inflight": 2, "ready": 3, "held": 4, "capacity": 5},
            "inflight": 16,
            "utilization": {"process": 0.9, "generator": 0.8, "learner": 0.7},
            **changes,
        }
    )


def rollouts(number: int = 128) -> RolloutStats:
    passed = number // 2
    return RolloutStats(
        rewards=(1.0,) * passed + (-1.0,) * (number - passed),
        passed=passed,
        failed=number - passed,
        errored=1,
        lengths=tuple(20 + index % 40 for index in range(number)),
        prompt_lengths=(12,) * number,
        staleness=(0, 1) * (number // 2),
        seconds=(0.5,) * number,
        truncated=3,
        interrupted=2,
        groups={"mixed": 10, "all_pass": 4, "all_fail": 2},
        dropped_groups={"stale": 1, "error": 0, "rollback": 0},
        generated_tokens=number * 40,
        prompt_tokens=number * 12,
        discarded_tokens=7,
    )
