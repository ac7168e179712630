"""Wrong actions on healthy runs: `python bench/guard/healthy.py [--runs 2000] [--steps 2000] [--policy guard]`.

Each run is a course of its own (law, batch, noise, lengths, checkpoints) in which nothing breaks, under the policy with
autonomy to act. Whatever it does to such a run is wrong. Shares with Wilson's 95 % interval.
"""

import argparse
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from jobs import run

from controlplane.policy import load
from controlplane.sim.course import Course
from controlplane.sim.fleet import play, wilson


def one(policy: str, steps: int, seed: int) -> dict[str, Any]:
    """What was told in one run, as plain values."""
    started = time.process_time()
    story = play(Course.draw(seed, steps), load(policy))
    told = [
        (
            each.decision.kind.value,
            each.decision.rule or "",
            each.rolls_back,
            each.executed,
            each.decision.reason,
            each.changes,
        )
        for each in story.told
    ]
    return {"job": seed, "looks": story.looks, "told": told, "cpu": time.process_time() - started}


def share(name: str, part: int, whole: int, allowed: float | None) -> str:
    low, high = wilson(part, whole)
    verdict = "" if allowed is None else "met" if part / whole <= allowed else "missed"
    limit = "" if allowed is None else f"{allowed:.0%}"
    return f"| {name} | {part} of {whole} | {part / whole:.2%} | {low:.2%} to {high:.2%} | {limit} | {verdict} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first run")
    parser.add_argument("--policy", default="guard")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--show", type=int, default=5, help="wrong actions to print in full")
    parser.add_argument("--out", type=Path, help="file of finished runs, to go on with")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no run after so long; 0: no limit")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.runs)
    rows = run(partial(one, options.policy, options.steps), seeds, options.jobs, options.out, options.minutes)
    told = [[tuple(each) for each in row["told"]] for row in rows]
    n, looks, cpu = len(rows), sum(row["looks"] for row in rows), sum(row["cpu"] for row in rows)
    print(f"policy {options.policy}, {n} runs of {options.steps} steps, {looks} looks, {cpu / 60:.1f} CPU-minutes\n")
    print("| | runs | share | 95 % interval | allowed | |\n|---|---|---|---|---|---|")
    acts = [[each for each in one_run if each[0] == "act"] for one_run in told]
    print(share("any wrong rollback", sum(any(each[2] for each in one_run) for one_run in acts), n, 0.01))
    print(share("any wrong softening", sum(any(each[5] for each in one_run) for one_run in acts), n, 0.05))
    print(share("a person paged", sum(any(each[0] == "page" for each in one_run) for one_run in told), n, None))
    print(share("a person advised", sum(any(each[0] == "advise" for each in one_run) for one_run in told), n, None))
    print(share("nothing told at all", sum(not one_run for one_run in told), n, None))
    print("\n| told | rule | runs with it | times | per 1,000 steps |\n|---|---|---|---|---|")
    times = Counter((each[0] + (" (rollback)" if each[2] else ""), each[1]) for one_run in told for each in one_run)
    for (kind, rule), number in sorted(times.items(), key=lambda item: -item[1]):
        runs = sum(any(each[0] in kind and each[1] == rule for each in one_run) for one_run in told)
        print(f"| {kind} | {rule} | {runs} | {number} | {1000 * number / looks:.3f} |")
    wrong = [(row["job"], each) for row, one_run in zip(rows, acts, strict=True) for each in one_run]
    for seed, each in wrong[: options.show]:
        print(f"\nseed {seed}, step {each[3]}, {each[1]}: {each[4]}")


if __name__ == "__main__":
    main()
