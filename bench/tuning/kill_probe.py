"""kill -9 in the middle of probes: `python -m bench.tuning.kill_probe --rounds 20 --out build/kill-probe`

A real trainer (the tiny model), a real controller and, for every other probe, the spare process. In each round a person asks for a probe,
and at a random moment while it is under way one of them, drawn by lot, is killed with SIGKILL and started again by the same
command (the spare process is not: its probe ends). Then the record is judged: every probe ended once and every trial was closed once,
nothing was adopted twice, what is in force is what was adopted last, every prompt was trained once, and no process is left.

The policy believes far too easily, so that there are adoptions at all.
"""

import argparse
import json
import os
import random
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from bench.kill_rounds import SCALERL, TINY, Process, answers
from controlplane.contract.approvals import Order
from controlplane.contract.rundir import RunDir, read_lines
from controlplane.journal import EntryKind, Journal, JournalError
from controlplane.post import say
from controlplane.tune.command import study_name, study_url
from controlplane.tune.proposer import storage

POLICY = """
policy: v1
name: kill-probe
autonomy: {probe: act}
detectors:
  broken: {kind: nonfinite, steps: 9}
clamps:
  lr_scale: {min: 0.5, max: 2.0}
verdict: {revert: false}
tuning:
  design: DESIGN
  space: {lr_scale: 1.5}
  steps: 8
  arms: 2
  min_effect: 0.0
  confidence: 0.51
  max_probes: 0
  noise: {persistence: 0.0, wandering: 0.0}
"""


class Kills:
    """Trainer and controller, and the probes that are asked of them."""

    def __init__(self, root: Path, seed: int, train: list[str], patience: float = 240.0) -> None:
        self.rundir, self.rng, self.patience = RunDir(root / "run"), random.Random(seed), patience
        self.rundir.root.mkdir(parents=True, exist_ok=True)
        self._policy = root / "policy.yaml"
        self._design("inline")
        controlled = [*SCALERL, "control", str(self.rundir.root), "--policy", str(self._policy), "--interval", "0.2"]
        self.trainer = Process("trainer", [*train, "--run", str(self.rundir.root)], root / "trainer.log")
        self.controller = Process("controller", [*controlled, "--record", "0"], root / "controller.log")
        self.kills: Counter[str] = Counter()

    def run(self, designs: list[str], tell: Callable[[str], None] = lambda _: None) -> None:
        """One round for each design."""
        self.trainer.start()
        self.controller.start()
        self.until(lambda: self.step() >= 2, "the run to begin")
        for number, design in enumerate(designs, 1):
            self._with(design)
            record = self._probe()
            victims = ["trainer", "controller", *(["helper"] if design == "spare" else [])]
            victim = victims[(number - 1) % len(victims)]
            steps = self.rng.randrange(1, 20)
            self.until(lambda r=record, n=steps: len(lines(r)) > n or ended(r), f"a step of {record.stem}")
            self.strike(victim)
            self.until(lambda r=record: ended(r) and not self.open_trials(), f"the end of {record.stem}")
            step = self.step()
            self.until(lambda s=step: self.step() > s, f"life after round {number}")
            tell(
                f"round {number}: {design}, {victim} killed; {lines(record)[-1]['outcome']}: {lines(record)[-1]['reason']}"
            )
        self.trainer.end(signal.SIGTERM)
        self.controller.end(signal.SIGTERM)

    def close(self) -> None:
        for process in (self.trainer, self.controller):
            process.end(signal.SIGKILL)

    def strike(self, victim: str) -> None:
        self.kills[victim] += 1
        if victim == "helper":
            for pid in helpers(self.rundir):
                os.kill(pid, signal.SIGKILL)
            return
        process = {"trainer": self.trainer, "controller": self.controller}[victim]
        process.kill()
        time.sleep(self.rng.uniform(0, 0.5))
        process.start()

    def _with(self, design: str) -> None:
        """A controller reads its policy when it starts."""
        if f"design: {design}" in self._policy.read_text():
            return
        self.controller.end(signal.SIGTERM)
        self._design(design)
        self.controller.start()

    def _design(self, design: str) -> None:
        self._policy.write_text(POLICY.replace("DESIGN", design))

    def _probe(self) -> Path:
        """Ask for a probe; its record. A word that came while nobody led is said again."""
        known = set(self.rundir.probes.glob("*.jsonl"))
        asked = 0.0

        def begun() -> bool:
            nonlocal asked
            if time.monotonic() - asked > 20:
                asked = time.monotonic()
                say(self.rundir, Order(order_id=secrets.token_hex(8), action="probe", by="bench", at=time.time()))
            return bool(set(self.rundir.probes.glob("*.jsonl")) - known)

        self.until(begun, "a probe to begin")
        [record] = set(self.rundir.probes.glob("*.jsonl")) - known
        return record

    def step(self) -> int:
        """Lines of the trainer's record."""
        return len(lines(self.rundir.steps))

    def open_trials(self) -> set[int]:
        begun, over = trials(self.rundir)
        return begun - over.keys()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self.patience
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {self.patience:g} s in vain for {what}")
            time.sleep(0.05)


