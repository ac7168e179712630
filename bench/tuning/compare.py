"""Does tuning help a badly set run, and harm a well set one? Real tiny runs: starts x arms x seeds, one after the other.

Arms that exist: `none` (no controller) and `inline` (probes by a person's order at the steps of --ask-at, or when the forecast says
so). Resumable: a run that has ended is not run again. Prints final held-out pass rate, compute to 0.85, and harm.

    python bench/tuning/compare.py OUT [--starts lr6low,tuned] [--arms none,inline] [--seeds 0] [--steps 120] [--ask-at 20,60]
"""

import argparse
import getpass
import signal
import subprocess
import sys
import time
from pathlib import Path

from controlplane.contract.approvals import Order
from controlplane.contract.rundir import RunDir, read_lines
from controlplane.post import say

STARTS = {
    "lr6low": {"optimizer.lr": "1.667e-5"},
    "lr3low": {"optimizer.lr": "3.333e-5"},
    "tuned": {},
    "lr3high": {"optimizer.lr": "3e-4"},
    "batch_small": {"batch.prompts_per_step": "4"},
    "clip_tight": {"loss.ratio_max": "1.05"},
}
HARM = 0.01
POLICY = Path(__file__).parent / "policy.yaml"
RAILS = "{lr_scale: {min: 0.25, max: 8.0}, prompts_per_step: {min: 4, max: 64}}"


def ended(run: Path) -> bool:
    return any(event["event"] == "end" for event in read_lines(RunDir(run).events))


def go(run: Path, start: str, arm: str, seed: int, steps: int, ask_at: list[int]) -> None:
    """One run to its end; a controller beside it where the arm has one."""
    keys = {
        "seed": str(seed),
        "steps": str(steps),
        "guard_rails.bounds": RAILS,
        "guard_rails.cooldown_steps": "0",
        **STARTS[start],
    }
    scalerl = [sys.executable, "-m", "controlplane.cli"]
    overrides = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    run.mkdir(parents=True, exist_ok=True)
    trainer = subprocess.Popen([*scalerl, "train", "tiny", "--run", str(run), "--quiet", *overrides])
    controller = None
    if arm == "inline":
        log = (run / "controller.log").open("w")
        command = [*scalerl, "control", str(run), "--policy", str(POLICY), "--interval", "0.5", "--record", "0"]
        controller = subprocess.Popen(command, stderr=log)
    asked: set[int] = set()
    while trainer.poll() is None:
        time.sleep(1.0)
        step = max((line["step"] for line in read_lines(RunDir(run).steps)), default=0)
        for due in ask_at if controller else ():
            if step >= due and due not in asked:
                asked.add(due)
                order = Order(
                    order_id=f"bench-{due}", action="probe", tunable="lr_scale", by=getpass.getuser(), at=time.time()
                )
                say(RunDir(run), order)
    if controller is not None:
        controller.send_signal(signal.SIGTERM)
        controller.wait(30)
    if trainer.returncode:
        raise SystemExit(f"{run}: the trainer ended with {trainer.returncode}")


def result(run: Path) -> dict[str, float]:
    evals = list(read_lines(RunDir(run).evals))
    branch = evals[-1]["branch"]
    reached = [line["compute"] for line in evals if line["branch"] <= branch and line["pass_ratio"] >= 0.85]
    spent = [line for path in RunDir(run).probes.glob("*.jsonl") for line in read_lines(path) if line["kind"] == "end"]
    given_up = sum(s for line in spent for arm, s in line["device_seconds"].items() if arm != line["outcome"])
    outcomes = ",".join(line["outcome"] for line in sorted(spent, key=lambda line: line["time"]))
    return {
        "final": evals[-1]["pass_ratio"],
        "stderr": evals[-1]["pass_ratio_stderr"],
        "compute": evals[-1]["compute"],
        "given_up": given_up,
        "to_085": reached[0] if reached else float("nan"),
        "outcomes": outcomes,  # type: ignore[dict-item]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--starts", default="lr6low,tuned")
    parser.add_argument("--arms", default="none,inline")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--ask-at", default="20,60")
    options = parser.parse_args()
    ask_at = [int(step) for step in options.ask_at.split(",") if step]
    for seed in map(int, options.seeds.split(",")):
        for start in options.starts.split(","):
            for arm in options.arms.split(","):
                run = options.out / f"{start}-{arm}-s{seed}"
                if not ended(run):
                    go(run, start, arm, seed, options.steps, ask_at)
                r, base = result(run), options.out / f"{start}-none-s{seed}"
                harmed = r["final"] < result(base)["final"] - HARM if arm != "none" and ended(base) else False
                print(
                    f"{start:12s} {arm:7s} seed {seed}: held-out {r['final']:.3f} +- {r['stderr']:.3f}, compute {r['compute']:.0f} "
                    f"(and {r['given_up']:.0f} given up), to 0.85 {r['to_085']:.0f}, probes {r['outcomes'] or 'none'}{', HARMED' if harmed else ''}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
