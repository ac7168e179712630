"""Whether the state machine can fail: `python bench/guard/mutants.py [--examples 150] [--only NAME]`.

The code is broken in one place at a time, in a copy, and `tests/machine` runs on the copy until it finds the break. A mutant
that nothing finds is a hole in the machine, or two walls behind each other of which one still stands.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Edit:
    file: str
    old: str
    new: str


MUTANTS: dict[str, tuple[Edit, ...]] = {
    "published before it is written down": (
        Edit(
            "controlplane/loop.py",
            "        self._journal.append([(EntryKind.published, body)], self._clock())\n        if not self._post.publish(document):",
            "        published = self._post.publish(document)\n        self._journal.append([(EntryKind.published, body)], self._clock())\n        if not published:",
        ),
    ),
    "a look is written down otherwise than it was": (
        Edit(
            "controlplane/loop.py",
            "[(EntryKind.look, _body(snapshot, judgement, decision)), *rows], snapshot.at)",
            "[(EntryKind.look, _body(snapshot, judgement, decision.model_copy(update={'reason': ''}))), *rows], snapshot.at)",
        ),
    ),
    "acts on old data": (
        Edit("controlplane/decide/evaluator.py", "        if age > limit:", "        if False:"),
        Edit(
            "controlplane/decide/evaluator.py",
            "        if snapshot.observed is None or snapshot.sampled_at is None:",
            "        if snapshot.observed is None:",
        ),
        Edit("controlplane/decide/evaluator.py", "        age = snapshot.at - snapshot.sampled_at", "        age = 0.0"),
        Edit(
            "controlplane/decide/evaluator.py",
            "self._seen_at = snapshot.sampled_at or snapshot.at",
            "self._seen_at = snapshot.at",
        ),
    ),
    "acts beside a page of NaN": (
        Edit("controlplane/decide/evaluator.py", "        gone = self._step is not None and", "        gone = False and"),
    ),
    "an old controller is not fenced off": (
        Edit("controlplane/agent/guardrails.py", "    if desired.epoch < memory.epoch:", "    if False:"),
    ),
    "a late document is applied": (
        Edit("controlplane/agent/guardrails.py", "    if step > desired.expires_at_step:", "    if False:"),
    ),
    "a decision is applied twice": (
        Edit(
            "controlplane/agent/agent.py",
            "if answer := self._memory.answers.get(desired.decision_id):",
            "if (answer := self._memory.answers.get(desired.decision_id)) and not answer:",
        ),
        Edit("controlplane/agent/guardrails.py", "    if desired.decision_id in memory.answers:", "    if False:"),
        Edit(
            "controlplane/agent/guardrails.py",
            "    if desired.generation <= newest and desired.decision_id != memory.waiting:",
            "    if False:",
        ),
        Edit(
            "controlplane/agent/guardrails.py",
            "    if desired.base_generation != memory.applied_generation:",
            "    if False:",
        ),
    ),
    "signatures are not checked": (
        Edit("controlplane/agent/mailbox.py", "    if not desired.verified(key):", "    if False:"),
    ),
    "clamps are not applied": (
        Edit(
            "controlplane/decide/action.py",
            "    value = min(max(value, low), high)\n    return float",
            "    return float",
        ),
    ),
    "rolls back to any checkpoint": (
        Edit("controlplane/decide/action.py", "if c.health is Health.good and c.step <= latest", "if c.step <= latest"),
        Edit("controlplane/agent/guardrails.py", "    if found[0].health is not Health.good:", "    if False:"),
    ),
    "a rule has no limit": (
        Edit("controlplane/decide/action.py", "    if len(times) >= limits.max_per_run:", "    if False:"),
    ),
    "rollbacks have no limit": (
        Edit(
            "controlplane/decide/action.py",
            "    if rule.then.rollback and len(standing.rollbacks) >= budget.max_rollbacks:",
            "    if False:",
        ),
        Edit("controlplane/agent/guardrails.py", "    if state.memory.rollbacks >= rails.max_rollbacks:", "    if False:"),
    ),
    "a lease does not lapse": (
        Edit("controlplane/agent/memory.py", "due = [lease for lease in self.leases.values() if step > lease.until_step]", "due = list(self.leases.values())[:0]"),
    ),
    "a decision hangs on the wall clock": (
        Edit(
            "controlplane/decide/evaluator.py",
            "        age = snapshot.at - snapshot.sampled_at",
            "        import time\n        age = snapshot.at - snapshot.sampled_at + (time.time_ns() % 7) * 15",
        ),
    ),
}  # fmt: skip


def run(name: str, examples: int) -> str:
    """One mutant: a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("controlplane", "tests/machine"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "tests" / "__init__.py").write_text("")
        for edit in MUTANTS[name]:
            file = copy / edit.file
            text = file.read_text()
            if text.count(edit.old) != 1:
                raise SystemExit(
                    f"{name}: {edit.file} has {text.count(edit.old)} places like {edit.old.strip()!r}, not one"
                )
            file.write_text(text.replace(edit.old, edit.new))
        hypothesis = {"HYPOTHESIS_STORAGE_DIRECTORY": str(copy / "hypothesis")}
        environment = {**os.environ, **hypothesis, "PYTHONPATH": folder, "SCALERL_MACHINE_EXAMPLES": str(examples)}
        started = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/machine", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, "--rootdir", folder], cwd=folder, env=environment, capture_output=True, text=True
        )
        took = time.monotonic() - started
    if done.returncode == 0:
        return f"| {name} | NOT FOUND in {examples} examples | | {took:.0f} |"
    said = re.findall(r"^E   +(?!\|)(.+)$", done.stdout, re.MULTILINE)
    return f"| {name} | found | {said[0][:90] if said else done.stdout[-200:]!r} | {took:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100, help="at most 100 keeps out shrinking")
    parser.add_argument("--only", choices=list(MUTANTS), action="append")
    options = parser.parse_args()
    print("| broken on purpose | | what the machine said | seconds |\n|---|---|---|---|")
    for name in options.only or MUTANTS:
        print(run(name, options.examples), flush=True)


if __name__ == "__main__":
    main()
