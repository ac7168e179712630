"""A simulated trainer: made-up learner, real agent, virtual time.

    step: fault script -> batch -> reports -> agent -> boundary -> directive carried out -> acknowledged

Same seed, same faults and same documents give the same run, to the last bit of every report: the agent has no thread
here, it looks into its mailbox at each boundary. What a controller sees (metrics, observed document) is what it would see
of a real trainer, except that the time stamps are those of the virtual clock.
"""

import hashlib
import math
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from controlplane.agent import Agent, BoundaryState, Directive, GuardRails
from controlplane.contract.documents import AckState, Action, CheckpointState, Health, Phase
from controlplane.contract.reports import CheckpointReport, EvalReport, RolloutStats, StepReport
from controlplane.contract.rundir import RunDir, RunInfo, write_atomic
from controlplane.sim.faults import Fault
from controlplane.sim.learner import Skill, passes

BEST_LR = 1e-4
WARMUP = 10
SAMPLES = 8
TOKEN_LIMIT = 64
EVAL_EVERY, EVAL_PROMPTS, EVAL_SAMPLES = 10, 256, 4
PROOF_STEPS = 20
"""Further steps after which a checkpoint can be proved good."""


@dataclass(frozen=True)
class Tempo:
    """How often a run evaluates and saves, on how many prompts, and how long a checkpoint has to prove itself."""

    eval_every: int = EVAL_EVERY
    eval_prompts: int = EVAL_PROMPTS
    proof_steps: int = PROOF_STEPS


TOLERANCE = 0.1
"""Pass ratio that a good checkpoint may lie below the best of the run, and the steps after it below the checkpoint."""
KEPT = 8
"""Checkpoints on disk, beside the last two good ones."""
START = 1_800_000_000.0
"""Virtual Unix time of the start."""


@dataclass(frozen=True)
class _Checkpoint:
    state: CheckpointState
    skill: Skill
    compute: float
    recent: float
    """Pass ratio of the steps before it, and the best that the run had shown by then."""
    best: float


