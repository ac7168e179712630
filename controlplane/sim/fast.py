"""A simulated run that shows snapshots directly: no agent, no exporter, no files. For fleets of thousands.

    advance: faults -> one step of the body -> noise -> tally -> meter -> snapshot        apply: a decision -> trainer

What a controller may do to it is what a real agent would carry out (values inside the guard rails, good checkpoints
only, a limit on rollbacks), at the boundary after the decision. `trainer.SimTrainer` is the faithful twin with the real
agent behind it.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from controlplane.agent import GuardRails
from controlplane.contract.documents import (
    Ack,
    AckState,
    Action,
    CheckpointState,
    Health,
    Lease,
    Observed,
    Phase,
    TunableState,
)  # fmt: skip
from controlplane.decide import Change, Decision
from controlplane.meter import Evaluation, Meter, Tally
from controlplane.sim.body import Body
from controlplane.sim.course import Course
from controlplane.sim.faults import Fault
from controlplane.sim.learner import CORRELATION, Skill
from controlplane.sim.noise import Noise, arcsine
from controlplane.sim.proof import Shelf
from controlplane.snapshot import Snapshot

START = 1_800_000_000.0
ACTIONS = (Action.checkpoint, Action.rollback, Action.pause, Action.resume, Action.stop)
TOKEN_LIMIT = 16_384.0
_TRAINING = frozenset({"lr", "nan", "collapse", "truncation", "length", "entropy", "hacking"})
"""Faults that are in the weights or the data; a rollback leaves them behind."""


class FastRun:
    """A course under a fault script. `advance` until it gives None.

    Args:
        course: the run as it would be.
        faults: what goes wrong, and when.
        rails: the agent's own limits.
    """

    def __init__(self, course: Course, faults: Sequence[Fault] = (), rails: GuardRails | None = None) -> None:
        self.course, self.rails = course, rails or GuardRails()
        self.body = Body(Skill(law=course.law))
        self.step, self.branch, self.compute, self.now, self.executed = 0, 0, 0.0, START, 0
        self.values = {"lr_scale": 1.0, "prompts_per_step": float(course.law.prompts), "max_new_tokens": TOKEN_LIMIT}
        self._shown: dict[str, TunableState] | None = None
        self._lease: Lease | None = None
        self.stopped = self.paused = False
        self.tally = Tally(0)
        self._left: dict[Fault, int] = {fault: fault.steps for fault in faults}
        self._shelf: Shelf[Body] = Shelf(course.law.prompts, course.eval_prompts)
        self._meter = Meter("0", course.steps)
        self._incarnation, self._generation, self._rollbacks, self._last_change = 0, 0, 0, -math.inf
        self._last_ack: Ack | None = None
        self._clock_offset, self._blind_until = 0.0, -math.inf
        self._rng = np.random.default_rng((course.seed, 2))
        self._noise: dict[str, list[float]] = {}
        self._draw_noise()
        self._evaluate()

    @property
    def checkpoints(self) -> tuple[CheckpointState, ...]:
        """Checkpoints on disk, oldest first."""
        return self._shelf.states

    def advance(self) -> list[Snapshot]:
        """One step (while paused: one second), and the looks that a controller gets of it; empty once the run is over.

        One look after each step, more during a stall, as many as fit at a minute apart.
        """
        if self.stopped or self.step >= self.course.steps:
            return []
        if self.paused:
            self.now += 1.0
            return [self._look()]
        active = self._active()
        looks = [self._look() for _ in self._waiting(active)]
        self._train(active)
        return [*looks, self._look()]

    def apply(self, decision: Decision) -> None:
        """What the agent does with a published decision: guard rails, then carried out, then acknowledged."""
        change, ident, generation = decision.change, decision.decision_id, decision.generation
        if change is None or ident is None or generation is None:
            return
        values = {
            name: self.rails.step_to(name, setting.resolve(self.values[name]), self.values[name])
            for name, setting in change.set.items()
        }
        problem = self._refused(change, values)
        if not problem:
            self._carry_out(change)
            if values:
                self.values |= values
                self._shown = None
                self._last_change = self.executed
            self._generation = generation
        state = AckState.rejected if problem else AckState.applied
        self._last_ack = Ack(
            decision_id=ident, generation=generation, state=state, reason=problem, at_step=self.step, readback=values
        )

    # Training

    def _train(self, active: Sequence[Fault]) -> None:
        course, body, at = self.course, self.body, self.executed % len(self._noise["loss"])
        rate = min(1.0, (self.step + 1) / course.warmup) * self.values["lr_scale"]
        rate *= math.prod(fault.factor for fault in active if fault.kind == "lr")
        broken = any(fault.kind == "nan" for fault in active)
        prompts = int(self.values["prompts_per_step"])
        self.tally = tally = self._tally(at, rate, prompts, broken)
        if not broken:
            self.body = body.after(rate, prompts, active)
        self.step, self.executed, self.compute = tally.step, self.executed + 1, tally.compute
        self._meter.step(tally, self.now)
        self._shelf.stepped(tally.pass_rate, not broken)
        if self._lease is not None and self.step >= self._lease.until_step:
            self.values |= self._lease.revert_to
            self._lease = self._shown = None
        if self.step % course.eval_every == 0:
            self._evaluate()
        unwritten = broken or any(fault.kind == "stale_checkpoint" for fault in active)
        if self.step % course.checkpoint_every == 0 and not unwritten:
            self._save()

    def _tally(self, at: int, rate: float, prompts: int, broken: bool) -> Tally:
        course, body, levels, noise = self.course, self.body, self.course.levels, self._noise
        n, along = float(prompts * course.samples), course.along(self.step)
        passed = round(n * arcsine(body.pass_ratio, noise["pass_rate"][at], levels.pass_effect, n)) / n
        early = course.truncated_early * math.exp(-25.0 * along)
        expected = min(1.0, course.truncated + early + body.truncated)
        cut = round(n * arcsine(expected, noise["truncation"][at], levels.truncation_effect, n)) / n
        length = course.gen_length * math.exp(
            course.gen_length_growth * along + levels.gen_length * noise["gen_length"][at]
        )
        grad = course.grad_norm * math.exp(course.grad_norm_growth * along + levels.grad_norm * noise["grad_norm"][at])
        entropy = course.entropy * math.exp(course.entropy_growth * along + levels.entropy * noise["entropy"][at])
        mismatch = course.mismatch_kl * body.mismatch * math.exp(levels.mismatch_kl * noise["mismatch_kl"][at])
        flat = alike(round(passed, 2), course.samples)
        flat += (1.0 - flat) * (1.0 - math.exp(-0.5 * body.flatness))
        seconds = course.step_seconds * (0.3 + 0.7 * body.length)
        self.now += seconds
        return Tally(
            step=self.step + 1,
            samples=n,
            pass_rate=passed,
            truncation=cut,
            gen_length=length * body.length,
            zero_variance=round(flat * prompts) / prompts,
            groups=float(prompts),
            loss=math.nan if broken else -0.01 + levels.loss * noise["loss"][at] * (1.0 + body.skill.damage),
            grad_norm=math.nan if broken else grad * body.grad_norm(rate),
            entropy=entropy * body.entropy,
            mismatch_kl=mismatch,
            effective_samples=math.exp(-mismatch * 5.0),
            staleness=2.0,
            utilization=0.85,
            lr=1e-6 * rate,
            compute=self.compute + seconds,
            nonfinite=broken,
        )

    def _draw_noise(self) -> None:
        noise = Noise.draw(self.course.levels, 2 * self.course.steps, self._rng)
        self._noise = {name: column.tolist() for name, column in vars(noise).items()}

    def _evaluate(self) -> None:
        course = self.course
        n = float(course.eval_prompts * course.eval_samples)
        z = self._noise["held_out"][self.executed % len(self._noise["held_out"])]
        ratio = arcsine(self.body.held_out, z, 1.0 + (course.eval_samples - 1) * CORRELATION, n)
        self._meter.evaluation(
            Evaluation(self.step, ratio, self.compute, course.eval_prompts, course.eval_samples), self.branch
        )
        self._shelf.evaluated(self.step, ratio)

    def _save(self) -> None:
        self._shelf.save(self.step, self.branch, self.body, self.compute)
        self._meter.checkpoint(self.step, self.now)

    # Faults

    def _active(self) -> list[Fault]:
        active = [fault for fault, left in self._left.items() if left > 0 and self.step + 1 >= fault.at_step]
        for fault in active:
            self._left[fault] -= 1
            if fault.kind == "clock_jump":
                self._clock_offset += fault.seconds
            elif fault.kind == "metric_loss":
                self._blind_until = self.now + fault.seconds
            elif fault.kind == "restart":
                self._restart()
        return active

    def _waiting(self, active: Sequence[Fault]) -> Iterator[float]:
        """Advance the clock through a stall, a minute at a time."""
        for fault in active:
            if fault.kind == "stall":
                end = self.now + fault.seconds
                while self.now + 60.0 < end:
                    self.now += 60.0
                    yield self.now
                self.now = end

    def _restart(self) -> None:
        self._incarnation += 1
        newest = self._shelf.saved[-1].step if self._shelf.saved else None
        if newest is None:
            self.body, self.step, self.compute = Body(Skill(law=self.course.law)), 0, 0.0
        else:
            self._restore(newest)
        self.now += 300.0
        self._meter.incarnation(f"{self._incarnation}", self.step, self.branch)

    def _restore(self, step: int) -> None:
        saved = self._shelf.restore(step)
        self.body, self.compute, self.step = saved.state, saved.compute, saved.step

    # Control

    def _refused(self, change: Change, values: dict[str, float]) -> str:
        if change.target is not None:
            found = [each for each in self.checkpoints if each.digest == change.target.digest]
            if not found or found[0].health is not Health.good:
                return "the checkpoint is gone or not good"
            if self._rollbacks >= self.rails.max_rollbacks:
                return "all rollbacks of this run are used up"
        elif values and self.executed < self._last_change + self.rails.cooldown_steps:
            return "tunables changed too short a time ago"
        return ""

    def _carry_out(self, change: Change) -> None:
        match change.action:
            case Action.rollback if change.target is not None:
                self._rollbacks += 1
                self.branch += 1
                self._restore(change.target.step)
                self._meter.restored(self.step, self.branch, self.compute)
                for fault, left in self._left.items():
                    if fault.kind in _TRAINING and 0 < left < fault.steps:
                        self._left[fault] = 0
            case Action.checkpoint:
                self._save()
            case Action.pause:
                self.paused = True
            case Action.resume:
                self.paused = False
            case Action.stop:
                self.stopped = True

    # What a controller sees

    def _look(self) -> Snapshot:
        at = self.now + 1.0 + self._clock_offset
        if self.now < self._blind_until:
            return Snapshot.model_construct(
                at=at, sampled_at=None, metrics={}, observed=self._observed(), errors=("the metrics cannot be read",)
            )
        return self._meter.snapshot(at, at - 1.0, self._observed())

    def _observed(self) -> Observed:
        over = self.stopped or self.step >= self.course.steps
        return Observed.model_construct(
            run_uid=f"fast-{self.course.seed}",
            incarnation=f"{self._incarnation}",
            branch=self.branch,
            step=self.step,
            planned_steps=self.course.steps,
            compute=self.compute,
            written_at=self.now,
            applied_generation=self._generation,
            last_ack=self._last_ack,
            tunables=self._tunables(),
            actions=ACTIONS,
            rollbacks_left=self.rails.max_rollbacks - self._rollbacks,
            checkpoints=self.checkpoints,
            phase=Phase.stopped if over else Phase.idle if self.paused else Phase.training,
        )

    def _tunables(self) -> dict[str, TunableState]:
        if self._shown is None:
            rails = {name: self.rails.of(name) for name in self.values}
            self._shown = {
                name: TunableState(value=value, min=rails[name].min, max=rails[name].max)
                for name, value in self.values.items()
            }
        return self._shown


@lru_cache(maxsize=4096)
def alike(ratio: float, samples: int) -> float:
    """Expected share of groups that all pass or all fail, where prompts differ in difficulty (beta-binomial)."""
    spread = 1.0 / CORRELATION - 1.0
    ratio = min(max(ratio, 1e-3), 1.0 - 1e-3)
    a, b = ratio * spread, (1.0 - ratio) * spread

    def every(first: float) -> float:
        return math.exp(
            math.lgamma(first + samples) - math.lgamma(first) + math.lgamma(spread) - math.lgamma(spread + samples)
        )

    return every(a) + every(b)
