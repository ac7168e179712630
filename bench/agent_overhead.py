"""What the agent costs the trainer per step boundary: `step()` and `boundary()` with real reports of 128 completions.

The courier runs, desired documents arrive now and then, and a scraper reads /metrics all the time. Wall time on the
training thread, so waiting for the interpreter lock counts.

    python bench/agent_overhead.py [--steps 2000] [--json]
"""

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from controlplane.agent import Agent, BoundaryState, Directive, GuardRails, read_key
from controlplane.contract.documents import AckState, Action, CheckpointState, Desired, Health, Setting
from controlplane.contract.reports import RolloutStats, StepReport
from controlplane.contract.rundir import RunDir, RunInfo, write_atomic

COMPLETIONS = 128
STEP_SECONDS = 0.005
"""Pause between two boundaries: far shorter than a real step, so that the threads meet often."""
DOCUMENT_EVERY = 50


def report(step: int, rng: random.Random, values: dict[str, float]) -> StepReport:
    rewards = tuple(rng.choice((1.0, -1.0)) for _ in range(COMPLETIONS))
    lengths = tuple(rng.randrange(10, 30_000) for _ in range(COMPLETIONS))
    rollouts = RolloutStats(
        rewards=rewards,
        passed=rewards.count(1.0),
        failed=rewards.count(-1.0),
        lengths=lengths,
        prompt_lengths=tuple(rng.randrange(10, 500) for _ in range(COMPLETIONS)),
        staleness=tuple(rng.randrange(8) for _ in range(COMPLETIONS)),
        seconds=tuple(rng.uniform(0.1, 100) for _ in range(COMPLETIONS)),
        truncated=3,
        groups={"mixed": 12, "all_pass": 3, "all_fail": 1},
        dropped_groups={"stale": 1},
        generated_tokens=sum(lengths),
        prompt_tokens=10_000,
    )
    return StepReport(
        step=step,
        branch=0,
        seconds=1.0,
        phase_seconds={"generating": 0.5, "training": 0.5},
        compute=float(step),
        device_seconds={"learner": 1.0},
        rollouts=rollouts,
        loss=rng.gauss(0, 1),
        grad_norm=rng.lognormvariate(0, 0.3),
        entropy=0.1,
        mismatch_kl=1e-4,
        ratio_mean=1.0,
        ratio_max=1.5,
        trained_tokens=sum(lengths),
        lr=1e-6,
        tunables=values,
        weights_version=step,
        weight_sync_seconds=0.1,
        buffer={"waiting": 1, "inflight": 2, "ready": 3, "held": 4, "capacity": 16},
        utilization={"process": 0.9},
    )


def scrape(port: int, stop: threading.Event) -> None:
    while not stop.is_set():
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read()
        stop.wait(0.1)


def ask(rundir: RunDir, agent: Agent, generation: int, step: int) -> None:
    document = Desired(
        run_uid="bench",
        incarnation=agent.incarnation,
        epoch=1,
        generation=generation + 1,
        base_generation=generation,
        decision_id=f"d{generation + 1}",
        issued_at=time.time(),
        expires_at_step=step + 1000,
        set={"lr_scale": Setting(value=1.0 + (generation % 2) / 10)},
        reason="bench",
    )
    write_atomic(rundir.desired, document.signed(read_key(rundir)).model_dump_json())


def measure(steps: int) -> dict[str, list[float]]:
    """Milliseconds per step: the two calls together, and acknowledgements apart, since most steps have none."""
    rng = random.Random(0)
    values = {"lr_scale": 1.0, "prompts_per_step": 16.0, "ratio_max": 5.0, "temperature": 1.0, "max_staleness": 8.0}
    checkpoints = tuple(CheckpointState(step=n, branch=0, digest="d" * 64, health=Health.good) for n in range(8))
    times: dict[str, list[float]] = {"step + boundary": [], "acknowledge": []}
    with tempfile.TemporaryDirectory() as folder:
        rundir = RunDir(Path(folder))
        info = RunInfo(
            run_uid="bench", name="bench", created_at=0, planned_steps=steps, config_hash="", framework="", algorithm="", model=""
        )  # fmt: skip
        agent = Agent(rundir, info, values, GuardRails(cooldown_steps=0), tuple(Action), token_limit=32_000)
        stop = threading.Event()
        scraper = threading.Thread(target=scrape, args=(agent.port, stop))
        scraper.start()
        generation = 0
        for step in range(1, steps + 1):
            this = report(step, rng, values)
            state = BoundaryState(step, 0, float(step), values, checkpoints)
            started = time.perf_counter()
            agent.step(this)
            directive: Directive | None = agent.boundary(state)
            times["step + boundary"].append(1e3 * (time.perf_counter() - started))
            if directive:
                values |= directive.values
                generation = directive.generation
                started = time.perf_counter()
                agent.acknowledge(directive, AckState.applied, step, directive.values)
                times["acknowledge"].append(1e3 * (time.perf_counter() - started))
            if step % DOCUMENT_EVERY == 0:
                ask(rundir, agent, generation, step)
            time.sleep(STEP_SECONDS)
        stop.set()
        scraper.join()
        agent.close()
    return times


def summary(milliseconds: list[float]) -> dict[str, float]:
    return {
        "count": len(milliseconds),
        "median": statistics.median(milliseconds),
        "p95": statistics.quantiles(milliseconds, n=20)[-1],
        "max": max(milliseconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Milliseconds that the agent costs a step.")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    arguments = parser.parse_args()
    rows = {name: summary(values) for name, values in measure(arguments.steps).items()}
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'milliseconds':<18}{'count':>8}{'median':>9}{'p95':>9}{'max':>9}")
    for name, row in rows.items():
        print(f"{name:<18}{row['count']:>8}{row['median']:>9.3f}{row['p95']:>9.3f}{row['max']:>9.3f}")


if __name__ == "__main__":
    main()
