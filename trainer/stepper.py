"""One optimizer step, whoever asks for it - the run itself or an arm of a probe - and what is to be said about it.

    collect batch -> learner.step -> publish weights -> prompts done, slots released -> Stepped

Nothing is written down or reported here: an arm that is not adopted leaves no trace in the record of the run.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from controlplane.contract.documents import Phase
from controlplane.contract.reports import StepReport
from trainer.learn import LearnResult
from trainer.record import learn_fields, masked_ratio, rollout_stats
from trainer.session import Session
from trainer.state import Account
from trainer.stopwatch import Devices, Stopwatch, device_seconds, utilization
from trainer.sync import WeightSync
from trainer.types import ScoredGroup, Version


@dataclass(frozen=True)
class Stepped:
    """A step that was taken (or skipped by the learner), with the totals behind it."""

    batch: Sequence[ScoredGroup]
    result: LearnResult
    report: StepReport
    account: Account
    epoch: int
    process: float
    """CPU use of this process since the last step, 0 to 1."""


class Stepper:
    """Takes steps. Where the pools have devices of their own, the learner has a thread, and the next batch is generated meanwhile."""

    def __init__(self, session: Session, sync: WeightSync, watch: Stopwatch, devices: Devices) -> None:
        self._session, self._sync, self._watch, self._devices = session, sync, watch, devices
        self._worker = ThreadPoolExecutor(1, "learner") if devices.apart else None
        self._cpu = time.process_time()

    def step(self) -> Stepped | None:
        """The next step; None when the run was told to stop before a batch was there."""
        session = self._session
        used, now = dict(session.tunables), session.state.version
        batch = self._collect(used)
        if not batch:
            return None
        result = self._train(session.state.step + 1, batch, used)
        session.state.step += 1
        sync_seconds = float("nan")
        if not result.skipped:
            session.state.version = Version(now.branch, now.n + 1)
            sync_seconds = self.publish()
        for scored in batch:  # every prompt of the batch counts as trained, also one without signal
            session.curriculum.done(scored.item, scored.passed, len(scored.verdicts))
        session.collector.buffer.release()
        session.poisoned = result.skipped == "nonfinite"
        return self._stepped(result, batch, now, used, sync_seconds)

    def publish(self) -> float:
        """Give the learner's weights to the generator under the version of the state; seconds it took."""
        self._watch.switch(Phase.syncing_weights)
        started = time.perf_counter()
        self._sync.publish(self._session.state.version)
        return time.perf_counter() - started

    def close(self) -> None:
        """Join the learner's thread."""
        if self._worker is not None:
            self._worker.shutdown()

    def _collect(self, used: dict[str, float]) -> Sequence[ScoredGroup]:
        """Turn until a batch is there; empty when the run is told to stop meanwhile."""
        while not self._session.stopping:
            batch = self._session.collector.turn(self._session.state.version, used)
            if batch:
                return batch
        return ()

    def _train(self, step: int, batch: Sequence[ScoredGroup], used: dict[str, float]) -> LearnResult:
        """The optimizer step; the next batch is generated meanwhile if it can be. Both have ended when it returns."""
        learner = self._session.learner
        if self._worker is None:
            self._watch.switch(Phase.training)
            return learner.step(step, batch, used)
        training = self._worker.submit(learner.step, step, batch, used)
        try:
            if self._devices.pace == "free":
                self._watch.switch(Phase.training)
                self._session.collector.alongside(self._session.state.version, used, training.done)
            else:
                self._session.collector.ahead(self._session.state.version, used)
            self._watch.switch(Phase.training)
        finally:
            wait([training])
        return training.result()

    def _stepped(
        self, result: LearnResult, batch: Sequence[ScoredGroup], now: Version, used: dict[str, float], sync: float
    ) -> Stepped:
        state, stats = self._session.state, self._session.collector
        lap = self._watch.lap()
        wall, cpu = sum(lap.values()), time.process_time()
        held = self._devices.held
        process = min(1.0, (cpu - self._cpu) / (wall * held))
        self._cpu = cpu
        devices = device_seconds(lap, self._devices)
        rollouts = rollout_stats(batch, now, stats.dropped, stats.discarded_tokens)
        rollouts = replace(rollouts, errored=stats.errored)
        state.account = state.account.plus(
            generation_seconds=devices["generator"],
            training_seconds=devices["learner"],
            completions=len(rollouts.lengths),
            generated_tokens=rollouts.generated_tokens,
            trained_tokens=result.trained_tokens,
        )
        report = StepReport(
            step=state.step,
            branch=state.branch,
            seconds=(devices["generator"] + devices["learner"]) / held,
            phase_seconds={phase.value: seconds for phase, seconds in lap.items()},
            compute=state.compute,
            device_seconds=devices,
            rollouts=rollouts,
            masked_ratio=masked_ratio(batch),
            tunables=used,
            weights_version=state.version.n,
            weight_sync_seconds=sync,
            buffer=stats.buffer.counts(state.version, int(used["max_staleness"]), int(used["prompts_per_step"])),
            inflight=stats.inflight,
            utilization=utilization(lap, self._watch.busy, self._devices),
            **learn_fields(result),
        )
        stats.forget_counts()
        return Stepped(batch, result, report, state.account, self._session.curriculum.epoch, process)