class SimTrainer:
    """A run of `planned_steps`. Call `step` until it says that the run is over, then `close`.

    Args:
        rundir: an empty directory.
        seed: of everything random here.
        faults: what goes wrong, and when.
        planned_steps: step at which the run ends.
        prompts: prompts per step at the start, with 8 samples each.
        rails: guard rails of the agent.
        port: of `/metrics`; None serves nothing, and `agent.store.text()` shows the same.
        tempo: evaluations and checkpoints.
    """

    def __init__(
        self,
        rundir: RunDir,
        seed: int,
        faults: tuple[Fault, ...] = (),
        planned_steps: int = 250,
        *,
        prompts: int = 16,
        rails: GuardRails | None = None,
        port: int | None = None,
        tempo: Tempo | None = None,
    ) -> None:
        self._rundir, self._prompts, self._port = rundir, prompts, port
        self._rails, self._tempo = rails or GuardRails(), tempo or Tempo()
        self.now, self.step_number, self.branch, self.compute = START, 0, 0, 0.0
        self.skill = Skill()
        self.paused = self.stopped = False
        self._rng = random.Random(seed)
        self._faults: dict[Fault, int] = {fault: fault.steps for fault in faults}
        self._planned = planned_steps
        self._recent: deque[float] = deque(maxlen=10)
        self._best = 0.0
        self._checkpoints: list[_Checkpoint] = []
        self._info = RunInfo(
            run_uid=f"sim-{seed}",
            name=f"sim-{seed}",
            created_at=START,
            planned_steps=planned_steps,
            config_hash="simulated",
            framework="simulator",
            algorithm="cispo",
            model="latent-skill",
        )
        write_atomic(rundir.info, self._info.model_dump_json())
        self.agent = self._start()
        self.values = self.agent.values
        self._evaluate()
        self._boundary()

    def _start(self) -> Agent:
        return Agent(
            self._rundir,
            self._info,
            {"lr_scale": 1.0, "prompts_per_step": float(self._prompts)},
            self._rails,
            (Action.checkpoint, Action.rollback, Action.pause, Action.resume, Action.stop),
            port=self._port,
            token_limit=TOKEN_LIMIT,
            poll_seconds=None,
            clock=lambda: self.now,
        )

    @property
    def checkpoints(self) -> tuple[CheckpointState, ...]:
        """Checkpoints on disk, oldest first."""
        return tuple(checkpoint.state for checkpoint in self._checkpoints)

    def step(self) -> bool:
        """One optimiser step and its boundary; while paused, one virtual second. False once the run is over."""
        if self.stopped:
            return False
        if self.paused:
            self.now += 1.0
        else:
            self._train()
        self._boundary()
        if self.step_number >= self._planned:
            self.stopped = True
        return not self.stopped

    def run(self) -> None:
        """Step until the run is over. A paused run that nobody resumes would never be."""
        while self.step() and not self.paused:
            pass

    def inject(self, fault: Fault) -> None:
        """One more fault for the script."""
        self._faults[fault] = fault.steps

    def restart(self) -> None:
        """The process is killed, and a new one goes on from the newest checkpoint that is not bad, or from the start."""
        kept = [each for each in self._checkpoints if each.state.health is not Health.bad]
        if kept:
            self._restore(kept[-1])
        else:
            self.skill, self.step_number, self.compute = Skill(), 0, 0.0
        self.paused = False
        self._recent.clear()
        self.now += 5.0
        self.agent = self._start()
        self.values = self.agent.values
        self._boundary()

    def close(self) -> None:
        """End the agent."""
        self.agent.close()

    # Training

    def _train(self) -> None:
        active = self._active_faults()
        rate = self._rate() * math.prod(fault.factor for fault in active if fault.kind == "lr")
        broken = any(fault.kind == "nan" for fault in active)
        prompts = int(self.values["prompts_per_step"])
        groups = passes(self.skill.pass_ratio, prompts, SAMPLES, self._rng)
        mixed = sum(0 < passed < SAMPLES for passed in groups)
        skipped = "nonfinite" if broken else "" if mixed else "no_signal"
        report = self._report(groups, rate, skipped, sum(fault.seconds for fault in active))
        if not skipped:
            self.skill = self.skill.after(rate, prompts)
        self.step_number = report.step
        self.now += report.seconds
        self.compute = report.compute
        self._recent.append(sum(groups) / (prompts * SAMPLES))
        self._best = max(self._best, self._recent_ratio())
        self.agent.step(report)
        if self.step_number % self._tempo.eval_every == 0:
            self._evaluate()
            if not skipped:
                self._save()
        self._prove()

    def _rate(self) -> float:
        """Learning rate of the next step in units of the best one: schedule times lr_scale."""
        return min(1.0, (self.step_number + 1) / WARMUP) * self.values["lr_scale"]

    def _active_faults(self) -> list[Fault]:
        active = [fault for fault, left in self._faults.items() if left and self.step_number + 1 >= fault.at_step]
        for fault in active:
            self._faults[fault] -= 1
        return active

    def _report(self, groups: list[int], rate: float, skipped: str, stalled: float) -> StepReport:
        rng, skill = self._rng, self.skill
        rollouts = self._rollouts(groups)
        generating = 0.10 * len(groups) / 16 * rng.uniform(0.9, 1.1)
        training = 0.18 * len(groups) / 16 * rng.uniform(0.9, 1.1)
        seconds = generating + training + stalled
        grad_norm = skill.grad_norm(rate, rng)
        loss = rng.gauss(-0.04, 0.008 + 0.01 * skill.damage)
        mismatch = abs(rng.gauss(2e-4, 5e-5)) * (1 + skill.damage)
        return StepReport(
            step=self.step_number + 1,
            branch=self.branch,
            seconds=seconds,
            phase_seconds={"generating": generating + stalled, "training": training},
            compute=self.compute + seconds,
            device_seconds={"learner": seconds},
            rollouts=rollouts,
            loss=math.nan if skipped else loss,
            grad_norm=math.nan if skipped else grad_norm,
            grad_clipped=not skipped and grad_norm > 1,
            skipped=skipped,
            nonfinite=("loss", "grad") if skipped == "nonfinite" else (),
            entropy=skill.entropy * rng.uniform(0.9, 1.1),
            mismatch_kl=mismatch,
            ratio_mean=1.0,
            ratio_max=1 + 20 * mismatch,
            clipped_ratio=0.0,
            masked_ratio=0.0,
            effective_sample_ratio=1 - mismatch,
            advantage_std=2 * math.sqrt(max(0.0, skill.pass_ratio * (1 - skill.pass_ratio))),
            trained_tokens=0 if skipped else rollouts.generated_tokens,
            lr=BEST_LR * rate,
            tunables=dict(self.values),
            weights_version=self.step_number + 1,
            weight_sync_seconds=0.001,
            buffer={"waiting": 0, "inflight": 0, "ready": 0, "held": len(groups), "capacity": len(groups)},
            utilization={"process": rng.uniform(0.85, 0.95)},
        )

    def _rollouts(self, groups: list[int]) -> RolloutStats:
        rng, number, passed = self._rng, len(groups) * SAMPLES, sum(groups)
        # A truncated completion cannot have passed, so truncation is drawn among those that failed.
        chance = min(1.0, self.skill.truncated_ratio / max(1e-9, 1 - passed / number))
        truncated = sum(rng.random() < chance for _ in range(number - passed))
        mean = 30 + 9 * self.skill.potential
        lengths = [TOKEN_LIMIT] * truncated
        lengths += [min(TOKEN_LIMIT - 1, max(4, round(rng.gauss(mean, 9)))) for _ in range(number - truncated)]
        return RolloutStats(
            rewards=(1.0,) * passed + (-1.0,) * (number - passed),
            passed=passed,
            failed=number - passed,
            lengths=tuple(lengths),
            prompt_lengths=(12,) * number,
            staleness=(0,) * number,
            seconds=tuple(length * 0.002 for length in lengths),
            truncated=truncated,
            groups={
                "mixed": sum(0 < each < SAMPLES for each in groups),
                "all_pass": groups.count(SAMPLES),
                "all_fail": groups.count(0),
            },
            generated_tokens=sum(lengths),
            prompt_tokens=12 * number,
        )

    def _evaluate(self) -> None:
        groups = passes(self.skill.pass_ratio, self._tempo.eval_prompts, EVAL_SAMPLES, self._rng)
        self.now += 1.0
        self.agent.evaluation(
            EvalReport(
                dataset="held_out",
                step=self.step_number,
                branch=self.branch,
                compute=self.compute,
                prompts=self._tempo.eval_prompts,
                k=EVAL_SAMPLES,
                pass_ratio=sum(groups) / (self._tempo.eval_prompts * EVAL_SAMPLES),
                pass_at_k=sum(map(bool, groups)) / self._tempo.eval_prompts,
                mean_length=30 + 9 * self.skill.potential,
                truncated_ratio=self.skill.truncated_ratio,
                seconds=1.0,
            )
        )

    # Checkpoints

    def _save(self) -> None:
        content = repr((self.step_number, self.branch, self.skill, self.compute)).encode()
        digest = hashlib.sha256(content).hexdigest()
        state = CheckpointState(step=self.step_number, branch=self.branch, digest=digest, health=Health.fresh)
        # A step of an earlier branch that is reached again is a new checkpoint in the same place.
        others = [checkpoint for checkpoint in self._checkpoints if checkpoint.state.step != self.step_number]
        self._checkpoints = [*others, _Checkpoint(state, self.skill, self.compute, self._recent_ratio(), self._best)]
        self._retain()
        self.agent.checkpoint(CheckpointReport(step=self.step_number, seconds=0.02, size_bytes=2_100_000))

    def _retain(self) -> None:
        good = [checkpoint for checkpoint in self._checkpoints if checkpoint.state.health is Health.good][-2:]
        newest = self._checkpoints[-KEPT:]
        self._checkpoints = [each for each in self._checkpoints if each in newest or each in good]

    def _prove(self) -> None:
        """Good: neither it nor the steps after it lie below what the run has shown. Bad: it does itself."""
        now = self._recent_ratio()
        for index, each in enumerate(self._checkpoints):
            old_enough = self.step_number - each.state.step >= self._tempo.proof_steps
            if each.state.health is not Health.fresh or each.state.branch != self.branch or not old_enough:
                continue
            if each.recent < each.best - TOLERANCE:
                self._set_health(index, Health.bad)
            elif now >= each.recent - TOLERANCE:
                self._set_health(index, Health.good)

    def _set_health(self, index: int, health: Health) -> None:
        checkpoint = self._checkpoints[index]
        state = checkpoint.state.model_copy(update={"health": health})
        self._checkpoints[index] = replace(checkpoint, state=state)

    def _recent_ratio(self) -> float:
        return sum(self._recent) / len(self._recent) if self._recent else 0.0

    # Control

    def _boundary(self) -> None:
        directive = self.agent.boundary(self._state())
        if directive is None:
            return
        failure = self._carry_out(directive)
        if not failure:
            self.values |= directive.values
        state = AckState.failed if failure else AckState.applied
        self.agent.acknowledge(directive, state, self.step_number, self._readback(directive.values), failure)

    def _state(self) -> BoundaryState:
        phase = Phase.idle if self.paused else Phase.training
        self.agent.phase(phase)
        return BoundaryState(
            step=self.step_number,
            branch=self.branch,
            compute=self.compute,
            values=dict(self.values),
            checkpoints=self.checkpoints,
            phase=phase,
        )

    def _readback(self, names: Mapping[str, float]) -> dict[str, float]:
        return {name: self.values[name] for name in names}

    def _carry_out(self, directive: Directive) -> str:
        """Why the action failed; empty when it did not."""
        match directive.action:
            case Action.rollback:
                return self._roll_back(directive)
            case Action.checkpoint:
                self._save()
            case Action.pause:
                self.paused = True
            case Action.resume:
                self.paused = False
            case Action.stop:
                self.stopped = True
        return ""

    def _roll_back(self, directive: Directive) -> str:
        target = directive.target
        found = [each for each in self._checkpoints if target and each.state.digest == target.digest]
        if not found:
            return "the checkpoint is gone"
        checkpoint = found[0]
        self._restore(checkpoint)
        self.branch += 1
        self._checkpoints = [each for each in self._checkpoints if each.state.step <= checkpoint.state.step]
        self._faults = {fault: 0 if 0 < left < fault.steps else left for fault, left in self._faults.items()}
        self._recent.clear()
        self.now += 2.0
        return ""

    def _restore(self, checkpoint: _Checkpoint) -> None:
        self.skill, self.compute, self.step_number = checkpoint.skill, checkpoint.compute, checkpoint.state.step
