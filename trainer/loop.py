"""The step machine: the same for every kind of generator and learner.

    collect batch -> learner.step -> health gate -> publish weights -> release slots -> report
          ^                                                                              |
          +------ control point (agent.boundary) <- checkpoint when due <- eval when due +

    who waits          for what                                         how it ends
    learner            a batch, or stragglers that would get too old    completions are bounded in length
    generator          free slots, staleness capacity                   slots are released after each publication
    control point      nothing; while paused, a directive               resume, stop, or a signal

One process: while no batch is ready, one token step is decoded; when one is ready, it is trained - in the same thread, or
with `rollout.overlap` in one of its own while the next batch is generated. The order of everything is decided by recipe
and seed, unless a slow verifier works in threads. On a cluster generators decode all the time, and the one clock-dependent
thing is which groups are ready first. Nothing changes between two control points but what this file does.
A step that was skipped (non-finite, no signal) counts as a step, changes no weights and publishes nothing; a non-finite
one is not checkpointed either.
"""

import time
from collections.abc import Callable, Sequence

from controlplane.contract.documents import Phase
from controlplane.contract.rundir import RunDir
from trainer.checkpoint.health import WINDOW, Score, StepHealth
from trainer.checkpoint.keeper import Keeper
from trainer.checkpoint.ring import SnapshotRing
from trainer.control import Control, ControlPoint
from trainer.diary import Diary
from trainer.evaluate import EvalResult
from trainer.learn import Learner
from trainer.probe import Launch, Probing
from trainer.probe.arms import Machine
from trainer.recipe import Recipe
from trainer.record import eval_report
from trainer.rollback import Savepoints
from trainer.rollout.collector import Collector
from trainer.rollout.curriculum import Curriculum
from trainer.session import Session
from trainer.state import RunState
from trainer.stepper import Stepped, Stepper
from trainer.stopwatch import Devices, Stopwatch
from trainer.sync import WeightSync


