"""The proposer: an Optuna study for each run. Asks for steps, is told what they were worth.

    ask -> relative step z inside the trust region -> clamps (space.py) -> arm -> judge -> tell

The study is a memory and a suggestion, no authority: clamps, limits and adoption are decided elsewhere. A trial number is
written to the journal before anything is published; what the storage has as running and the journal does not know is
closed on recovery. Telling twice does nothing. Optuna is imported here and in the viewer alone.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from math import log
from pathlib import Path

import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import TrialState

from controlplane.tune.space import Axis, directions
from controlplane.tune.trials import Trial

METRIC = "relative effect"
"""Gain of the arm over the control, in units of the control's own gain."""
TRIES = 8
"""Suggestions that may be turned down (too small, or cut away by the clamps) before the edge of the trust region is taken."""


def storage(url: str) -> BaseStorage:
    """SQLite, PostgreSQL (`postgresql://`) or a journal file (`journal:PATH`, for shared disks) by URL."""
    if url.startswith("journal:"):
        path = Path(url.removeprefix("journal:"))
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return RDBStorage(url.replace("postgresql://", "postgresql+psycopg://", 1))


class Proposer:
    """One study. All trials of a run are in it, those of other runs too if they were given."""

    def __init__(self, url: str, name: str, *, seed: int = 0) -> None:
        """Open or create the study `name` at `url`."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
            self.study: Study = optuna.create_study(
                storage=storage(url), study_name=name, sampler=sampler, direction="maximize", load_if_exists=True
            )
            self.study.set_metric_names([METRIC])

    def ask(self, axis: Axis, unstable: bool = False, taken: Sequence[float] = ()) -> tuple[int, float, float]:
        """Trial number, relative step and value of the next arm; `taken` are the steps of the probe's other arms.

        The first probes of a tunable go to the edges of the trust region: first where probes of other runs did better, else
        upwards; after instability downwards alone.

        Raises:
            ValueError: no step inside the clamps is worth a probe.
        """
        edges = [z for z in directions(axis, unstable) if not _near(axis, z, taken)]
        if not edges:
            raise ValueError(f"{axis.name} cannot be moved from {axis.current:g} inside {axis.low:g} to {axis.high:g}")
        edges.sort(key=lambda z: -self._elsewhere(axis, z))
        untried = [z for z in edges if not any((z > 0) == (t > 0) for t in self._tried(axis))]
        reach = log(axis.trust)
        for attempt in range(TRIES + 1):
            if untried or attempt == TRIES:
                self.study.enqueue_trial({axis.name: (untried or edges)[0]}, skip_if_exists=False)
            trial = self.study.ask({axis.name: FloatDistribution(-reach, reach)})
            z = float(trial.params[axis.name])
            trial.set_constraint(f"clamps of {axis.name}", axis.violation(z))
            # The viewer does not show constraints of this kind; as attributes it does.
            trial.set_user_attr(f"constraint: {axis.name} beyond its clamps", round(max(axis.violation(z), 0.0), 6))
            wrong_way = unstable and z > 0
            if axis.worth(z) and not wrong_way and not _near(axis, z, taken):
                value = axis.value(z)
                return trial.number, axis.step(value), value
            trial.set_user_attr("outcome", "not tried")
            trial.set_user_attr(
                "reason", "upwards after instability" if wrong_way else "too small a step inside the clamps"
            )
            self.study.tell(trial, state=TrialState.PRUNED)
        raise ValueError(f"no step of {axis.name} is worth a probe")

    def tell(self, trial: Trial) -> None:
        """What became of an arm. May be repeated: a trial that is finished stays as it was told first."""
        number = trial.number
        if self.study.trials[number].state.is_finished():
            return
        self._annotate(number, trial.attributes())
        if trial.outcome == "cancelled" or trial.efficiency is None:
            self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        else:
            self.study.tell(number, trial.efficiency, skip_if_finished=True)

    def close_orphans(self, known: Iterable[int]) -> list[int]:
        """Close what is running and that the journal does not know; the numbers closed."""
        orphans = [t.number for t in self.study.trials if t.state is TrialState.RUNNING and t.number not in set(known)]
        for number in orphans:
            self._annotate(
                number, {"outcome": "cancelled", "reason": "asked for by a controller that ended before it began"}
            )
            self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        return orphans

    def learn_from(self, past: Iterable[Trial], origin: str, space: Mapping[str, float]) -> int:
        """Trials of another run, in relative units; the number taken in. Those that were taken before, have no effect, or lie
        outside `space` (tunable -> trust region) are left out."""
        known = {(t.user_attrs.get("origin"), t.user_attrs.get("origin number")) for t in self.study.trials}
        count = 0
        for trial in past:
            reach = log(space.get(trial.tunable, 1.0))
            if trial.efficiency is None or (origin, trial.number) in known or abs(trial.relative) > reach + 1e-9:
                continue
            self.study.add_trial(
                optuna.trial.create_trial(
                    value=trial.efficiency,
                    params={trial.tunable: min(max(trial.relative, -reach), reach)},
                    distributions={trial.tunable: FloatDistribution(-reach, reach)},
                    user_attrs={**trial.attributes(), "origin": origin, "origin number": trial.number},
                )
            )
            count += 1
        return count

    def describe(self, **attributes: str | float) -> None:
        """What the study is about: run, policy, budget; shown as a table."""
        for name, value in attributes.items():
            self.study.set_user_attr(name.replace("_", " "), value)

    def _annotate(self, number: int, attributes: dict[str, float | int | str]) -> None:
        backend = self.study._storage
        trial_id = backend.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
        for name, value in attributes.items():
            backend.set_trial_user_attr(trial_id, name, value)

    def _tried(self, axis: Axis) -> list[float]:
        """Steps of this tunable that were measured or are being measured in this run."""
        told = (TrialState.COMPLETE, TrialState.RUNNING)
        mine = (t for t in self.study.trials if t.state in told and "origin" not in t.user_attrs)
        return [float(t.params[axis.name]) for t in mine if axis.name in t.params]

    def _elsewhere(self, axis: Axis, z: float) -> float:
        """What other runs gained on average in this direction; 0 where nobody has tried."""
        theirs = (t for t in self.study.trials if "origin" in t.user_attrs and axis.name in t.params)
        gained = [float(t.value or 0.0) for t in theirs if (t.params[axis.name] > 0) == (z > 0)]
        return sum(gained) / len(gained) if gained else 0.0


def _near(axis: Axis, z: float, taken: Sequence[float]) -> bool:
    """Whether another arm of the probe is as good as the same."""
    return any(abs(axis.step(axis.value(z)) - other) < log(1.1) for other in taken)