def lines(path: Path) -> list[dict[str, Any]]:
    return list(read_lines(path))


def ended(record: Path) -> bool:
    return any(line["kind"] == "end" for line in lines(record))


def trials(rundir: RunDir) -> tuple[set[int], dict[int, list[dict[str, Any]]]]:
    """Trials that have begun, and how each ended, by number."""
    begun: set[int] = set()
    over: dict[int, list[dict[str, Any]]] = {}
    try:
        journal = Journal(rundir.journal, read_only=True)
    except JournalError:
        return begun, over
    for entry in journal.entries(kind=EntryKind.trial):
        if entry.body["outcome"] == "running":
            begun.add(entry.body["number"])
        else:
            over.setdefault(entry.body["number"], []).append(entry.body)
    journal.close()
    return begun, over


def helpers(rundir: RunDir) -> list[int]:
    """Spare processes of a run that are alive."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "trainer.probe.helper" in command and str(rundir.probes) in command:
            found.append(int(directory.name))
    return found


def judge(kills: Kills) -> dict[str, Any]:
    """What happened; `problems` is empty when everything held."""
    rundir, problems = kills.rundir, []
    begun, over = trials(rundir)
    problems += [f"trial {n} was never closed" for n in begun - over.keys()]
    problems += [f"trial {n} was closed {len(ends)} times" for n, ends in over.items() if len(ends) > 1]
    study = optuna.load_study(study_name=study_name(rundir.read_info().name), storage=storage(study_url(rundir)))
    problems += [f"the study has trial {t.number} as running" for t in study.trials if not t.state.is_finished()]
    adopted: Counter[str] = Counter()
    for record in rundir.probes.glob("*.jsonl"):
        ends = [line for line in lines(record) if line["kind"] == "end"]
        if len(ends) != 1 or lines(record)[-1] != ends[0]:
            problems.append(f"probe {record.stem} has {len(ends)} ends")
        adopted[record.stem] += ends[0]["outcome"] != "control"
    kept = [end for ends in over.values() for end in ends if end["outcome"] == "adopt"]
    problems += [f"probe {p} was adopted {n} times" for p, n in Counter(e["probe_id"] for e in kept).items() if n > 1]
    final = answers(rundir)
    problems += [f"decision {d} was answered {a}" for d, a in final.items() if len(a) != 1]
    problems += lineage(rundir)
    value = lines(rundir.steps)[-1]["tunables"]["lr_scale"]
    expected = max(kept, key=lambda end: (end["from_step"], end["number"]))["value"] if kept else 1.0
    if abs(value - expected) > 1e-9:
        problems.append(f"lr_scale is {value}, adopted last was {expected}")
    time.sleep(1.0)
    problems += [f"process {pid} is left" for pid in helpers(rundir)]
    problems += [f"{path.name} is left" for path in rundir.probes.glob("*.spare")]
    return {
        "kills": dict(kills.kills),
        "probes": len(adopted),
        "adopted, as the records say": sum(adopted.values()),
        "adopted, as the journal says": len(kept),
        "trials": dict(Counter(end["outcome"] for ends in over.values() for end in ends)),
        "steps": kills.step(),
        "problems": problems,
    }


def lineage(rundir: RunDir) -> list[str]:
    """Steps missing and prompts trained twice on the way to the weights of the newest checkpoint. Of a step that ran twice the last
    line counts."""
    newest = max(rundir.checkpoints.glob("step-*/state.json"), key=lambda path: path.stat().st_mtime)
    run = json.loads(newest.read_text())["run"]
    forks, branch = dict(run["forks"]), run["version"][0]
    until, chain = run["step"], []
    for b in range(branch, -1, -1):
        start = forks.get(b, 0)
        if start < until or b == branch:
            chain.append((b, start, until))
            until = min(until, start)
    ledger = {(line["branch"], line["step"]): line for line in lines(rundir.ledger)}
    seen: Counter[tuple[int, int]] = Counter()
    problems = []
    for b, start, end in chain:
        for step in range(start + 1, end + 1):
            line = ledger.get((b, step))
            if line is None:
                problems.append(f"step {step} of branch {b} is missing")
                continue
            seen.update((line["epoch"], ordinal) for ordinal in line["ordinals"])
            seen.update(tuple(item) for item in line.get("next_epoch", []))
    return problems + [f"prompt {o} was trained {n} times in epoch {e}" for (e, o), n in seen.items() if n > 1]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="an empty directory")
    options = parser.parse_args()
    settings = [word for setting in (*TINY, "guard_rails.cooldown_steps=0") for word in ("--set", setting)]
    kills = Kills(options.out.resolve(), options.seed, [*SCALERL, "train", "tiny", *settings])
    started = time.monotonic()
    try:
        kills.run([("inline", "spare")[i % 2] for i in range(options.rounds)], lambda line: print(line, flush=True))
    finally:
        kills.close()
    result = {**judge(kills), "wall, s": round(time.monotonic() - started)}
    print(json.dumps(result, indent=1))
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