class Loop:
    """Owns the session; everything else is handed in. `run` returns why it ended: end or stop."""

    def __init__(
        self,
        recipe: Recipe,
        rundir: RunDir,
        *,
        learner: Learner,
        curriculum: Curriculum,
        collector: Collector,
        sync: WeightSync,
        evaluate: Callable[[], Sequence[EvalResult]],
        keeper: Keeper,
        control: Control,
        tunables: dict[str, float],
        watch: Stopwatch,
        devices: Devices | None = None,
        launch: Launch | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`launch` starts a process that trains the arms of a probe beside the run; None where there is no room for one."""
        self.session = Session(learner, curriculum, collector, tunables)
        ring = SnapshotRing(recipe.checkpoint.snapshots)
        self.savepoints = Savepoints(self.session, keeper, ring, recipe.checkpoint.replay)
        self.recipe = recipe
        self._learner, self._collector = learner, collector
        self._evaluate, self._keeper = evaluate, keeper
        self._stepper = Stepper(self.session, sync, watch, devices or Devices())
        self._control, self._watch = control, watch
        self._diary = Diary(rundir, recipe.steps, say)
        self._point = ControlPoint(
            self.session,
            control,
            self.savepoints,
            lambda: keeper.states,
            self._checkpoint,
            self._stepper.publish,
            self._diary,
            watch,
        )
        self.machine = Machine(self.session, self.savepoints, self._stepper, watch)
        self._probing = Probing(
            rundir,
            self.machine,
            planned_steps=recipe.steps,
            launch=launch,
            record=self._record,
            settled=self._adopted,
            event=self._event,
            ask=self._control_point,
        )
        self._point.probing = self._probing

    @property
    def state(self) -> RunState:
        """Step, branch, version, account: what is in force."""
        return self.session.state

    @property
    def tunables(self) -> dict[str, float]:
        """In force."""
        return self.session.tunables

    def stop(self, reason: str) -> None:
        """End the run after the step in progress. Safe in a signal handler."""
        self.session.stopping = self.session.stopping or reason

    def run(self) -> str:
        """Start or resume, go through the steps, and leave a checkpoint behind."""
        try:
            self._begin()
            self._control_point()
            while not self._finished and not self.session.stopping:
                self._one_step()
                self._control_point()
            self._probing.cancel("the run has ended")
            if self.savepoints.saved_step != self.state.step and not self.session.poisoned:
                self._checkpoint()
        finally:
            self.close()
        if self._finished and not self.session.stopping:
            self._event("end")
            return "end"
        self._event("stop", reason=self.session.stopping)
        return "stop"

    def close(self) -> None:
        """Join the threads; for who takes steps without `run`."""
        self._collector.close()
        self._stepper.close()

    @property
    def _finished(self) -> bool:
        """All steps taken, or no improvement for too long."""
        return self.state.step >= self.recipe.steps or self._exhausted

    @property
    def _exhausted(self) -> bool:
        spec = self.recipe.evaluation.early_stopping
        return spec is not None and self.state.patience.waited >= spec.patience

    def _begin(self) -> None:
        found = self.savepoints.resume()
        self._probing.recover()
        self._stepper.publish()
        if found is None:
            self._event("start", seed=self.recipe.seed)
            self._evaluation()
            self._checkpoint()
        else:
            self._event("resume", checkpoint=found.path.name)

    def _control_point(self) -> None:
        self._point.pass_through()

    # One step

    def _one_step(self) -> None:
        self._fire_faults(self.state.step + 1)
        self._follow_schedule(self.state.step + 1)
        self._probing.before_step()
        stepped = self._stepper.step()
        if stepped is None:
            return
        self._record(stepped)
        self._after(stepped)
        self._probing.after_step(stepped)

    def _record(self, stepped: Stepped) -> None:
        """A step that is part of the run, now or because an arm of a probe was adopted."""
        report = stepped.report
        self._diary.trained(report.branch, report.step, [scored.item for scored in stepped.batch])
        self._control.step(report)
        self._diary.step(report, stepped.account, stepped.epoch, stepped.process)

    def _adopted(self) -> None:
        """The run goes on from an arm of a probe: what its weights can do, and a checkpoint of them."""
        self._evaluation()
        self._checkpoint()
        self._watch.switch(Phase.idle)

    def _after(self, stepped: Stepped) -> None:
        """What a step proves about earlier checkpoints; then evaluation and checkpoint when due."""
        batch, result = stepped.batch, stepped.result
        step, last = self.state.step, self.state.step == self.recipe.steps
        ratio = sum(scored.passed for scored in batch) / sum(len(scored.verdicts) for scored in batch)
        self.state.window = [*self.state.window, ratio][-WINDOW:]
        self._keeper.after_step(StepHealth(ratio, len(batch), result.skipped))
        if step % self.recipe.evaluation.every == 0 or last:
            self._evaluation()
        if not self.session.poisoned and (step % self.recipe.checkpoint.every == 0 or last):
            self._checkpoint()
        self._watch.switch(Phase.idle)

    def _fire_faults(self, step: int) -> None:
        for fault in self.recipe.faults:
            if fault.step == step and self.state.branch == 0:
                self._learner.base_lr *= fault.factor
                self._event("fault", kind=fault.kind, factor=fault.factor, base_lr=self._learner.base_lr)

    def _follow_schedule(self, step: int) -> None:
        for change in self.recipe.schedule:
            if change.step == step:
                self.tunables.update(change.set)
                self._event("scheduled", **change.set)

    # Evaluation and checkpoint

    def _evaluation(self) -> None:
        """Every held-out set; the first is what best scores, checkpoints, targets and early stopping go by."""
        self._watch.switch(Phase.evaluating)
        started = time.perf_counter()
        results = self._evaluate()
        seconds = (time.perf_counter() - started) / len(results)
        score = Score(self.state.step, results[0].pass_ratio, results[0].prompts)
        stopping = self.recipe.evaluation.early_stopping
        self.state.after_evaluation(score, stopping.min_delta if stopping else 0.0)
        self._keeper.after_evaluation(score)
        for result in results:
            report = eval_report(result, self.state, seconds)
            self._control.evaluation(report)
            self._diary.evaluation(report, self.state.account)
        self._milestones(score)

    def _milestones(self, score: Score) -> None:
        """Targets reached for the first time in the life of the run, and the end of patience."""
        reached = self._diary.reached() if self.recipe.evaluation.targets else frozenset()
        for target in self.recipe.evaluation.targets:
            if score.pass_ratio >= target and target not in reached:
                cost = {"compute": self.state.compute, "account": vars(self.state.account)}
                self._event("target_reached", target=target, pass_ratio=score.pass_ratio, **cost)
        if self._exhausted:
            waited, best = self.state.patience.waited, self.state.best
            assert best is not None
            reason = f"no improvement in {waited} evaluations"
            self._event("early_stop", reason=reason, best_step=best.step, best_pass_ratio=best.pass_ratio)

    def _checkpoint(self) -> bool:
        self._watch.switch(Phase.checkpointing)
        saved = self.savepoints.save()
        if saved is None:
            self._event("checkpoint_failed")
            return False
        self._event("checkpoint", name=saved.path.name, digest=saved.digest)
        return True

    def _event(self, event: str, /, **fields: object) -> None:
        self._diary.event(self.state, event, **fields)
