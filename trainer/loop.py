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
and seed, unless a slow verifier works in threads. Nothing changes between two control points but what this file does.
A step that was skipped (non-finite, no signal) counts as a step, changes no weights and publishes nothing; a non-finite
one is not checkpointed either.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

from controlplane.contract.documents import Phase
from controlplane.contract.reports import StepReport
from controlplane.contract.rundir import RunDir
from trainer.checkpoint.health import WINDOW, Score, StepHealth
from trainer.checkpoint.keeper import Keeper
from trainer.checkpoint.ring import SnapshotRing
from trainer.control import Control, ControlPoint
from trainer.diary import Diary
from trainer.evaluate import EvalResult
from trainer.learn import Learner, LearnResult
from trainer.recipe import Recipe
from trainer.record import eval_report, learn_fields, masked_ratio, rollout_stats
from trainer.rollback import Savepoints
from trainer.rollout.collector import Collector
from trainer.rollout.curriculum import Curriculum
from trainer.session import Session
from trainer.state import RunState
from trainer.stopwatch import Stopwatch, device_seconds
from trainer.sync import WeightSync
from trainer.types import ScoredGroup, Version


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
        devices: int = 1,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`devices` are held while the run goes on: GPUs, or CPU cores where there is none."""
        self.session = Session(learner, curriculum, collector, tunables)
        ring = SnapshotRing(recipe.checkpoint.snapshots)
        self.savepoints = Savepoints(self.session, keeper, ring, recipe.checkpoint.replay)
        self._recipe = recipe
        self._learner, self._curriculum, self._collector = learner, curriculum, collector
        self._sync, self._evaluate, self._keeper = sync, evaluate, keeper
        self._control, self._watch = control, watch
        self._diary = Diary(rundir, recipe.steps, say)
        self._point = ControlPoint(
            self.session,
            control,
            self.savepoints,
            lambda: keeper.states,
            self._checkpoint,
            self._publish,
            self._diary,
            watch,
        )
        self._devices = devices
        self._worker = ThreadPoolExecutor(1, "learner") if recipe.rollout.overlap else None
        self._cpu = time.process_time()

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
            if self.savepoints.saved_step != self.state.step and not self.session.poisoned:
                self._checkpoint()
        finally:
            self._collector.close()
            if self._worker is not None:
                self._worker.shutdown()
        if self._finished and not self.session.stopping:
            self._event("end")
            return "end"
        self._event("stop", reason=self.session.stopping)
        return "stop"

    @property
    def _finished(self) -> bool:
        """All steps taken, or no improvement for too long."""
        return self.state.step >= self._recipe.steps or self._exhausted

    @property
    def _exhausted(self) -> bool:
        spec = self._recipe.evaluation.early_stopping
        return spec is not None and self.state.patience.waited >= spec.patience

    def _begin(self) -> None:
        found = self.savepoints.resume()
        self._publish()
        if found is None:
            self._event("start", seed=self._recipe.seed)
            self._evaluation()
            self._checkpoint()
        else:
            self._event("resume", checkpoint=found.path.name)

    def _control_point(self) -> None:
        self._point.pass_through()

    # One step

    def _one_step(self) -> None:
        step = self.state.step + 1
        used = dict(self.tunables)
        self._fire_faults(step)
        batch = self._collect(used)
        if not batch:
            return
        result = self._train(step, batch, used)
        now = self.state.version
        self.state.step = step
        sync_seconds = float("nan")
        if not result.skipped:
            self.state.version = Version(now.branch, now.n + 1)
            sync_seconds = self._publish()
        for scored in batch:  # every prompt of the batch counts as trained, also one without signal
            self._curriculum.done(scored.item, scored.passed, len(scored.verdicts))
        self._diary.trained(self.state, [scored.item for scored in batch])
        self._collector.buffer.release()
        self._report(result, batch, now, used, sync_seconds)
        self._after(result, batch)

    def _collect(self, used: dict[str, float]) -> Sequence[ScoredGroup]:
        """Turn until a batch is there; empty when the run is told to stop meanwhile."""
        while not self.session.stopping:
            batch = self._collector.turn(self.state.version, used)
            if batch:
                return batch
        return ()

    def _train(self, step: int, batch: Sequence[ScoredGroup], used: dict[str, float]) -> LearnResult:
        """The optimizer step; with overlap the next batch is generated meanwhile. Both have ended when it returns."""
        if self._worker is None:
            self._watch.switch(Phase.training)
            return self._learner.step(step, batch, used)
        training = self._worker.submit(self._learner.step, step, batch, used)
        try:
            self._collector.ahead(self.state.version, used)
            self._watch.switch(Phase.training)
        finally:
            wait([training])
        return training.result()

    def _publish(self) -> float:
        """Give the learner's weights to the generator under the version of the state; seconds it took."""
        self._watch.switch(Phase.syncing_weights)
        started = time.perf_counter()
        self._sync.publish(self.state.version)
        return time.perf_counter() - started

    def _report(
        self, result: LearnResult, batch: Sequence[ScoredGroup], now: Version, used: dict[str, float], sync: float
    ) -> None:
        lap = self._watch.lap()
        wall, cpu = sum(lap.values()), time.process_time()
        overlap = self._worker is not None
        held = self._devices * (2 if overlap else 1)
        process = min(1.0, (cpu - self._cpu) / (wall * held))
        self._cpu = cpu
        devices = device_seconds(lap, self._devices, overlap)
        stats, buffer = self._collector, self._collector.buffer
        rollouts = rollout_stats(batch, now, stats.dropped, stats.discarded_tokens)
        rollouts = replace(rollouts, errored=stats.errored)
        self.state.account = self.state.account.plus(
            generation_seconds=devices["generator"],
            training_seconds=devices["learner"],
            completions=len(rollouts.lengths),
            generated_tokens=rollouts.generated_tokens,
            trained_tokens=result.trained_tokens,
        )
        report = StepReport(
            step=self.state.step,
            branch=self.state.branch,
            seconds=(devices["generator"] + devices["learner"]) / held,
            phase_seconds={phase.value: seconds for phase, seconds in lap.items()},
            compute=self.state.compute,
            device_seconds=devices,
            rollouts=rollouts,
            masked_ratio=masked_ratio(batch),
            tunables=used,
            weights_version=self.state.version.n,
            weight_sync_seconds=sync,
            buffer=buffer.counts(self.state.version, int(used["max_staleness"]), int(used["prompts_per_step"])),
            inflight=stats.inflight,
            utilization={"process": process},
            **learn_fields(result),
        )
        stats.forget_counts()
        self._control.step(report)
        self._diary.step(report, self.state.account, self._curriculum.epoch, process)

    def _after(self, result: LearnResult, batch: Sequence[ScoredGroup]) -> None:
        """What a step proves about earlier checkpoints; then evaluation and checkpoint when due."""
        step, last = self.state.step, self.state.step == self._recipe.steps
        ratio = sum(scored.passed for scored in batch) / sum(len(scored.verdicts) for scored in batch)
        self.state.window = [*self.state.window, ratio][-WINDOW:]
        self._keeper.after_step(StepHealth(ratio, len(batch), result.skipped))
        if step % self._recipe.evaluation.every == 0 or last:
            self._evaluation()
        self.session.poisoned = result.skipped == "nonfinite"
        if not self.session.poisoned and (step % self._recipe.checkpoint.every == 0 or last):
            self._checkpoint()
        self._watch.switch(Phase.idle)

    def _fire_faults(self, step: int) -> None:
        for fault in self._recipe.faults:
            if fault.step == step and self.state.branch == 0:
                self._learner.base_lr *= fault.factor
                self._event("fault", kind=fault.kind, factor=fault.factor, base_lr=self._learner.base_lr)

    # Evaluation and checkpoint

    def _evaluation(self) -> None:
        """Every held-out set; the first is what best scores, checkpoints, targets and early stopping go by."""
        self._watch.switch(Phase.evaluating)
        started = time.perf_counter()
        results = self._evaluate()
        seconds = (time.perf_counter() - started) / len(results)
        score = Score(self.state.step, results[0].pass_ratio, results[0].prompts)
        stopping = self._recipe.evaluation.early_stopping
        self.state.after_evaluation(score, stopping.min_delta if stopping else 0.0)
        self._keeper.after_evaluation(score)
        for result in results:
            report = eval_report(result, self.state, seconds)
            self._control.evaluation(report)
            self._diary.evaluation(report, self.state.account)
        self._milestones(score)

    def _milestones(self, score: Score) -> None:
        """Targets reached for the first time in the life of the run, and the end of patience."""
        reached = self._diary.reached() if self._recipe.evaluation.targets else frozenset()
        for target in self._recipe.evaluation.targets:
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
