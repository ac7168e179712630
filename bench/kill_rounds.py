"""kill -9 at random moments: `python bench/kill_rounds.py --rounds 50 --out build/kill-rounds`

A real trainer (the tiny model), a real Prometheus and a real controller run on; in every round a person asks for a
checkpoint, and at a random moment around it one of the three, drawn by lot, is killed with SIGKILL and started again by the
same command. Then the record is judged: nothing applied twice, nothing lost, training never blocked.
"""

import argparse
import json
import os
import random
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from controlplane.contract.approvals import Order
from controlplane.contract.rundir import RunDir, read_lines, write_atomic
from controlplane.journal import EntryKind, Journal, JournalError
from controlplane.post import say
from controlplane.replay import replay

ROOT = Path(__file__).parents[1]
TINY = (
    "steps=100000",
    "evaluation.prompts=16",
    "evaluation.every=20",
    "checkpoint.every=5",
    "batch.prompts_per_step=8",
    "rollout.slots=64",
)
SCALERL = [sys.executable, "-m", "controlplane"]


@dataclass
class Process:
    """One of the three, started again and again by the same command."""

    name: str
    command: list[str]
    log: Path
    handle: "subprocess.Popen[bytes] | None" = None
    kills: int = 0
    down: list[tuple[float, float]] = field(default_factory=list)
    """Unix seconds from a kill to the next start."""

    def start(self) -> None:
        with open(self.log, "ab") as log:
            env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            self.handle = subprocess.Popen(self.command, cwd=ROOT, env=env, stdout=log, stderr=log)

    def kill(self) -> None:
        assert self.handle is not None
        assert self.handle.poll() is None, f"{self.name} has ended by itself; see {self.log}"
        self.handle.send_signal(signal.SIGKILL)
        self.handle.wait()
        self.kills += 1

    def end(self, number: int, timeout: float = 60.0) -> None:
        if self.handle is not None and self.handle.poll() is None:
            self.handle.send_signal(number)
            try:
                self.handle.wait(timeout)
            except subprocess.TimeoutExpired:
                self.handle.kill()
                self.handle.wait()


