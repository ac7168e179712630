"""The tuner: watches, wishes, and writes down. `decide` says whether a wish may be; the trainer carries it out.

    nothing under way   trigger? -> ask the study for arms -> wish: begin           (kept until it is decided or the reason is gone)
    probe under way     its record -> pairs -> judge -> wish: stop an arm, adopt, or end
    probe over          trials -> journal -> study

Its state is a fold over the trial lines of the journal: one when an arm begins, one when it has ended. What is
under way the trainer says (`observed.probe`), and the record in the run directory says how far it is.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from controlplane.contract.documents import CONTROL, Action, Design, Observed, Phase, Probe, Ruling, Setting
from controlplane.contract.rundir import RunDir, read_lines
from controlplane.decide import Decision, Judgement, Kind
from controlplane.policy import Policy
from controlplane.policy.models import TUNING
from controlplane.snapshot import Snapshot, Wish
from controlplane.tune.judge import ArmVerdict, Outcome, Terms, judge, winner
from controlplane.tune.pairing import Paired, pair, results
from controlplane.tune.promise import noise_of, promise, turns_of
from controlplane.tune.proposer import Proposer
from controlplane.tune.reading import alarm, compared, gain
from controlplane.tune.space import Axis, axes
from controlplane.tune.switchback import alternated, segments
from controlplane.tune.trials import Trial
from controlplane.tune.trigger import Trigger

log = logging.getLogger("tuner")

RUNNING = "running"


class Tuner:
    """One per controller. `wish` and `look` are called in every look, in this order; `over` and `tell` after it."""

    def __init__(self, rundir: RunDir, policy: Policy, proposer: Callable[[], Proposer]) -> None:
        assert policy.tuning is not None
        self._rundir, self._policy, self._tuning = rundir, policy, policy.tuning
        self._open_study = proposer
        self._study: Proposer | None = None
        self._begun: dict[str, tuple[Trial, ...]] = {}
        self._told: set[int] = set()
        self._last_probe_step = -(10**9)
        self._offered: Wish | None = None
        self._judgement: Judgement | None = None
        self._decision: Decision | None = None
        self._orders: set[str] = set()

    def recall(self, trials: Sequence[Mapping[str, Any]]) -> None:
        """The trial lines of the journal: which probes were begun, and what became of them. The study is told what it may have
        missed, and what it has as running and the journal does not know is closed."""
        known = [Trial.model_validate(body) for body in trials]
        self._begin([trial for trial in known if trial.outcome == RUNNING])
        ended = [trial for trial in known if trial.outcome != RUNNING]
        self._told = {trial.number for trial in ended}
        for trial in ended:
            self._proposer.tell(trial)
        open_ = {t.number for begun in self._begun.values() for t in begun} - self._told
        if orphans := self._proposer.close_orphans(open_):
            log.info("closed trials %s, which never began", ", ".join(map(str, orphans)))

    # One look

    def wish(self, snapshot: Snapshot) -> Wish | None:
        """What should happen next, from this look and from what the last one meant."""
        observed = snapshot.observed
        if observed is None or observed.phase is Phase.stopped or self._tuning.design == "off":
            return None
        if observed.probe:
            self._offered = None
            return self._ruling(observed)
        trigger = self._trigger(snapshot, observed)
        if trigger is None:
            self._offered = None
            return None
        if self._offered is None or (trigger.by and not self._offered.asked_by):
            self._offered = self._proposal(observed, snapshot, trigger)
        return self._offered

    def look(self, snapshot: Snapshot, judgement: Judgement, decision: Decision) -> list[Trial]:
        """What the look meant and what was decided; the trials that begin with it, for the journal."""
        self._judgement, self._decision = judgement, decision
        wish = snapshot.wish
        if (
            decision.kind is not Kind.act
            or decision.rule != TUNING
            or wish is None
            or not isinstance(wish.probe, Probe)
        ):
            return []
        self._offered = None
        begun = [Trial.model_validate(trial) for trial in wish.trials]
        self._begin(begun)
        return begun

    def over(self, snapshot: Snapshot) -> list[Trial]:
        """Trials whose probe has ended, as they belong into the journal; then they are told to the study with `tell`."""
        observed = snapshot.observed
        if observed is None:
            return []
        found: list[Trial] = []
        for probe_id, trials in self._begun.items():
            waiting = [t for t in trials if t.number not in self._told]
            if not waiting or observed.probe == probe_id:
                continue
            record = list(read_lines(self._rundir.probes / f"{probe_id}.jsonl"))
            ended = any(line["kind"] == "end" for line in record)
            lost = observed.incarnation != waiting[0].incarnation or self._refused(probe_id, observed)
            if ended or lost:
                found += self._results(
                    waiting, record, observed, "" if ended else "the trainer ended or refused the probe"
                )
        return found

    def tell(self, trials: Sequence[Trial]) -> None:
        """They are in the journal: now the study may know."""
        for trial in trials:
            self._told.add(trial.number)
            self._proposer.tell(trial)

    # Begin

    def _trigger(self, snapshot: Snapshot, observed: Observed) -> Trigger | None:
        """Why a probe should begin now; None if there is no reason, or something is in the way."""
        orders = (order for order in snapshot.orders if order.action == "probe")
        asked = next((order for order in orders if order.order_id not in self._orders), None)
        if Action.probe not in observed.actions or self._unfinished:
            return None
        if observed.step + self._tuning.run_steps > observed.planned_steps:
            return None
        if asked is not None:
            return Trigger.of(asked, self._tuning)
        judgement, decision = self._judgement, self._decision
        if judgement is None or decision is None or judgement.stale or len(self._begun) >= self._tuning.max_probes:
            return None
        if observed.step - self._last_probe_step < self._tuning.cooldown_steps:
            return None
        if decision.kind not in (Kind.nothing, Kind.hold, Kind.advise, Kind.observe):
            return None
        return Trigger.found(judgement, self._tuning)

    def _proposal(self, observed: Observed, snapshot: Snapshot, trigger: Trigger) -> Wish | None:
        found = self._axes(observed, trigger)
        if not found:
            return None
        probe_id = f"p{observed.branch}-{observed.step}-{len(self._begun) + 1}"
        trials: list[Trial] = []
        settings: dict[str, dict[str, Setting]] = {}
        for axis in self._turns(found):
            taken = [t.relative for t in trials if t.tunable == axis.name]
            if len(trials) == self._tuning.most_arms:
                break
            try:
                number, relative, value = self._proposer.ask(axis, trigger.unstable, taken)
            except ValueError as reason:
                log.info("%s", reason)
                continue
            arm = f"{axis.name}-{value:.4g}"
            settings[arm] = {axis.name: Setting(value=value)}
            trials.append(
                Trial(
                    number=number,
                    probe_id=probe_id,
                    arm=arm,
                    design=self._tuning.design,
                    tunable=axis.name,
                    value=value,
                    relative=relative,
                    trigger=trigger.reason,
                    from_step=observed.step,
                    until_step=observed.step + self._tuning.run_steps,
                    branch=observed.branch,
                    incarnation=observed.incarnation,
                    order_id=trigger.order_id,
                    forecast_before=_forecast(self._judgement),
                )
            )
        if not trials:
            return None
        where = Design(self._tuning.design)
        turns = segments(probe_id, trials[0].arm) if where is Design.switchback else ()
        return Wish(
            wish_id=f"{probe_id}/begin",
            probe=Probe(probe_id=probe_id, arms=settings, steps=self._tuning.steps, where=where, segments=turns),
            asked_by=trigger.by,
            order_id=trigger.order_id,
            reason=f"{trigger.reason}; {promise(self._tuning, snapshot, observed, len(trials))}",
            trials=tuple(trial.model_dump() for trial in trials),
        )

    def _axes(self, observed: Observed, trigger: Trigger) -> list[Axis]:
        values = {n: s.value for n, s in observed.tunables.items() if s.capability == "runtime"}
        clamps = {
            n: (max(c.min, observed.tunables[n].min), min(c.max, observed.tunables[n].max))
            for n, c in self._policy.clamps.items()
            if n in values
        }
        wanted = {n: self._tuning.space[n] for n in trigger.tunables if n in self._tuning.space}
        return list(axes(values, clamps, wanted).values())

    def _turns(self, found: list[Axis]) -> Iterator[Axis]:
        """The tunables that were probed least come first; one probe is about one tunable, unless that has too few directions."""
        probed = [trial.tunable for trials in self._begun.values() for trial in trials]
        for axis in sorted(found, key=lambda axis: probed.count(axis.name)):
            yield from [axis] * self._tuning.most_arms

    # Under way

    def _ruling(self, observed: Observed) -> Wish | None:
        probe_id = observed.probe
        trials = self._begun.get(probe_id)
        if trials is None:
            return None
        record = list(read_lines(self._rundir.probes / f"{probe_id}.jsonl"))
        verdicts = self._verdicts(trials, record)
        arms = {line["arm"] for line in record if line["kind"] == "step"}
        waiting = bool(record) and record[-1]["kind"] == "waiting"
        alarms = {t.arm: reason for t in trials if (reason := alarm(record, t.arm))}
        proved = {arm: verdict for arm, verdict in verdicts.items() if arm not in alarms}
        best = next((t for t in trials if t.arm == winner(proved)), None)
        if best is not None and (waiting or not any(t.arm not in arms and _rivals(t, best) for t in trials)):
            return self._adoption(probe_id, best, verdicts[best.arm])
        if waiting:
            reason = "; ".join(f"{arm}: {v.outcome.value} ({v.reason})" for arm, v in verdicts.items())
            return Wish(wish_id=f"{probe_id}/end", probe=Ruling(probe_id=probe_id, end=True), reason=reason)
        for trial in trials:
            verdict, now = verdicts[trial.arm], compared(record) == trial.arm
            why = alarms.get(trial.arm, verdict.reason)
            hopeless = verdict.outcome in (Outcome.reject, Outcome.inconclusive) or trial.arm in alarms
            if now and hopeless and verdict.steps < self._tuning.run_steps:
                stop = Ruling(probe_id=probe_id, stop=(trial.arm,))
                return Wish(wish_id=f"{probe_id}/stop/{trial.arm}", probe=stop, reason=f"{trial.arm}: {why}")
        return None

    def _adoption(self, probe_id: str, trial: Trial, verdict: ArmVerdict) -> Wish:
        return Wish(
            wish_id=f"{probe_id}/adopt/{trial.arm}",
            probe=Ruling(probe_id=probe_id, adopt=trial.arm),
            set={trial.tunable: Setting(value=trial.value)},
            from_step=trial.from_step if trial.design == Design.inline else None,  # elsewhere no new branch begins
            reason=f"{trial.arm} gained {verdict.effect:.3f} more ({verdict.low:.3f} to {verdict.high:.3f}) "
            f"in {verdict.steps} steps: {verdict.reason}",
            evidence={"effect": verdict.effect, "low": verdict.low, "high": verdict.high},
        )

    def _verdicts(self, trials: tuple[Trial, ...], record: list[dict[str, Any]]) -> dict[str, ArmVerdict]:
        terms = Terms(
            steps=self._tuning.steps,
            min_effect=self._tuning.min_effect,
            confidence=self._tuning.confidence,
            noise=noise_of(self._tuning),
        )
        return judge({t.arm: self._evidence(t, record) for t in trials}, terms)

    def _evidence(self, trial: Trial, record: list[dict[str, Any]]) -> Paired:
        if trial.design == Design.switchback:
            return alternated(record, turns_of(self._tuning, segments(trial.probe_id, trial.arm)))
        return pair(results(record, CONTROL), results(record, trial.arm))

    # Over

    def _results(self, trials: list[Trial], record: list[dict[str, Any]], observed: Observed, lost: str) -> list[Trial]:
        nothing: dict[str, Any] = {"outcome": CONTROL, "device_seconds": {}}
        end = next((line for line in record if line["kind"] == "end"), nothing)
        verdicts = self._verdicts(self._begun[trials[0].probe_id], record)
        gained = gain(record)
        done = []
        for trial in trials:
            verdict, adopted = verdicts[trial.arm], end["outcome"] == trial.arm and not self._undone(trial, observed)
            outcome = "adopt" if adopted else verdict.outcome.value
            reason = lost or alarm(record, trial.arm) or verdict.reason
            said = verdict.known or verdict.outcome is not Outcome.undecided
            measured = said and not lost and not alarm(record, trial.arm)
            if outcome in ("undecided", "adopt") and not adopted:
                unknown = "it was given up before it had shown anything" if verdict.steps else "it never ran"
                outcome, reason = "inconclusive", reason if measured else (lost or alarm(record, trial.arm) or unknown)
            update = {
                "outcome": outcome if measured else "cancelled",
                "reason": reason,
                "steps": verdict.steps,
                "gain": gained,
                "device_seconds": float(end["device_seconds"].get(trial.arm, 0.0)),
                "forecast_after": _forecast(self._judgement),
            }
            if measured:
                update |= {"effect": verdict.effect, "low": verdict.low, "high": verdict.high}
            done.append(trial.model_copy(update=update))
        return done

    @staticmethod
    def _undone(trial: Trial, observed: Observed) -> bool:
        """The trainer ended between writing an adoption down and putting it in force: then it is not."""
        now = observed.tunables.get(trial.tunable)
        return observed.incarnation != trial.incarnation and now is not None and now.value != trial.value

    def _begin(self, trials: list[Trial]) -> None:
        for trial in trials:
            self._begun[trial.probe_id] = (*self._begun.get(trial.probe_id, ()), trial)
            self._last_probe_step = trial.from_step
            self._orders.add(trial.order_id)

    @property
    def _unfinished(self) -> bool:
        return any(t.number not in self._told for trials in self._begun.values() for t in trials)

    def _refused(self, probe_id: str, observed: Observed) -> bool:
        """The trainer went on past the probe's last step and there is no record of it."""
        last = max(trial.until_step for trial in self._begun[probe_id])
        return observed.step > last and not (self._rundir.probes / f"{probe_id}.jsonl").exists()

    @property
    def _proposer(self) -> Proposer:
        if self._study is None:
            self._study = self._open_study()
        return self._study


def _forecast(judgement: Judgement | None) -> float | None:
    view = judgement.forecast if judgement else None
    if view is None or view.refused:
        return None
    return view.target_probability if view.target_probability is not None else view.quantiles.get("0.5")


def _rivals(untried: Trial, proved: Trial) -> bool:
    """Whether an arm that was not tried yet might be better still: not if it goes the other way on the same tunable."""
    return untried.tunable != proved.tunable or (untried.relative > 0) == (proved.relative > 0)
