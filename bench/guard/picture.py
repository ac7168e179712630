"""Broken runs with and without a guard, as a picture: `python bench/guard/picture.py OUT.png [--runs 12]`.

For each kind of fault that a rollback can undo: held-out ability of the simulated policy over that just before the fault,
median and 10 % to 90 % over runs, under the policy and under the same policy that may only observe.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from controlplane.decide import Decision
from controlplane.policy import Autonomy, Policy, load
from controlplane.report.plots import STYLE
from controlplane.report.theme import light
from controlplane.sim.course import Course
from controlplane.sim.fast import FastRun
from controlplane.sim.fleet import DRAWS, ROLLBACK_HELPS, play
from controlplane.snapshot import Snapshot

BEFORE, AFTER = 40, 300


def path(kind: str, seed: int, policy: Policy) -> np.ndarray:
    """Ability at each executed step around the fault, over that just before it."""
    rng = np.random.default_rng((seed, 3))
    at = int(rng.integers(250, 700))
    seen: dict[int, float] = {}

    def watch(run: FastRun, _snapshot: Snapshot, _decision: Decision) -> None:
        seen[run.executed] = run.body.held_out

    play(Course.draw(seed), policy, (DRAWS[kind](rng, at),), steps=at + AFTER, watch=watch)
    return np.array([seen.get(step, np.nan) for step in range(at - BEFORE, at + AFTER)]) / seen[at - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--policy", default="guard")
    options = parser.parse_args()
    guard = load(options.policy)
    arms = (("only observed", guard.capped(Autonomy.observe), "bad"), ("guarded", guard, "held"))
    ground = {"figure.facecolor": light("page"), "savefig.facecolor": light("page")}
    with matplotlib.rc_context({**STYLE, **ground}):
        figure = Figure(figsize=(10, 5.6), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, kind in zip(figure.subplots(2, 2, sharex=True, sharey=True).flat, ROLLBACK_HELPS, strict=True):
            for label, policy, colour in arms:
                paths = np.array([path(kind, seed, policy) for seed in range(options.runs)])
                steps = np.arange(-BEFORE, AFTER)
                low, middle, high = np.nanquantile(paths, (0.1, 0.5, 0.9), axis=0)
                axes.fill_between(steps, low, high, color=light(colour), alpha=0.18, linewidth=0)
                axes.plot(steps, middle, color=light(colour), linewidth=1.8, label=label)
            axes.axvline(0, color=light("soft"), linewidth=0.8, linestyle=":")
            axes.set_title(kind)
            axes.set_ylim(0, 1.5)
        figure.axes[0].legend(frameon=False, loc="lower left")
        figure.supxlabel("steps executed since the fault began", fontsize=9)
        figure.supylabel("held-out ability over that before the fault", fontsize=9)
        figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
