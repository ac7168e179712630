"""The forecasts of one run, one per held-out set: evaluations in, where each will end out.

An evaluation of a branch that was given up is dropped, and the restore becomes a known change of regime; so does every
change of a tunable, dated to the last evaluation before it. The fit is never silently started again, and a new evaluation
is absorbed, not refitted, as long as the budget stays near the one that the grid was made for.

Before an evaluation is absorbed it is predicted: the share of evaluations inside their 80 and 95 % intervals is the
coverage that the forecast has shown in this run.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from controlplane.decide.judgement import ForecastView
from controlplane.forecast import Forecaster, Prior
from controlplane.forecast.prior import Component
from controlplane.policy.models import ForecastOf
from controlplane.snapshot import Snapshot

BAND_POINTS = 12
NEAR_BUDGET = 1.25
"""The grid is kept while the budget is within this factor of the one it was made for."""
NOMINAL = (0.8, 0.95)


@dataclass(frozen=True)
class Point:
    """One held-out evaluation. `samples`: independent outcomes that its noise corresponds to."""

    step: int
    compute: float
    pass_rate: float
    samples: float
    prompts: float = 0.0


Evaluations = Mapping[str, Mapping[str, float]]
"""Held-out set -> metric name -> value, with `k`, the completions per prompt."""


def evaluations(snapshot: Snapshot) -> Evaluations:
    """The newest evaluation of every held-out set in a snapshot."""
    found: dict[str, dict[str, float]] = {}
    for key, value in snapshot.metrics.items():
        if not key.startswith("rl_eval_") or not isfinite(value):
            continue
        name, _, rest = key.partition("{")
        labels = dict(pair.split("=", 1) for pair in rest.rstrip("}").split(",") if "=" in pair)
        dataset = labels.get("dataset", "").strip('"')
        found.setdefault(dataset, {})[name] = value
        if name == "rl_eval_pass_ratio":
            found[dataset]["k"] = float(labels.get("k", '"1"').strip('"'))
    return found


class Outlook:
    """Collects the evaluations of one held-out set and keeps the newest forecast. Deterministic."""

    def __init__(self, config: ForecastOf) -> None:
        self._config = config
        self._points: list[Point] = []
        self._changes: list[float] = []
        self._forecaster: Forecaster | None = None
        self._inside = dict.fromkeys(NOMINAL, 0)
        self._scored = 0
        self.view: ForecastView | None = None

    @property
    def newest(self) -> Point | None:
        """The newest evaluation of the lineage."""
        return self._points[-1] if self._points else None

    def take_in(self, found: Mapping[str, float], branch: int, planned: float) -> bool:
        """Whether the evaluation in `found` was not known; the view is then new. `planned`: steps of the whole run."""
        point = self._point(found, branch)
        if point is None or (self._points and point.step <= self._points[-1].step):
            return False
        self._points.append(point)
        budget = self._budget(planned, point)
        if budget is None:
            self._forecaster = None
            return False
        self.view = self._forecast(point, branch, budget)
        return True

    def intervene(self, step: int) -> None:
        """Something was changed in the run after `step` steps."""
        before = [point.compute for point in self._points if point.step <= step]
        if before and before[-1] not in self._changes:
            self._changes.append(before[-1])
            if self._forecaster is not None:
                self._forecaster.intervene(before[-1])

    def rewind(self, step: int) -> None:
        """The run went back to `step`: later evaluations belong to a branch that was given up."""
        self._points = [point for point in self._points if point.step <= step]
        self._forecaster = None
        if self._points:
            last = self._points[-1].compute
            self._changes = [c for c in self._changes if c < last] + [last]

    def _point(self, found: Mapping[str, float], branch: int) -> Point | None:
        """The evaluation; None without one, and after a rollback until the new branch has its first."""
        step, rate = found.get("rl_eval_last_step"), found.get("rl_eval_pass_ratio")
        compute = step if self._config.axis == "step" else found.get("rl_eval_compute_gpu_seconds")
        if step is None or rate is None or compute is None or found.get("rl_eval_branch") != branch:
            return None
        prompts = found.get("rl_eval_prompts", 0.0)
        samples, stderr = prompts * found.get("k", 1.0), found.get("rl_eval_pass_stderr_ratio", 0.0)
        if stderr > 0.0:  # the exported standard error, as the number of outcomes that would give it
            samples = max(rate * (1.0 - rate), 0.02) / stderr**2
        return Point(int(step), compute, rate, samples, prompts)

    def _budget(self, planned: float, point: Point) -> float | None:
        if not isfinite(planned) or planned <= 0:
            return None
        if self._config.axis == "step":
            return max(planned, point.compute)
        return point.compute * max(planned / point.step, 1.0) if point.step > 0 and point.compute > 0 else None

    def _absorb(self, newest: Point, budget: float) -> Forecaster:
        """The forecaster after the newest point, which it has been scored on first."""
        known = self._forecaster
        if known is not None and known.budget / NEAR_BUDGET <= budget <= known.budget * NEAR_BUDGET:
            self._score(known.covers(newest.compute, newest.pass_rate, NOMINAL))
            known.observe(newest.compute, newest.pass_rate, samples=newest.samples or None)
            return known
        forecaster = Forecaster(budget=budget, prior=_prior(self._config))
        for change in self._changes:
            forecaster.intervene(change)
        for point in self._points[:-1]:
            forecaster.observe(point.compute, point.pass_rate, samples=point.samples or None)
        self._forecaster = forecaster
        return self._absorb(newest, budget)

    def _score(self, covered: Mapping[float, bool]) -> None:
        self._scored += bool(covered)
        for level, is_in in covered.items():
            self._inside[level] += is_in

    def _forecast(self, newest: Point, branch: int, budget: float) -> ForecastView:
        forecaster = self._absorb(newest, budget)
        here = newest.compute
        horizon = [here + (budget - here) * i / (BAND_POINTS - 1) for i in range(BAND_POINTS)]
        end = forecaster.forecast([budget])
        band = forecaster.forecast(horizon)
        (low, high), middle = band.interval(0.8), band.quantile(0.5)
        (end05, end95), (end10, end90) = end.interval(0.9), end.interval(0.8)
        quantiles = zip(
            ("0.05", "0.1", "0.5", "0.9", "0.95"), (end05, end10, end.quantile(0.5), end90, end95), strict=True
        )
        parameters = forecaster.parameters()
        target = self._config.target
        return ForecastView(
            step=newest.step,
            branch=branch,
            compute=here,
            budget=budget,
            points=len(self._points),
            quantiles={q: float(value[0]) for q, value in quantiles},
            band=tuple(
                (c, float(a), float(b), float(d)) for c, a, b, d in zip(horizon, low, middle, high, strict=True)
            ),
            refused=end.refused,
            reason=end.reason or "",
            target=target,
            target_probability=None if target is None else float((end.draws[0] >= target).mean()),
            parameters={
                name: tuple(float(getattr(parameters, name).quantile(q)) for q in (0.1, 0.5, 0.9))  # type: ignore[misc]
                for name in ("A", "B", "C_mid", "R0")
            },
            coverage={f"{level:g}": inside / self._scored for level, inside in self._inside.items()}
            if self._scored
            else {},
            scored=self._scored,
        )


def _prior(config: ForecastOf) -> Prior | None:
    """The forecaster's prior, from the numbers in the policy."""
    given = config.prior
    if given is None:
        return None
    (r0, sd_r0), (a, sd_a) = given.R0, given.A
    like = Component(given.weight, (r0, a), (sd_r0**2, sd_a**2), given.ln_B, given.ln_C_mid)
    return Prior((like, Component(1.0 - given.weight)))


