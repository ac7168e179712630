"""The step machine: the same for every kind of generator and learner.

    collect batch -> learner.step -> health gate -> publish weights -> release slots -> report
          ^                                                                              |
          +------ control point (agent.boundary) <- checkpoint when due <- eval when due +

    who waits          for what                                         how it ends
    learner            a batch, or stragglers that would get too old    completions are bounded in length
    generator          free slots, staleness capacity                   slots are released after each publication
    control point      nothing; while paused, a directive               resume, stop, or a signal

One process and one thread: while no batch is ready, one token step is decoded; when one is ready, it is trained. The
order of everything is decided by recipe and seed. Nothing changes between two control points but what this file does.
A step that was skipped (non-finite, no signal) counts as a step, changes no weights and publishes nothing; a non-finite
one is not checkpointed either.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from controlplane.agent import BoundaryState, Directive
from controlplane.contract.documents import AckState, Action, Phase
from controlplane.contract.reports import CheckpointReport, EvalReport, StepReport
from controlplane.contract.rundir import RunDir, append_line
from trainer.checkpoint.health import WINDOW, Score, StepHealth
from trainer.checkpoint.keeper import Keeper
from trainer.checkpoint.store import CheckpointError, Content
from trainer.evaluate import EvalResult
from trainer.learn import Learner, LearnResult
from trainer.recipe import Recipe
from trainer.record import eval_line, eval_report, finite, learn_fields, masked_ratio, rollout_stats, step_line
from trainer.rollout.collector import Collector
from trainer.rollout.curriculum import Curriculum
from trainer.state import RunState
from trainer.stopwatch import Stopwatch, device_seconds
from trainer.sync import WeightSync
from trainer.types import ScoredGroup, Version

ACTIONS = (Action.none, Action.checkpoint, Action.rollback, Action.pause, Action.resume, Action.stop)
PAUSE_SECONDS = 0.1
"""How often a paused run asks whether it may go on."""


class Control(Protocol):
    """What the step machine needs of `controlplane.agent.Agent`."""

    def step(self, report: StepReport) -> None: ...
    def evaluation(self, report: EvalReport) -> None: ...
    def checkpoint(self, report: CheckpointReport) -> None: ...
    def boundary(self, state: BoundaryState) -> Directive | None: ...
    def acknowledge(
        self, directive: Directive, state: AckState, at_step: int, readback: dict[str, float], reason: str = ""
    ) -> None: ...


class Sampler(Protocol):
    """The random state of the generator, saved and restored with the weights."""

    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> Any: ...


class Loop:
    """Owns the run state; everything else is handed in. `run` returns why it ended: end or stop."""

    def __init__(
        self,
        recipe: Recipe,
        rundir: RunDir,
        *,
        learner: Learner,
        curriculum: Curriculum,
        collector: Collector,
        sync: WeightSync,
        sampler: Sampler,
        evaluate: Callable[[], Sequence[EvalResult]],
        keeper: Keeper,
        control: Control,
        tunables: dict[str, float],
        watch: Stopwatch,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.state = RunState()
        self.tunables = tunables
        self._recipe, self._rundir = recipe, rundir
        self._learner, self._curriculum, self._collector = learner, curriculum, collector
        self._sync, self._sampler, self._evaluate = sync, sampler, evaluate
        self._keeper, self._control, self._watch, self._say = keeper, control, watch, say
        self._stopping = ""
        self._paused = False
        self._saved_step = -1
        self._poisoned = False
        self._devices = recipe.threads
        self._cpu = time.process_time()

    def stop(self, reason: str) -> None:
        """End the run after the step in progress. Safe in a signal handler."""
        self._stopping = self._stopping or reason

    def run(self) -> str:
        """Start or resume, go through the steps, and leave a checkpoint behind."""
        self._begin()
        self._control_point()
        while self.state.step < self._recipe.steps and not self._stopping:
            self._one_step()
            self._control_point()
        if self._saved_step != self.state.step and not self._poisoned:
            self._checkpoint()
        finished = self.state.step >= self._recipe.steps and not self._stopping
        self._event("end") if finished else self._event("stop", reason=self._stopping)
        return "end" if finished else "stop"

    # Start

    def _begin(self) -> None:
        found = self._keeper.newest()
        if found is None:
            self._event("start", seed=self._recipe.seed)
            self._publish(Version(0, 0))
            self._evaluation()
            self._checkpoint()
            return
        checkpoint, content = found
        self._restore(content)
        self._curriculum.load_state_dict(content.values["curriculum"])
        self.state = RunState.parse(content.values["run"])
        self._saved_step = self.state.step
        self._keeper.abandon(self.state.forks)
        self._publish(Version(self.state.branch, self.state.version.n + 1))
        self._event("resume", checkpoint=checkpoint.path.name)

    def _restore(self, content: Content) -> None:
        """Model, optimizer, base learning rate and random state, as saved."""
        tensors = content.tensors
        learner = {"model": tensors["model"], "optimizer": tensors["optimizer"], "base_lr": content.values["base_lr"]}
        self._learner.load_state_dict(learner)
        self._sampler.set_state(tensors["sampler"])

    # One step

    def _one_step(self) -> None:
        step = self.state.step + 1
        used = dict(self.tunables)
        self._fire_faults(step)
        batch = self._collect(used)
        if not batch:
            return
        self._watch.switch(Phase.training)
        result = self._learner.step(step, batch, used)
        now = self.state.version
        self.state.step = step
        sync_seconds = self._publish(Version(now.branch, now.n + 1)) if not result.skipped else float("nan")
        self._account(step, batch)
        self._collector.buffer.release()
        self._report(result, batch, now, used, sync_seconds)
        self._after(result, batch)

    def _collect(self, used: dict[str, float]) -> Sequence[ScoredGroup]:
        """Turn until a batch is there; empty when the run is told to stop meanwhile."""
        while not self._stopping:
            batch = self._collector.turn(self.state.version, used)
            if batch:
                return batch
        return ()

    def _publish(self, version: Version) -> float:
        """Give the learner's weights to the generator; seconds it took."""
        self._watch.switch(Phase.syncing_weights)
        started = time.perf_counter()
        self._sync.publish(version)
        self.state.version = version
        return time.perf_counter() - started

    def _account(self, step: int, batch: Sequence[ScoredGroup]) -> None:
        """Every prompt of the batch counts as trained, also one without signal."""
        for scored in batch:
            self._curriculum.done(scored.item, scored.passed, len(scored.verdicts))
        items = [scored.item for scored in batch]
        line: dict[str, Any] = {"branch": self.state.branch, "step": step, "epoch": min(item.epoch for item in items)}
        late = [[item.epoch, item.ordinal] for item in items if item.epoch != line["epoch"]]
        line["ordinals"] = [item.ordinal for item in items if item.epoch == line["epoch"]]
        append_line(self._rundir.ledger, {**line, "next_epoch": late} if late else line)

    def _report(
        self, result: LearnResult, batch: Sequence[ScoredGroup], now: Version, used: dict[str, float], sync: float
    ) -> None:
        lap = self._watch.lap()
        wall, cpu = sum(lap.values()), time.process_time()
        devices = device_seconds(lap, self._devices)
        self.state.compute += devices["generator"] + devices["learner"]
        process = min(1.0, (cpu - self._cpu) / (wall * self._devices))
        self._cpu = cpu
        buffer, stats = self._collector.buffer, self._collector
        report = StepReport(
            step=self.state.step,
            branch=self.state.branch,
            seconds=(devices["generator"] + devices["learner"]) / self._devices,
            phase_seconds={phase.value: seconds for phase, seconds in lap.items()},
            compute=self.state.compute,
            device_seconds=devices,
            rollouts=rollout_stats(batch, now, stats.dropped, stats.discarded_tokens),
            masked_ratio=masked_ratio(batch),
            tunables=used,
            weights_version=self.state.version.n,
            weight_sync_seconds=sync,
            buffer=buffer.counts(int(used["max_staleness"]), int(used["prompts_per_step"])),
            inflight=self._collector.inflight,
            utilization={"process": process},
            **learn_fields(result),
        )
        stats.forget_counts()
        self._control.step(report)
        append_line(self._rundir.steps, step_line(report, self._curriculum.epoch, time.time(), process))
        self._say(_one_line(report, self._recipe.steps))

    def _after(self, result: LearnResult, batch: Sequence[ScoredGroup]) -> None:
        """What a step proves about earlier checkpoints; then evaluation and checkpoint when due."""
        step, last = self.state.step, self.state.step == self._recipe.steps
        ratio = sum(scored.passed for scored in batch) / sum(len(scored.verdicts) for scored in batch)
        self.state.window = [*self.state.window, ratio][-WINDOW:]
        self._keeper.after_step(StepHealth(ratio, len(batch), result.skipped))
        if step % self._recipe.evaluation.every == 0 or last:
            self._evaluation()
        self._poisoned = result.skipped == "nonfinite"
        if not self._poisoned and (step % self._recipe.checkpoint.every == 0 or last):
            self._checkpoint()
        self._watch.switch(Phase.idle)

    def _fire_faults(self, step: int) -> None:
        for fault in self._recipe.faults:
            if fault.step == step and self.state.branch == 0:
                self._learner.base_lr *= fault.factor
                self._event("fault", kind=fault.kind, factor=fault.factor, base_lr=self._learner.base_lr)

    # Evaluation and checkpoint

    def _evaluation(self) -> None:
        """Every held-out set; the first is what best scores, checkpoints and forecasts go by."""
        self._watch.switch(Phase.evaluating)
        started = time.perf_counter()
        results = self._evaluate()
        seconds = (time.perf_counter() - started) / len(results)
        score = Score(self.state.step, results[0].pass_ratio, results[0].prompts)
        if self.state.best is None or score.pass_ratio >= self.state.best.pass_ratio:
            self.state.best = score
        self._keeper.after_evaluation(score)
        for result in results:
            report = eval_report(result, self.state, seconds)
            self._control.evaluation(report)
            append_line(self._rundir.evals, eval_line(report, {}, time.time()))
            self._say(
                f"evaluation at step {report.step}: {report.dataset} pass rate {report.pass_ratio:.3f}, "
                f"pass@{report.k} {report.pass_at_k:.3f}"
            )

    def _checkpoint(self) -> bool:
        self._watch.switch(Phase.checkpointing)
        learner = self._learner.state_dict()
        values = {
            "run": self.state.dump(),
            "base_lr": learner.pop("base_lr"),
            "curriculum": self._curriculum.state_dict(),
            "tunables": self.tunables,
        }
        saved = self._keeper.save(self.state, Content({**learner, "sampler": self._sampler.get_state()}, values))
        if saved is None:
            self._event("checkpoint_failed")
            return False
        self._saved_step = self.state.step
        self._event("checkpoint", name=saved.path.name, digest=saved.digest)
        return True

    # Control

    def _control_point(self) -> None:
        """Carry out what the agent hands over; while paused, ask again until told to go on."""
        while True:
            phase = Phase.idle if self._paused else Phase.training
            directive = self._control.boundary(self._boundary(phase))
            if directive is not None:
                self._carry_out(directive)
            if not self._paused or self._stopping:
                return
            self._watch.switch(Phase.idle)
            time.sleep(PAUSE_SECONDS)

    def _boundary(self, phase: Phase) -> BoundaryState:
        state = self.state
        return BoundaryState(state.step, state.branch, state.compute, dict(self.tunables), self._keeper.states, phase)

    def _carry_out(self, directive: Directive) -> None:
        """Action first, then values; then say what is in force."""
        refusal = ""
        match directive.action:
            case Action.rollback:
                refusal = self._rollback(directive)
            case Action.checkpoint if self._poisoned:
                refusal = "the last step was not finite; such a step is not checkpointed"
            case Action.checkpoint if not self._checkpoint():
                refusal = "the checkpoint could not be written"
            case Action.pause | Action.resume:
                self._paused = directive.action is Action.pause
                self._event(directive.action.value, decision_id=directive.decision_id)
            case Action.stop:
                self.stop(f"decision {directive.decision_id}")
        if not refusal:
            self.tunables.update(directive.values)
        answer = AckState.rejected if refusal else AckState.applied
        self._control.acknowledge(directive, answer, self.state.step, dict(self.tunables), refusal)

    def _rollback(self, directive: Directive) -> str:
        """Go back to a good checkpoint on a new branch. Returns why not, with nothing changed; empty when done.

            freeze and flush -> restore -> values of the directive -> publish under a new version -> checkpoint -> bad

        The data position does not go back: prompts trained since are skipped. The checkpoint of the new branch is what
        makes it survive a crash: whatever resumes now finds the higher branch first.
        """
        assert directive.target is not None
        try:
            checkpoint, content = self._keeper.fetch(directive.target)
        except CheckpointError as error:
            return str(error)
        left, lost = self.state, self._collector.flush()
        self._restore(content)
        skipped = self._curriculum.rewind(content.values["curriculum"])
        restored = RunState.parse(content.values["run"])
        restored.forks = {**left.forks, left.branch + 1: restored.step}
        restored.version = Version(left.branch + 1, left.version.n)
        self.state = restored
        self._poisoned = False
        self.tunables.update(directive.values)
        self._publish(Version(restored.branch, left.version.n + 1))
        self._checkpoint()
        bad = self._keeper.abandon(self.state.forks)
        self._event(
            "rollback",
            decision_id=directive.decision_id,
            reason=directive.reason,
            from_step=left.step,
            target=checkpoint.path.name,
            abandoned=bad,
            dropped_groups=lost,
            data="skip",
            skipped=[list(item) for item in skipped],
            tunables=dict(directive.values),
        )
        return ""

    def _event(self, event: str, /, **fields: Any) -> None:
        where = {"event": event, "step": self.state.step, "branch": self.state.branch, "time": time.time()}
        append_line(self._rundir.events, {**where, **{key: finite(value) for key, value in fields.items()}})
        if event != "checkpoint":
            self._say(f"{event} at step {self.state.step}, branch {self.state.branch}")


def _one_line(report: StepReport, steps: int) -> str:
    rollouts = report.rollouts
    return (
        f"step {report.step}/{steps}  pass {rollouts.passed / (rollouts.passed + rollouts.failed):.3f}"
        f"  grad {report.grad_norm:.3f}  lr {report.lr:.1e}  {report.seconds:.2f} s"
        + (f"  skipped: {report.skipped}" if report.skipped else "")
    )