class Kills:
    """The three processes and what is asked of them."""

    def __init__(self, root: Path, seed: int, prometheus: str, train: list[str], patience: float = 180.0) -> None:
        self.rundir, self.rng, self.patience = RunDir(root / "run"), random.Random(seed), patience
        self.rundir.root.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url, config = f"http://127.0.0.1:{port}", root / "prometheus.yml"
        scrape = {
            "job_name": "runs",
            "file_sd_configs": [{"files": [str(self.rundir.target)], "refresh_interval": "1s"}],
        }
        write_atomic(config, json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}))
        served = [prometheus, f"--config.file={config}", f"--storage.tsdb.path={root / 'tsdb'}"]
        controlled = [
            *SCALERL,
            "control",
            str(self.rundir.root),
            "--policy",
            "demo",
            "--interval",
            "0.3",
            "--record",
            "0",
        ]
        self.trainer = Process("trainer", [*train, "--run", str(self.rundir.root)], root / "trainer.log")
        self.source = Process("source", [*served, f"--web.listen-address=127.0.0.1:{port}"], root / "source.log")
        self.controller = Process("controller", [*controlled, "--prometheus", url], root / "controller.log")
        self.processes = [self.trainer, self.source, self.controller]
        self.orders: list[str] = []

    def run(self, rounds: int, tell: Callable[[str], None] = lambda _: None) -> None:
        """Start, kill `rounds` times, let everything be answered, and end in an orderly way."""
        for process in self.processes:
            process.start()
        self.until(lambda: self.step() >= 2 and self.looks() >= 2, "the run to begin")
        victims = self.processes * -(-rounds // len(self.processes))
        self.rng.shuffle(victims)
        for number, victim in enumerate(victims[:rounds], 1):
            first, second = sorted(self.rng.uniform(0, 1.5) for _ in range(2))
            acts = [self.order, lambda victim=victim: self.strike(victim)]
            self.rng.shuffle(acts)
            time.sleep(first)
            acts[0]()
            time.sleep(second - first)
            acts[1]()
            step, looks = self.step(), self.looks()
            self.until(lambda s=step, n=looks: self.step() > s and self.looks() > n, f"life after round {number}")
            tell(f"round {number}/{rounds}: {victim.name} killed; step {self.step()}, {self.looks()} looks")
        self.until(lambda: not self.open(), "answers to all orders")
        self.trainer.end(signal.SIGTERM)
        self.controller.end(signal.SIGTERM)

    def close(self) -> None:
        for process in self.processes:
            process.end(signal.SIGKILL)

    def order(self) -> None:
        """A person asks for a checkpoint."""
        order = Order(order_id=secrets.token_hex(8), action="checkpoint", by="bench", at=time.time())
        say(self.rundir, order)
        self.orders.append(order.order_id)

    def strike(self, victim: Process) -> None:
        at = time.time()
        victim.kill()
        time.sleep(self.rng.uniform(0, 0.5))
        victim.start()
        victim.down.append((at, time.time()))

    def step(self) -> int:
        """Lines of the trainer's record: steps it has taken, those after a kill again."""
        return sum(1 for _ in read_lines(self.rundir.steps))

    def looks(self) -> int:
        try:
            journal = Journal(self.rundir.journal, read_only=True)
        except JournalError:
            return 0
        try:
            newest = journal.newest(EntryKind.look)
            return newest.seq if newest else 0
        finally:
            journal.close()

    def open(self) -> set[str]:
        """Orders without a final answer of the trainer."""
        return set(self.orders) - set(answers(self.rundir))

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self.patience
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {self.patience:g} s in vain for {what}")
            time.sleep(0.1)


def answers(rundir: RunDir) -> dict[str, list[str]]:
    """Final answers of the agent by decision."""
    found: dict[str, list[str]] = {}
    for line in read_lines(rundir.control_log):
        if line["event"] == "answered" and line["ack"]["state"] != "accepted":
            found.setdefault(line["ack"]["decision_id"], []).append(line["ack"]["state"])
    return found


def judge(kills: Kills) -> dict[str, Any]:
    """What happened, as figures; `problems` is empty when everything held."""
    rundir, problems = kills.rundir, []
    journal = Journal(rundir.journal, read_only=True)
    lines, again = journal.verify(), replay(journal)
    if again.differences:
        problems.append(
            f"{len(again.differences)} decisions cannot be made again; first at line {again.differences[0].seq}"
        )
    decided, published, starts = Counter[str](), Counter[str](), 0
    contents: dict[str, set[str]] = {}
    for entry in journal.entries():
        starts += entry.kind is EntryKind.start
        if entry.kind is EntryKind.look and entry.body["decision"]["kind"] == "act":
            decided[entry.body["decision"]["decision_id"]] += 1
        elif entry.kind is EntryKind.published:
            document = {k: v for k, v in entry.body["document"].items() if k not in ("issued_at", "epoch")}
            published[entry.body["decision_id"]] += 1
            contents.setdefault(entry.body["decision_id"], set()).add(json.dumps(document, sort_keys=True))
    journal.close()
    final = answers(rundir)
    for order in kills.orders:
        if decided[order] != 1:
            problems.append(f"order {order} was decided {decided[order]} times")
        if len(final.get(order, [])) != 1:
            problems.append(f"order {order} was answered {final.get(order, [])}")
    problems += [f"decision {d} was published with {len(c)} contents" for d, c in contents.items() if len(c) > 1]
    problems += [f"decision {d} was answered {a}" for d, a in final.items() if len(a) != 1]
    problems += twice(rundir)
    return {
        "kills": {process.name: process.kills for process in kills.processes},
        "orders": len(kills.orders),
        "answers": dict(Counter(state for order in kills.orders for state in final.get(order, ["none"]))),
        "published again": sum(published.values()) - len(published),
        "controller starts": starts,
        "trainer starts": sum(line["event"] == "started" for line in read_lines(rundir.control_log)),
        "steps": sum(1 for _ in read_lines(rundir.steps)),
        "journal lines": lines,
        "decisions made again": again.looks,
        "between steps, s": pace(kills),
        "problems": problems,
    }


def twice(rundir: RunDir) -> list[str]:
    """Prompts that the weights in force have seen twice in one epoch. Of a step that ran twice the last line counts."""
    ledger = {(line["branch"], line["step"]): line for line in read_lines(rundir.ledger)}
    seen: Counter[tuple[int, int]] = Counter()
    for line in ledger.values():
        seen.update((line["epoch"], ordinal) for ordinal in line["ordinals"])
        seen.update(tuple(item) for item in line.get("next_epoch", []))
    steps = sorted(step for _, step in ledger)
    gaps = [f"step {a + 1} is missing" for a, b in pairwise(steps) if b != a + 1]
    return gaps + [f"prompt {o} was trained {n} times in epoch {e}" for (e, o), n in seen.items() if n > 1]


def pace(kills: Kills) -> dict[str, dict[str, float]]:
    """Wall seconds between two steps of one trainer process: while somebody else was down, and otherwise."""
    killed = [at for at, _ in kills.trainer.down]
    others = [span for process in kills.processes if process is not kills.trainer for span in process.down]
    times = [line["time"] for line in read_lines(kills.rundir.steps)]
    apart: dict[str, list[float]] = {"others down": [], "all up": []}
    for before, now in pairwise(times):
        if any(before <= at <= now for at in killed):
            continue
        down = any(start <= now and before <= end for start, end in others)
        apart["others down" if down else "all up"].append(now - before)
    return {
        name: {"median": round(statistics.median(gaps), 2), "max": round(max(gaps), 2), "n": len(gaps)}
        for name, gaps in apart.items()
        if gaps
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="an empty directory")
    parser.add_argument("--prometheus", default="prometheus")
    options = parser.parse_args()
    settings = [word for setting in TINY for word in ("--set", setting)]
    kills = Kills(options.out.resolve(), options.seed, options.prometheus, [*SCALERL, "train", "tiny", *settings])
    started = time.monotonic()
    try:
        kills.run(options.rounds, tell=lambda line: print(line, flush=True))
    finally:
        kills.close()
    result = {**judge(kills), "wall, s": round(time.monotonic() - started)}
    print(json.dumps(result, indent=1))
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