class Outlooks:
    """One outlook per held-out set that the run evaluates; the policy's own set is the one that decides."""

    def __init__(self, config: ForecastOf) -> None:
        self._config = config
        self._sets: dict[str, Outlook] = {config.dataset: Outlook(config)}
        self._seen: tuple[int, dict[str, float]] | None = None

    @property
    def view(self) -> ForecastView | None:
        """The newest forecast of the policy's set."""
        return self._sets[self._config.dataset].view

    @property
    def newest(self) -> Point | None:
        """The newest evaluation of the policy's set."""
        return self._sets[self._config.dataset].newest

    @property
    def views(self) -> dict[str, ForecastView]:
        """The newest forecast of every set that has one."""
        return {name: outlook.view for name, outlook in self._sets.items() if outlook.view is not None}

    def take_in(self, snapshot: Snapshot, branch: int) -> bool:
        """Whether the snapshot held a new evaluation of the policy's set."""
        planned = snapshot.metrics.get("rl_trainer_planned_steps", math.nan)
        new = False
        for name, found in evaluations(snapshot).items():
            is_new = self._outlook(name).take_in(found, branch, planned)
            new |= is_new and name == self._config.dataset
        self._see_tunables(snapshot)
        return new

    def rewind(self, step: int) -> None:
        """The run went back to `step`."""
        for outlook in self._sets.values():
            outlook.rewind(step)

    def _outlook(self, name: str) -> Outlook:
        # Target and prior are about the policy's set; another one has its own difficulty.
        return self._sets.setdefault(name, Outlook(self._config.model_copy(update={"target": None, "prior": None})))

    def _see_tunables(self, snapshot: Snapshot) -> None:
        """A tunable with a new value is an intervention: at the step of the trainer's answer, if that came since the last
        look, else right after the last look, because what was evaluated since then may be of the new value."""
        observed = snapshot.observed
        if observed is None:
            return
        now = observed.step, {name: state.value for name, state in observed.tunables.items()}
        if self._seen is not None and now[1] != self._seen[1]:
            answered = observed.last_ack.at_step if observed.last_ack else -1
            step = answered if self._seen[0] <= answered <= observed.step else self._seen[0]
            for outlook in self._sets.values():
                outlook.intervene(step)
        self._seen = now
