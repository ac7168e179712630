"""The forecast of one run: held-out evaluations in, where the run will end out.

Evaluations of an abandoned branch are dropped and the restore becomes a known change of regime; the fit itself is never
started from scratch.
"""

from dataclasses import dataclass
from math import isfinite

from controlplane.decide.judgement import ForecastView
from controlplane.forecast import Forecaster
from controlplane.policy.models import ForecastOf
from controlplane.snapshot import Snapshot

BAND_POINTS = 24


@dataclass(frozen=True)
class Point:
    """One held-out evaluation. `samples` = prompts x generations."""

    step: int
    compute: float
    pass_rate: float
    samples: float
    prompts: float = 0.0


class Outlook:
    """Collects evaluations and keeps the newest forecast. Deterministic."""

    def __init__(self, config: ForecastOf) -> None:
        self._config = config
        self._points: list[Point] = []
        self._restores: list[float] = []
        self.view: ForecastView | None = None

    @property
    def newest(self) -> Point | None:
        """The newest evaluation of the lineage."""
        return self._points[-1] if self._points else None

    def take_in(self, snapshot: Snapshot, branch: int) -> bool:
        """Whether the snapshot held an evaluation that was not known; the view is then new."""
        point = self._read(snapshot, branch)
        if point is None or (self._points and point.step <= self._points[-1].step):
            return False
        budget = self._budget(snapshot, point)
        self._points.append(point)
        if budget is not None:
            self.view = self._forecast(point, branch, budget)
        return budget is not None

    def rewind(self, step: int) -> None:
        """The run went back to `step`: later evaluations belong to a branch that was given up."""
        self._points = [point for point in self._points if point.step <= step]
        if self._points:
            self._restores = [c for c in self._restores if c < self._points[-1].compute] + [self._points[-1].compute]

    def _read(self, snapshot: Snapshot, branch: int) -> Point | None:
        """The evaluation in a snapshot; None without one, and after a rollback until the new branch has its first."""

        def value(name: str) -> float | None:
            label = f'dataset="{self._config.dataset}"'
            found = [v for key, v in snapshot.metrics.items() if key.partition("{")[0] == name and label in key]
            return found[0] if found and isfinite(found[0]) else None

        step, rate, prompts = value("rl_eval_last_step"), value("rl_eval_pass_ratio"), value("rl_eval_prompts")
        compute = step if self._config.axis == "step" else value("rl_eval_compute_gpu_seconds")
        if step is None or rate is None or compute is None or value("rl_eval_branch") != branch:
            return None
        return Point(int(step), compute, rate, (prompts or 0) * self._generations(snapshot), prompts or 0.0)

    def _generations(self, snapshot: Snapshot) -> float:
        key = next(
            (k for k in snapshot.metrics if k.startswith("rl_eval_pass_ratio{") and self._config.dataset in k), ""
        )
        _, _, rest = key.partition('k="')
        return float(rest.partition('"')[0] or 1)

    def _budget(self, snapshot: Snapshot, point: Point) -> float | None:
        planned = snapshot.metrics.get("rl_trainer_planned_steps")
        if planned is None or not isfinite(planned) or planned <= 0:
            return None
        if self._config.axis == "step":
            return max(planned, point.compute)
        return point.compute * max(planned / point.step, 1.0) if point.step > 0 and point.compute > 0 else None

    def _forecast(self, newest: Point, branch: int, budget: float) -> ForecastView:
        forecaster = Forecaster(budget=budget)
        for point in self._points:
            forecaster.observe(point.compute, point.pass_rate, samples=point.samples or None)
        for compute in self._restores:
            forecaster.intervene(compute)
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
        )
