"""What the forecaster costs on one thread: update, posterior, refit, a look of the controller.

    OMP_NUM_THREADS=1 python bench/forecast/speed.py

CPU time of this process, not wall time, so that a busy machine changes little; the fastest and the median of many.
"""

import time
from collections.abc import Callable

import numpy as np

from controlplane.decide.outlook import Outlooks
from controlplane.forecast import Forecaster, Prior
from controlplane.forecast.draws import draw
from controlplane.forecast.posterior import posteriors
from controlplane.policy.models import ForecastOf
from controlplane.snapshot import Snapshot

BUDGET = 1000.0
RNG = np.random.default_rng(0)


def points(n: int, until: float = 500.0) -> list[tuple[float, float]]:
    """A noisy law."""
    c = np.linspace(until / n, until, n)
    y = 0.2 + 0.5 / (1.0 + (150.0 / c) ** 1.8) + 0.01 * RNG.normal(size=n)
    return list(zip(c.tolist(), np.clip(y, 0.0, 1.0).tolist(), strict=True))


def fitted(n: int, changes: tuple[float, ...] = ()) -> Forecaster:
    """A forecaster after n points."""
    f = Forecaster(BUDGET)
    for c in changes:
        f.intervene(c)
    for c, y in points(n):
        f.observe(c, y, samples=1024)
    f.parameters()
    return f


def told(name: str, work: Callable[[], object], times: int, each: int = 1) -> None:
    """Print the cost of one `work`, which does `each` things at a time."""
    work()
    spent = []
    for _ in range(times):
        began = time.process_time_ns()
        work()
        spent.append((time.process_time_ns() - began) / 1e6 / each)
    print(f"| {name} | {min(spent):.3f} | {float(np.median(spent)):.3f} |")


def main() -> None:
    """Print the table."""
    print("| what, milliseconds of CPU | fastest | median |")
    print("|---|---|---|")
    full = fitted(50)
    assert full._wide is not None
    assert full._close is not None
    wide, close = full._wide._filter.copy(), full._close._filter.copy()
    state, u = close, [float(close.last_u or 0.0)]

    def update() -> None:
        for _ in range(20):
            u[0] += 1e-3
            wide.absorb(u[0], 0.6, 1e-4)
            close.absorb(u[0], 0.6, 1e-4)

    told("update: one point absorbed by both grids (50 before)", update, 60, each=20)
    told("posterior of every cell", lambda: posteriors(state, Prior()), 60)
    models = posteriors(state, Prior())
    told("4,096 draws", lambda: draw(state, models, 4096), 60)
    told("forecast of 3 horizons, draws given", lambda: full.forecast([600.0, 800.0, 1000.0]), 60)
    told("full refit of 50 points, 3 horizons", lambda: fitted(50).forecast([600.0, 800.0, 1000.0]), 30)
    told("the same with one change-point", lambda: fitted(50, (200.0,)).forecast([600.0, 800.0, 1000.0]), 15)
    told("the same with three", lambda: fitted(50, (100.0, 200.0, 300.0)).forecast([600.0, 800.0, 1000.0]), 10)
    told("full refit of 100,000 points, 3 horizons", lambda: fitted(100_000).forecast([600.0, 1000.0]), 2)
    looks()


def looks() -> None:
    """A look of the controller that holds a new evaluation of one held-out set; the other looks cost nothing here."""
    outlooks, spent = Outlooks(ForecastOf(axis="step", target=0.7)), []
    for step, (_, rate) in enumerate(points(60), start=1):
        labels = '{dataset="held_out"}'
        metrics = {
            "rl_trainer_planned_steps": 120.0,
            "rl_trainer_global_step": float(step),
            'rl_eval_pass_ratio{dataset="held_out",k="4"}': rate,
            f"rl_eval_prompts{labels}": 256.0,
            f"rl_eval_last_step{labels}": float(step),
            f"rl_eval_branch{labels}": 0.0,
        }
        snapshot = Snapshot(at=float(step), sampled_at=float(step), metrics=metrics)
        began = time.process_time_ns()
        outlooks.take_in(snapshot, 0)
        spent.append((time.process_time_ns() - began) / 1e6)
    late = spent[10:]
    print(f"| a look with a new evaluation (11th to 60th) | {min(late):.3f} | {float(np.median(late)):.3f} |")
    print(f"| the same, the slowest (a refit) | {max(late):.3f} | |")


if __name__ == "__main__":
    main()
