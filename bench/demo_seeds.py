"""The demo over several seeds: guarded, only observed, and undisturbed. `python bench/demo_seeds.py --seeds 1 2 3 4 5`

Prints one line per run and a table at the end: held-out pass rate at the start, before the fault, at its lowest after it and
at the end; steps from the fault to the rollback; number of rollbacks; wall time. Nothing is left out and no seed is repeated:
a finished run of an earlier call is used as it is.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from controlplane.record import Record

ARMS = {
    "guarded": ["--fault", "--at-most", "act"],
    "observed": ["--fault", "--at-most", "observe"],
    "undisturbed": ["--no-fault", "--at-most", "act"],
}


def run(out: Path, seed: int, arm: str) -> Path:
    """The finished run of one arm; runs it if need be."""
    folder = out / f"{arm}-{seed}"
    done = list(folder.glob("demo-*/report.html"))
    if not done:
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        command = [sys.executable, "-m", "controlplane", "demo", "--out", str(folder), "--seed", str(seed), *ARMS[arm]]
        with open(folder / "terminal.log", "ab") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        (folder / "wall_seconds").write_text(f"{time.monotonic() - started:.1f}")
        done = list(folder.glob("demo-*/report.html"))
    return done[0].parent


def facts(root: Path, seed: int, arm: str) -> dict[str, object]:
    """Figures of one finished run, from what the trainer itself wrote down."""
    record = Record.of(root)
    fault = next((e for e in record.events if e["event"] == "fault"), None)
    rollbacks = [e for e in record.events if e["event"] == "rollback"]
    evals = [(e["step"], e["branch"], e["pass_ratio"]) for e in record.evals]
    final = evals[-1][2]
    row: dict[str, object] = {
        "seed": seed,
        "arm": arm,
        "first": evals[0][2],
        "final": final,
        "rollbacks": len(rollbacks),
    }
    if fault is not None:
        at = fault["step"]
        before = [p for s, b, p in evals if b == 0 and s <= at][-1]
        after = [p for s, b, p in evals if b > 0 or s > at]
        row |= {"before": before, "lowest": min(after), "recovered": final > before}
    if fault is not None and rollbacks:
        row["steps_to_rollback"] = rollbacks[0].get("from_step", 0) - fault["step"]
    wall = root.parent / "wall_seconds"
    row["seconds"] = float(wall.read_text()) if wall.exists() else None
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        for arm in options.arms:
            rows.append(facts(run(options.out, seed, arm), seed, arm))
            print(json.dumps(rows[-1]), flush=True)
    columns = [
        "arm",
        "seed",
        "first",
        "before",
        "lowest",
        "final",
        "recovered",
        "rollbacks",
        "steps_to_rollback",
        "seconds",
    ]
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in sorted(rows, key=lambda r: (list(ARMS).index(str(r["arm"])), r["seed"])):
        cells = [row.get(c) for c in columns]
        print(
            "| " + " | ".join(f"{c:.3f}" if isinstance(c, float) else "" if c is None else str(c) for c in cells) + " |"
        )


if __name__ == "__main__":
    main()
