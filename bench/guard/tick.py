"""What one look costs, and how many runs one core can watch: `python bench/guard/tick.py [--runs 10,100,1000,3000]`.

First, one run: a real agent serves its page on loopback, the controller scrapes it, judges, and writes its journal to
disk; the parts of a tick apart. Then many runs in one process, each with its own controller and journal: every run has
made a step and is looked at once per round, detectors with full windows, the page of a real agent parsed for each. The
time of a round is what an interval of 15 s has to hold.
"""

import argparse
import copy
import gc
import resource
import statistics
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

from controlplane.contract.rundir import RunDir, RunInfo, write_atomic
from controlplane.decide import Evaluator
from controlplane.journal import Journal
from controlplane.loop import Controller
from controlplane.policy import Policy, find, parse
from controlplane.sim.course import Course
from controlplane.sim.fast import FastRun
from controlplane.sim.trainer import SimTrainer
from controlplane.snapshot import Snapshot
from controlplane.sources import Sample
from controlplane.sources.exposition import parse as parse_page
from controlplane.sources.scrape import ScrapeSource

WARM, ROUNDS, TEMPLATES, INTERVAL = 300, 3, 10, 15.0


def milliseconds(values: list[tuple[float, float]]) -> str:
    """Median and 95 % of the wall time, median of the CPU time."""
    wall = sorted(1000 * value for value, _ in values)
    cpu = statistics.median(1000 * value for _, value in values)
    return f"{statistics.median(wall):.2f} | {wall[int(0.95 * (len(wall) - 1))]:.2f} | {cpu:.2f}"


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float]) -> tuple[float, float]:
    now = clocks()
    return now[0] - started[0], now[1] - started[1]


def one_run(root: Path, name: str, ticks: int) -> str:
    """The parts of a tick on one run; returns its page."""
    policy, text = loaded(name)
    rundir = RunDir(root / "one")
    trainer = SimTrainer(rundir, 1, planned_steps=WARM + ticks, port=0)
    source = ScrapeSource(rundir.target, clock=lambda: trainer.now)
    journal = Journal(rundir.journal)
    controller = Controller(rundir, policy, text, source, journal, clock=lambda: trainer.now)
    controller.attach()
    whole: list[tuple[float, float]] = []
    scrape: list[tuple[float, float]] = []
    judge: list[tuple[float, float]] = []
    for number in range(ticks + 100):
        trainer.step()
        started = clocks()
        controller.tick()
        took = since(started)
        if number < 100:
            continue
        whole.append(took)
        started = clocks()
        snapshot = controller._look()
        scrape.append(since(started))
        evaluator = copy.copy(controller._evaluator)
        started = clocks()
        evaluator.look(snapshot)
        judge.append(since(started))
    page = trainer.agent.store.text()
    trainer.close()
    journal.close()
    print(f"one run, policy {name}, {ticks} ticks, page of {len(page) / 1024:.0f} KiB\n")
    print("| | median ms | 95 % | median CPU ms |\n|---|---|---|---|")
    print(f"| whole tick: scrape over HTTP, judge, journal fsynced | {milliseconds(whole)} |")
    print(f"| scrape and observed document alone | {milliseconds(scrape)} |")
    print(f"| judge alone (no new step) | {milliseconds(judge)} |")
    middle = [statistics.median(column) for column in zip(*whole, strict=True)]
    said = ["met" if value < 0.010 else "missed" for value in middle]
    print(f"\none tick under 10 ms: {said[0]} by the clock, {said[1]} by CPU time\n")
    return page


class Watched:
    """One of many runs: a fast run that shows itself as a trainer's agent would, and its controller."""

    def __init__(self, root: Path, run: FastRun, evaluator: Evaluator, name: str, page: str) -> None:
        policy, text = loaded(name)
        self.run, self._page, self.rundir = run, page, RunDir(root)
        info = RunInfo(
            run_uid=f"fast-{run.course.seed}", name="fast", created_at=0.0, planned_steps=run.course.steps,
            config_hash="", framework="simulator", algorithm="cispo", model="",
        )  # fmt: skip
        write_atomic(self.rundir.info, info.model_dump_json())
        self.step()
        self.journal = Journal(self.rundir.journal)
        self.controller = Controller(self.rundir, policy, text, self, self.journal, clock=lambda: self.run.now + 1.0)
        self.controller.attach()
        self.controller._evaluator = evaluator

    def step(self) -> None:
        self.snapshot: Snapshot = self.run.advance()[-1]
        assert self.snapshot.observed is not None
        write_atomic(self.rundir.observed, self.snapshot.observed.model_dump_json())

    def read(self, names: Collection[str]) -> Sample:
        parse_page(self._page, names)  # what a scrape costs; the values are this run's own
        return Sample(self.run.now, dict(self.snapshot.metrics))


def loaded(name: str) -> tuple[Policy, str]:
    where, text = find(name)
    return parse(text, where), text


def templates(name: str) -> list[tuple[FastRun, Evaluator]]:
    """Runs that have been watched for a while."""
    made = []
    for seed in range(TEMPLATES):
        run, evaluator = FastRun(Course.draw(seed)), Evaluator(loaded(name)[0])
        while run.executed < WARM:
            for snapshot in run.advance():
                evaluator.look(snapshot)
        made.append((run, evaluator))
    return made


def resident() -> float:
    """MiB that this process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def many(root: Path, name: str, numbers: list[int], page: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8 * max(numbers) + 512)), hard))
    warmed = templates(name)
    print(f"many runs in one process, one thread; {ROUNDS} rounds each\n")
    print(
        "| runs | CPU s per round | wall s per round | ms per tick (CPU) | share of 15 s on one core | MiB in all | MiB per run |"
    )
    print("|---|---|---|---|---|---|---|")
    watched: list[Watched] = []
    gc.collect()
    empty = resident()
    for number in sorted(numbers):
        while len(watched) < number:
            run, evaluator = copy.deepcopy(warmed[len(watched) % TEMPLATES])
            watched.append(Watched(root / f"{len(watched)}", run, evaluator, name, page))
        cpu, wall = [], []
        for _ in range(ROUNDS):
            for each in watched:
                each.step()
            started, clock = time.process_time(), time.perf_counter()
            for each in watched:
                each.controller.tick()
            cpu.append(time.process_time() - started)
            wall.append(time.perf_counter() - clock)
        gc.collect()
        used = resident() - empty
        took = statistics.median(cpu)
        print(
            f"| {number} | {took:.2f} | {statistics.median(wall):.2f} | {1000 * took / number:.2f} | {took / INTERVAL:.0%} | "
            f"{used:.0f} | {used / number:.2f} |",
            flush=True,
        )
    for each in watched:
        each.journal.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="10,100,1000,3000")
    parser.add_argument("--ticks", type=int, default=200)
    parser.add_argument("--policy", default="guard")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = one_run(Path(folder), options.policy, options.ticks)
        many(Path(folder), options.policy, [int(part) for part in options.runs.split(",")], page)


if __name__ == "__main__":
    main()
