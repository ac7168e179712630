"""How noisy is the difference between two arms that are equally good, and what do shared prompts and seeds save?

A real tiny run is stopped at some steps; from each snapshot, arms are trained whose learning rates differ by a thousandth or a tenth:
with the prompts and sampling seeds of the first arm, and with others. Writes one JSON line per arm and step
to OUT (resumable: what is there is not run again) and prints the variances and correlations of the differences.

    python bench/tuning/twins.py OUT [--steps 60] [--starts 30,90] [--seeds 0,1]
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from controlplane.contract.rundir import RunDir, append_line, read_lines
from tests.trainer.conftest import Script
from trainer.build import assemble
from trainer.loop import Loop
from trainer.recipe import find_recipe, load_recipe
from trainer.stopwatch import Stopwatch
from trainer.types import Version
from trainer.warmstart import warm_started

ARMS = {
    "control": (1.0, 0),
    "twin": (1.001, 0),
    "near": (1.1, 0),
    "other": (1.1, 7),
    "near2": (0.9, 0),
    "other2": (0.9, 8),
}
"""Arm -> factor on the learning rate, salt of other prompts and seeds (0: those of the run)."""


def steps_of(loop: Loop, snapshot: Any, scale: float, salt: int, steps: int) -> Iterator[dict[str, Any]]:
    """Train an arm from a snapshot."""
    now = loop.state.version
    loop.savepoints.fork(snapshot, Version(now.branch, now.n + 1))
    if salt:
        loop.session.collector.flush()
        state = loop.session.curriculum.state_dict()
        loop.session.curriculum.load_state_dict({**state, "salt": salt, "shuffled": salt})
    loop._stepper.publish()
    loop.tunables["lr_scale"] = scale
    for t in range(1, steps + 1):
        stepped = loop._stepper.step()
        assert stepped is not None
        yield {"t": t, "prompts": [[*s.item, s.passed, len(s.verdicts)] for s in stepped.batch]}


def run(out: Path, seed: int, starts: list[int], steps: int) -> None:
    """All starts of one seed, in one process."""
    done = {(line["seed"], line["start"], line["arm"]) for line in read_lines(out) if line["t"] == steps}
    if all((seed, start, arm) in done for start in starts for arm in ARMS):
        return
    recipe = load_recipe(find_recipe("tiny"), {"seed": str(seed), "evaluation.every": "1000", "steps": "1000"})
    with tempfile.TemporaryDirectory() as root:
        rundir = RunDir(Path(root))
        start_model = warm_started(recipe.model, recipe.task, recipe.warm_start)
        loop = assemble(recipe, rundir, start_model, Script(), recipe.tunables(), Stopwatch())
        loop._stepper.publish()
        for start in starts:
            while loop.state.step < start:
                loop._stepper.step()
            snapshot = loop.savepoints.snapshot()
            for arm, (scale, salt) in ARMS.items():
                if (seed, start, arm) not in done:
                    for line in steps_of(loop, snapshot, scale, salt, steps):
                        append_line(out, {"seed": seed, "start": start, "arm": arm, **line})
                    print(f"seed {seed}, step {start}, {arm}: {steps} steps", flush=True)
            now = loop.state.version
            loop.savepoints.fork(snapshot, Version(now.branch, now.n + 1))
            loop.tunables["lr_scale"] = 1.0
            loop._stepper.publish()


def curves(out: Path, arms: tuple[str, str]) -> np.ndarray:
    """[pairs, steps] differences in pass rate of two arms."""
    rates: dict[tuple[int, int, str], dict[int, float]] = {}
    for line in read_lines(out):
        rate = sum(p[2] for p in line["prompts"]) / sum(p[3] for p in line["prompts"])
        rates.setdefault((line["seed"], line["start"], line["arm"]), {})[line["t"]] = rate
    starts = sorted({key[:2] for key in rates})
    rows = [
        [rates[(*start, arms[1])][t] - rates[(*start, arms[0])][t] for t in sorted(rates[(*start, arms[0])])]
        for start in starts
        if (*start, arms[1]) in rates and len(rates[(*start, arms[1])]) == len(rates[(*start, arms[0])])
    ]
    return np.array(rows)


def report(out: Path) -> None:
    """Prints variance of a step's difference, and its autocorrelation, for both designs."""
    shared = np.concatenate([d for d in (curves(out, ("control", arm)) for arm in ("near", "near2")) if d.size])
    others = np.concatenate([d for d in (curves(out, ("control", arm)) for arm in ("other", "other2")) if d.size])
    for name, d in (("shared prompts and seeds", shared), ("other prompts", others)):
        thirds = np.array_split(d, 3, axis=1)
        print(f"{name}: {len(d)} pairs, sd of a step's difference {d.std():.4f}", end="")
        print(", by third of the arm", " ".join(f"{third.std():.4f}" for third in thirds), end="")
        e = d[:, 10:]
        acf = [float((e[:, lag:] * e[:, : e.shape[1] - lag]).mean() / (e * e).mean()) for lag in (1, 2, 5, 10, 20)]
        print("; autocorrelation at lag 1, 2, 5, 10, 20:", " ".join(f"{a:.2f}" for a in acf))
    print(json.dumps({"variance_reduction": float(1 - (shared**2).mean() / (others**2).mean())}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--starts", default="30,90")
    parser.add_argument("--seeds", default="0,1")
    options = parser.parse_args()
    for each in map(int, options.seeds.split(",")):
        run(options.out, each, [int(s) for s in options.starts.split(",")], options.steps)
    report(options.out)
