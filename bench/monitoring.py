"""What monitoring costs: pages, exporter, series, and the built-in store over a day.

    python bench/monitoring.py [--hours 24] [--policy guard]

Real parts throughout: the trainer's agent fed with reports of 512 completions, the controller's telemetry fed with looks of a
simulated run under a shipped policy, pages over HTTP on loopback, the store on disk. A step takes 30 virtual seconds and both
pages are scraped every 15, as in production.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np

from controlplane.agent import Agent, GuardRails
from controlplane.agent.exposition import Store
from controlplane.contract.reports import EvalReport, RolloutStats, StepReport
from controlplane.contract.rundir import RunDir, RunInfo
from controlplane.decide import Evaluator
from controlplane.metricstore import MetricStore
from controlplane.policy import load
from controlplane.sim.course import Course
from controlplane.sim.fast import FastRun
from controlplane.sources.exposition import parse
from controlplane.telemetry import Telemetry

INFO = RunInfo(
    run_uid="bench", name="bench", created_at=0.0, planned_steps=10_000, config_hash="x", framework="bench", algorithm="cispo", model="none",
)  # fmt: skip
VALUES = {
    "lr_scale": 1.0,
    "max_staleness": 8.0,
    "prompts_per_step": 32.0,
    "ratio_max": 5.0,
    "temperature": 1.0,
    "max_new_tokens": 14336.0,
    "thinking_budget": 12288.0,
}
COMPLETIONS = 512


def report(step: int, rng: np.random.Generator) -> StepReport:
    """One step of a run with long answers."""
    n, passed = COMPLETIONS, int(rng.binomial(COMPLETIONS, 0.6))
    lengths = tuple(int(value) for value in rng.lognormal(8.5, 0.6, n).clip(16, 14336))
    rollouts = RolloutStats(
        rewards=(1.0,) * passed + (-1.0,) * (n - passed),
        passed=passed,
        failed=n - passed,
        lengths=lengths,
        prompt_lengths=tuple(int(value) for value in rng.integers(60, 400, n)),
        staleness=tuple(int(value) for value in rng.integers(0, 8, n)),
        seconds=tuple(float(value) for value in rng.lognormal(3.0, 0.5, n)),
        truncated=sum(length >= 14336 for length in lengths),
        groups={"mixed": 20, "all_pass": 8, "all_fail": 4},
        generated_tokens=sum(lengths),
        prompt_tokens=n * 200,
    )
    noise = [float(value) for value in rng.normal(1.0, 0.05, 12)]
    return StepReport(
        step=step, branch=0, seconds=30 * noise[0], phase_seconds={"generating": 20 * noise[1], "training": 10 * noise[2]},
        compute=240.0 * step, device_seconds={"generator": 160 * noise[3], "learner": 80 * noise[4]}, rollouts=rollouts, loss=-0.01 * noise[5],
        grad_norm=0.3 * noise[6], entropy=0.2 * noise[7], mismatch_kl=1e-3 * noise[8], ratio_mean=noise[9], ratio_max=2 * noise[10],
        clipped_ratio=0.01, clipped_low_ratio=0.01, masked_ratio=0.01, effective_sample_ratio=0.95, advantage_std=0.9, trained_tokens=sum(lengths),
        lr=1e-6, tunables=VALUES, weights_version=step, weight_sync_seconds=1.0 * noise[11],
        buffer={"waiting": 1, "inflight": 20, "ready": 8, "held": 32, "capacity": 288}, inflight=512,
        utilization={"process": 0.9, "generator": 0.95, "learner": 0.8},
    )  # fmt: skip


def timed(work: Callable[[], object], times: int) -> tuple[float, float, float]:
    """Milliseconds: median, 95th percentile, largest."""
    took = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        took.append(1000 * (time.perf_counter() - started))
    took.sort()
    return statistics.median(took), took[int(0.95 * (len(took) - 1))], took[-1]


def values(store: Store) -> dict[str, float]:
    """What a scrape would bring, without HTTP and parsing; for the many scrapes of a day."""
    found: dict[str, float] = {}
    for family in store.collect():
        for sample in family.samples:
            labels = ",".join(f'{key}="{sample.labels[key]}"' for key in sorted(sample.labels))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = float(sample.value)
    return found


def day(
    agent: Agent, policy: str, folder: Path, hours: float, rng: np.random.Generator
) -> Iterator[tuple[float, dict[str, float]]]:
    """(time, page of trainer and controller) every 15 s; a step every 30 s, an evaluation every 100 steps."""
    rules = load(policy)
    run = FastRun(replace(Course.draw(3, steps=int(hours * 120) + 10), step_seconds=31.0))
    evaluator, telemetry = Evaluator(rules), Telemetry(RunDir(folder / "controller"), rules, "hash", "bench")
    for tick in range(int(hours * 240)):
        if tick % 2 == 0:
            step = tick // 2 + 1
            agent.step(report(step, rng))
            if step % 100 == 0:
                agent.evaluation(EvalReport("held_out", step, 0, 240.0 * step, 256, 4, 0.5, 0.8, 4000.0, 0.01, 60.0))
            for look in run.advance():
                judgement, decision = evaluator.look(look)
                telemetry.record(look, judgement, decision, evaluator.standing, 0.01)
        yield 15.0 * tick, values(agent.store) | values(telemetry._store)
    telemetry.close()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--policy", default="guard")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        agent = Agent(RunDir(folder / "run"), INFO, VALUES, GuardRails(), (), token_limit=14336)
        for step in range(1, 60):
            agent.step(report(step, rng))
        agent.evaluation(EvalReport("held_out", 50, 0, 1.0, 256, 4, 0.5, 0.8, 4000.0, 0.01, 60.0))
        page = httpx.get(f"http://127.0.0.1:{agent.port}/metrics", trust_env=False).text
        client = httpx.Client(trust_env=False)
        print("page of the trainer")
        print(f"  size     {len(page) / 1000:.1f} kB, {len(parse(page, None))} series")
        print(
            "  scrape   {:.1f} ms median, {:.1f} p95, {:.1f} max (HTTP on loopback)".format(
                *timed(lambda: client.get(f"http://127.0.0.1:{agent.port}/metrics").read(), 200)
            )
        )
        print("  render   {:.1f} ms median, {:.1f} p95, {:.1f} max".format(*timed(agent.store.text, 200)))
        print(
            "  parse    {:.1f} ms median, {:.1f} p95, {:.1f} max (every series)".format(
                *timed(lambda: parse(page, None), 100)
            )
        )
        reports = iter([report(step, rng) for step in range(60, 460)])
        print(f"exporter, {COMPLETIONS} completions a step")
        print(
            "  step()   {:.2f} ms median, {:.2f} p95, {:.2f} max on the training thread".format(
                *timed(lambda: agent.step(next(reports)), 400)
            )
        )
        store, took, largest = MetricStore(folder / "metrics.db"), [], 0
        for at, scraped in day(agent, options.policy, folder, options.hours, rng):
            started = time.perf_counter()
            store.append(at, scraped)
            took.append(1000 * (time.perf_counter() - started))
            largest = max(largest, len(scraped))
        took.sort()
        print(f"series of a run under policy {options.policy}: {largest}")
        size = sum(path.stat().st_size for path in folder.glob("metrics.db*"))
        print(
            f"store, {options.hours:g} h at 15 s: {store.size / 1e6:.1f} MB of data, {size / 1e6:.1f} MB on disk with its log"
        )
        print(
            f"  append   {statistics.median(took):.2f} ms median, {took[int(0.95 * len(took))]:.2f} p95, {took[-1]:.0f} max (compaction)"
        )
        span = store.span()
        assert span is not None
        six = timed(lambda: store.read("rl_trainer_grad_norm", span[1] - 6 * 3600), 50)
        print("  read 6 h {:.1f} ms median, {:.1f} p95 (one series)".format(*six))
        agent.close()


if __name__ == "__main__":
    main()
