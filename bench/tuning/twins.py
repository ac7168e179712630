"""How noisy is the difference between two arms that are equally good, and what do shared prompts and seeds save?

A real tiny run is stopped at some step; from the snapshot, arms are trained whose learning rates differ by a thousandth or a tenth:
with the prompts and sampling seeds of the control, and with others. One JSON line per pair goes to --out (what is there is not
run again). Printed are the variance of a step's difference in both designs, the noise that the judge has to be told
(wandering.py), and what the judge makes of the pairs.

    python -m bench.tuning.twins run --out PAIRS [--seeds 0,1] [--starts 30] [--arms near,near2] [--steps 60]
    python -m bench.tuning.twins report --out PAIRS
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bench.tuning.lab import made
from bench.tuning.wandering import SHARED, fit, pairs, residuals
from controlplane.contract.rundir import append_line, read_lines
from controlplane.tune.judge import Terms, judge
from controlplane.tune.pairing import PromptResult, pair
from trainer.loop import Loop
from trainer.recipe import find_recipe, load_recipe

ARMS = {"twin": (1.001, 0), "near": (1.1, 0), "near2": (0.9, 0), "other": (1.1, 7), "other2": (0.9, 8)}
"""Arm -> factor on the learning rate, salt of other prompts and seeds (0: those of the control)."""
OTHER = ("other", "other2")


def trained(loop: Loop, snapshot: Any, scale: float, salt: int, steps: int) -> list[PromptResult]:
    """What an arm from this snapshot does with its prompts."""
    loop.machine.fork(snapshot)
    if salt:
        loop.session.collector.flush()
        state = loop.session.curriculum.state_dict()
        loop.session.curriculum.load_state_dict({**state, "salt": salt, "shuffled": salt})
    loop.tunables["lr_scale"] = scale
    found = []
    for t in range(1, steps + 1):
        stepped = loop._stepper.step()
        assert stepped is not None
        found += [PromptResult(t, s.item, s.passed, len(s.verdicts)) for s in stepped.batch]
    return found


def run(out: Path, seed: int, starts: list[int], arms: list[str], steps: int) -> None:
    """All starts of one seed, in one process. Where an arm is missing, the control is trained again: it is not written down."""
    done = {(line["seed"], line["start"], line["arm"]) for line in read_lines(out)}
    missing = {start: [arm for arm in arms if (seed, start, arm) not in done] for start in starts}
    if not any(missing.values()):
        return
    recipe = load_recipe(find_recipe("tiny"), {"seed": str(seed), "evaluation.every": "1000", "steps": "1000"})
    with tempfile.TemporaryDirectory() as root:
        loop = made(Path(root), recipe)
        loop._stepper.publish()
        for start in sorted(missing):
            while loop.state.step < start:
                loop._stepper.step()
            snapshot = loop.savepoints.snapshot()
            control = trained(loop, snapshot, 1.0, 0, steps)
            for arm in missing[start]:
                scale, salt = ARMS[arm]
                append_line(out, line(seed, start, arm, control, trained(loop, snapshot, scale, salt, steps)))
                print(f"seed {seed}, step {start}, {arm}: {steps} steps", flush=True)
            trained(loop, snapshot, 1.0, 0, 0)


def line(seed: int, start: int, arm: str, control: list[PromptResult], candidate: list[PromptResult]) -> dict[str, Any]:
    """A pair as it is kept: pass rates of both arms at each step; where they share prompts, the differences as the judge sees them."""
    rates = []
    for results in (control, candidate):
        steps = sorted({r.t for r in results})
        rates.append([_rate([r for r in results if r.t == t]) for t in steps])
    kept = {"seed": seed, "start": start, "arm": arm, "control": rates[0], "candidate": rates[1]}
    if ARMS[arm][1]:
        return kept
    paired = pair(control, candidate)
    columns = {"t": paired.t, "difference": paired.difference, "error": paired.error, "prompts": paired.prompts}
    return kept | {name: [round(float(value), 5) for value in column] for name, column in columns.items()}


def _rate(results: list[PromptResult]) -> float:
    return round(sum(r.passed for r in results) / sum(r.samples for r in results), 5)


def report(out: Path) -> None:
    """Prints what a step's difference varies by in both designs, the noise that fits, and the judge's verdicts."""
    variance = {}
    rows = list(read_lines(out))
    both = {(r["seed"], r["start"]) for r in rows if r["arm"] in OTHER}
    for name, arms in (("shared prompts and seeds", SHARED), ("other prompts and seeds", OTHER)):
        found = [r for r in rows if r["arm"] in arms and (r["seed"], r["start"]) in both]
        d = np.array([np.subtract(r["candidate"], r["control"]) for r in found])
        variance[name] = (d**2).mean(1)
        seeds = len({r["seed"] for r in found})
        print(
            f"{name}: {len(d)} pairs of {seeds} seeds, rms of a step's difference {np.sqrt((d**2).mean()):.4f}", end=""
        )
        print(", by third of the arm", " ".join(f"{np.sqrt((x**2).mean()):.4f}" for x in np.array_split(d, 3, axis=1)))
    one, other = variance.values()
    rng = np.random.default_rng(0)
    drawn = [1 - one[i].mean() / other[i].mean() for i in rng.integers(len(one), size=(2000, len(one)))]
    low, high = np.quantile(drawn, (0.05, 0.95))
    print(f"variance reduction {1 - one.mean() / other.mean():.3f}, 90 % interval over pairs {low:.3f} to {high:.3f}")
    apart = [int(np.append(d.difference, 1.0).nonzero()[0][0]) for d in pairs(out, ("twin",))]
    print("steps for which arms a thousandth apart stayed identical:", *sorted(apart))
    noise = fit(residuals(out))
    print(f"noise that fits what is left between the seeds of an arm best: {noise.best}")
    print(f"the worst of the {noise.points} points of the grid that it does not rule out: {noise.worst}")
    for arm in SHARED:
        mine = pairs(out, (arm,))
        sixths = np.array_split(np.mean([p.difference for p in mine], axis=0), 6)
        verdicts = Counter(judge({"arm": each}, Terms(steps=60))["arm"].outcome.value for each in mine)
        print(f"{arm}, learning rate x {ARMS[arm][0]}: mean difference by sixth of the arm", end=" ")
        print(
            " ".join(f"{float(x.mean()):+.3f}" for x in sixths),
            "; verdicts if any advantage is enough:",
            dict(verdicts),
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--starts", default="30")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="0,1")
    options = parser.parse_args()
    if options.what == "run":
        for each in map(int, options.seeds.split(",")):
            run(options.out, each, [int(s) for s in options.starts.split(",")], options.arms.split(","), options.steps)
    report(options.out)
