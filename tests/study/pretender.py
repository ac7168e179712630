"""A trainer that pretends: it writes what the real one writes, a curve of the law given by its settings.

    python pretender.py ROOT SETTINGS      SETTINGS: JSON of every --set of the study

It goes on where it was, ends at once if it has ended, and counts its starts in ROOT/starts. Settings that it knows:
steps, A, B, C_mid (in steps), noise, seed, fail (a step at which it dies), sleep (seconds per step).
"""

import json
import random
import signal
import sys
import time
from pathlib import Path

R0, EVERY, N = 0.12, 5, 128


def main() -> int:
    root, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "starts", "a") as file:
        file.write("x")
    stopping: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: stopping.append(number))
    steps = int(settings.get("steps", 60))
    info = {
        "run_uid": "u", "name": settings["name"], "created_at": 0.0, "planned_steps": steps, "config_hash": "",
        "framework": "", "algorithm": "", "model": "",
    }  # fmt: skip
    (root / "run.json").write_text(json.dumps(info))
    done = (root / "steps.jsonl").read_text().count("\n") if (root / "steps.jsonl").exists() else 0
    if done >= steps:
        return 0
    say(root, "events", {"event": "resume" if done else "start", "step": done, "branch": 0, "time": 0.0})
    if not done:
        evaluate(root, settings, 0)
    for step in range(done + 1, steps + 1):
        if stopping:
            say(root, "events", {"event": "stop", "step": step - 1, "branch": 0, "time": 0.0})
            return 0
        if str(step) == settings.get("fail"):
            print("out of memory")
            return 3
        time.sleep(float(settings.get("sleep", 0)))
        line = {"step": step, "branch": 0, "time": float(step), "n": N, "pass_ratio": 0.5, "compute": 0.5 * step}
        say(root, "steps", {**line, "phase_seconds": {"generating": 0.4, "training": 0.2}})
        if step % EVERY == 0:
            evaluate(root, settings, step)
    say(root, "events", {"event": "end", "step": steps, "branch": 0, "time": 0.0})
    return 0


def evaluate(root: Path, settings: dict[str, str], step: int) -> None:
    a, b, mid = (float(settings.get(key, default)) for key, default in (("A", 0.9), ("B", 2.0), ("C_mid", 15.0)))
    rate = R0 + ((a - R0) / (1 + (mid / step) ** b) if step else 0.0)
    rate += random.Random(f"{settings['seed']}-{step}").gauss(0, float(settings.get("noise", 0.003))) if step else 0.0
    line = {"dataset": "held_out", "step": step, "branch": 0, "compute": 0.5 * step, "prompts": 256, "k": 4}
    say(root, "evals", {**line, "pass_ratio": min(max(rate, 0.0), 1.0), "time": float(step)})


def say(root: Path, name: str, line: dict[str, object]) -> None:
    with open(root / f"{name}.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    sys.exit(main())
