"""What becomes of broken runs: `python bench/guard/faults.py [--runs 200] [--policy guard]`.

One fault per run, of a severity drawn at random, between steps 250 and 700; the run is played for 400 executed steps
behind it, and actions are carried out. Delays count the first faulty step as 1.

    told       somebody heard of it: a page, an advice or an action after the fault began
    keys       the detectors that stood first, in how many runs
    recovered  held-out ability at the end is at least 95 % of that just before the fault
    wrong      the run was changed for a fault of its surroundings
"""

import argparse
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from jobs import run

from controlplane.policy import load
from controlplane.sim.fleet import DRAWS, HARMLESS, ROLLBACK_HELPS, broken, wilson

TIMED = ("generator stall", "metric loss")


def one(policy: str, job: list[Any]) -> dict[str, Any]:
    """What became of one broken run, as plain values."""
    kind, seed = job
    story = broken(kind, seed, load(policy))
    first = story.heard[0].decision if story.heard else None
    acted = [each.executed - (story.onset or 0) + 1 for each in story.heard if each.decision.kind.value == "act"]
    return {
        "job": job,
        "kind": kind,
        "delay": story.delay,
        "seconds": story.seconds,
        "acted": acted[0] if acted else None,
        "rule": first.rule if first else None,
        "key": min(story.breaches, key=lambda name: story.breaches[name]) if story.breaches else None,
        "rollbacks": story.rollbacks,
        "changes": story.changes,
        "recovered": story.recovered,
        "final": story.final / max(story.ability, 1e-9),
    }


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]


def delays(values: list[float], unit: str = "") -> str:
    return f"{quantile(values, 0.5):.0f}{unit} / {quantile(values, 0.95):.0f}{unit}" if values else "-"


def line(kind: str, rows: list[dict[str, Any]]) -> str:
    n = len(rows)
    told = sum(row["delay"] is not None for row in rows)
    low, high = wilson(told, n)
    if kind in TIMED:
        first = delays([row["seconds"] for row in rows if row["seconds"] is not None], " s")
    else:
        first = delays([row["delay"] for row in rows if row["delay"] is not None])
    acted = delays([row["acted"] for row in rows if row["acted"] is not None])
    back, soft = sum(row["rollbacks"] > 0 for row in rows), sum(row["changes"] > 0 for row in rows)
    well = sum(row["recovered"] for row in rows)
    rules = ", ".join(
        f"{rule} {count}" for rule, count in Counter(row["rule"] for row in rows if row["rule"]).most_common(3)
    )
    wrong = sum(row["rollbacks"] + row["changes"] > 0 for row in rows) if kind in HARMLESS else "-"
    return (
        f"| {kind} | {n} | {told / n:.1%} ({low:.0%} to {high:.0%}) | {first} | {acted} | {back} | {soft} | {well / n:.1%} | "
        f"{wrong} | {rules} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="runs per kind")
    parser.add_argument("--policy", default="guard")
    parser.add_argument("--kinds", default=",".join(DRAWS), help="comma-separated")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file of finished runs, to go on with")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no run after so long; 0: no limit")
    options = parser.parse_args()
    kinds = [kind.strip() for kind in options.kinds.split(",")]
    # Seeds outside, kinds inside: a run that is cut short has as many of each kind.
    jobs = [[kind, seed] for seed in range(options.runs) for kind in kinds]
    rows = run(partial(one, options.policy), jobs, options.jobs, options.out, options.minutes)
    print(f"policy {options.policy}, {len(rows)} runs\n")
    print(
        "| fault | told | delay, median / 95 % | to the action | rolled back | softened | recovered | wrong | first told by |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for kind in kinds:
        if mine := [row for row in rows if row["kind"] == kind]:
            print(line(kind, mine))
    helped = [row for row in rows if row["kind"] in ROLLBACK_HELPS]
    if helped:
        well = sum(row["recovered"] for row in helped)
        low, high = wilson(well, len(helped))
        verdict = "met" if well / len(helped) >= 0.95 else "missed"
        print(
            f"\nwhere a rollback can help: {well} of {len(helped)} recovered, {well / len(helped):.1%} ({low:.1%} to {high:.1%}); at least 95 %: {verdict}"
        )


if __name__ == "__main__":
    main()
