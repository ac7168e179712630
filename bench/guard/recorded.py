"""The policy on public training logs: `python bench/guard/recorded.py CURVES [--policy guard]`.

Healthy logs: no rollback, no softening. The two logs that go bad: at which step people would have heard, and how far the
damage had come by then.
"""

import argparse
from pathlib import Path

import numpy as np

from controlplane.hindsight import Hindsight, fitted, of_table, rehearse
from controlplane.policy import load
from controlplane.recorded import Table, read_run

BAD = {"agent_opd__i80f2v90": "collapse", "agent_opd__do7bl4gg": "truncation explosion"}


def judge(path: Path, policy: str) -> tuple[Table, Hindsight]:
    table = read_run(path)
    chosen, _ = fitted(load(policy), table)
    return table, rehearse(of_table(table)[0], chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", type=Path)
    parser.add_argument("--policy", default="guard")
    options = parser.parse_args()
    print(
        f"policy {options.policy}\n\n| log | rows | rollbacks | softenings | told | first told at | detectors in alarm |"
    )
    print("|---|---|---|---|---|---|---|")
    healthy = wrong = 0
    details = []
    for path in sorted(options.curves.glob("*.csv")):
        table, seen = judge(path, options.policy)
        back = sum(each.rolls_back for each in seen.acts)
        soft = len(seen.acts) - back
        first = f"{seen.said[0].step} ({seen.said[0].rule})" if seen.said else "-"
        alarms = ", ".join(
            f"{name} from {stretches[0][0]}"
            for name, stretches in sorted(seen.alarms.items(), key=lambda i: i[1][0][0])
        )
        print(f"| {table.name} | {len(table)} | {back} | {soft} | {len(seen.said)} | {first} | {alarms or '-'} |")
        if table.name in BAD:
            details += damage(table, seen)
        else:
            healthy, wrong = healthy + 1, wrong + (back > 0)
    print(f"\nhealthy logs with a rollback: {wrong} of {healthy}\n")
    print("\n".join(details))


def damage(table: Table, seen: Hindsight) -> list[str]:
    """How the run stood whenever something new was said or first in alarm."""
    steps = sorted({each.step for each in seen.said} | {stretches[0][0] for stretches in seen.alarms.values()})
    out = [
        f"{table.name} ({BAD[table.name]})",
        "",
        "| step | pass rate | truncated | mean length | new |",
        "|---|---|---|---|---|",
    ]
    for step in [int(table.step[0]), *steps, int(table.step[-1])]:
        row = int(np.searchsorted(table.step, step))
        new = [f"{name} in alarm" for name, stretches in seen.alarms.items() if stretches[0][0] == step]
        new += [f"told: {each.rule}" for each in seen.said if each.step == step]
        at = {
            name: float(table.columns[name][min(row, len(table) - 1)])
            for name in ("pass_rate", "truncation", "gen_length")
        }
        out.append(
            f"| {step} | {at['pass_rate']:.3f} | {at['truncation']:.3f} | {at['gen_length']:.0f} | {'; '.join(new) or '-'} |"
        )
    return [*out, ""]


if __name__ == "__main__":
    main()
