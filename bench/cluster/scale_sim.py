"""The driver of a run at scale, without a model: real loop, stepper, collector, buffer, curriculum, pool, agent and checkpoints
around 512 generators and 64 learner ranks that only take time (world.py).

    python bench/cluster/scale_sim.py                                   100,000 prompts in flight, 16 completions each
    python bench/cluster/scale_sim.py --lost 0.01                       1 % of the generators lost in every step
    python bench/cluster/scale_sim.py --preset paper                    48 x 16 completions of 7,000 tokens
    python bench/cluster/scale_sim.py --profile                         where the driver's time goes

It prints a line per step and a summary. Time is virtual where the driver waits and real CPU time where it works.
"""

import argparse
import cProfile
import json
import pstats
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from controlplane.agent import Agent
from controlplane.contract.rundir import RunDir
from trainer.build import identify
from trainer.checkpoint.keeper import Keeper
from trainer.checkpoint.store import CheckpointStore
from trainer.cluster.fleet import Fleet
from trainer.cluster.pool import Pool
from trainer.control import ACTIONS
from trainer.evaluate import EvalResult
from trainer.learn import LearnResult
from trainer.loop import Loop
from trainer.recipe import Recipe
from trainer.rollout.admission import admission
from trainer.rollout.collector import Collector
from trainer.rollout.curriculum import Curriculum
from trainer.stopwatch import Devices, Stopwatch
from trainer.types import Prompt, ScoredGroup, Verdict, Version

sys.path.insert(0, str(Path(__file__).parent))
from world import Executor, Mail, SimulatedEngine, Speed, Tokens, World

PRESETS: dict[str, dict[str, Any]] = {
    # 100,000 prompts in flight: nine steps' worth of them, k = 8
    "wide": {
        "batch": 11_112,
        "samples": 16,
        "mean": 16,
        "longest": 64,
        "token": 6.0,
        "step_seconds": 30.0,
        "slots": 3200,
    },
    # the 8B of the paper, 768 completions, on more generators than it had
    "paper": {
        "batch": 48,
        "samples": 16,
        "mean": 7000,
        "longest": 14_336,
        "token": 0.03,
        "step_seconds": 60.0,
        "slots": 64,
    },
    # the largest batch of the paper
    "2048": {
        "batch": 128,
        "samples": 16,
        "mean": 7000,
        "longest": 14_336,
        "token": 0.03,
        "step_seconds": 120.0,
        "slots": 64,
    },
}


class Problems:
    """A task: many prompts, a verdict that costs a few microseconds."""

    name, held_out, workers = "problems", ("held_out",), 0

    def __init__(self, prompts: int, tokens: int) -> None:
        self._prompts = [Prompt(i, "", tuple(range(tokens))) for i in range(prompts)]

    def prompts(self, split: str) -> Sequence[Prompt]:
        return self._prompts

    def verify(self, prompt: Prompt, completion: str, finished: bool) -> Verdict:
        passed = hash(completion[-8:]) % 2 == 0
        return Verdict(1.0 if passed else -1.0, passed)


class Words:
    """A tokenizer as far as a verifier needs one; decoding a long completion is real work."""

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))


class Ranks:
    """A group of learner ranks: a step is as long as the slowest of them takes, and ends with a vote."""

    def __init__(self, world: World, ranks: int, seconds: float) -> None:
        self.base_lr = 5e-7
        self._world, self._ranks, self._seconds = world, ranks, seconds
        self._weights = torch.zeros(8)

    def seconds(self) -> float:
        """Of the step that begins."""
        slowest = max(self._world.random.lognormvariate(0.0, 0.03) for _ in range(self._ranks))
        return self._seconds * slowest + 0.05

    def step(self, step: int, groups: Sequence[ScoredGroup], tunables: Mapping[str, float]) -> LearnResult:
        votes = [self._world.random.random() >= 0.0 for _ in range(self._ranks)]
        self._weights += 1.0
        trained = sum(len(group.group.completions) for group in groups)
        return LearnResult(
            loss=0.1, grad_norm=0.5, lr=self.base_lr, trained_tokens=trained, skipped="" if all(votes) else "nonfinite"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"model": {"weights": self._weights}, "optimizer": {}, "base_lr": self.base_lr}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._weights = state["model"]["weights"].clone()


class Simulation:
    """Everything wired; `run` goes through the steps."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.world = options, World(options.seed)
        self.engines: dict[str, SimulatedEngine] = {}
        self.lost = 0
        self.rows: list[dict[str, Any]] = []
        self._recipe, self._rundir = recipe(options), RunDir(folder)
        self._speed = Speed(token=options.token)
        with self.world.mine():
            mean, longest, kinds = (
                options.mean,
                options.longest,
                max(4, min(400, 2_000_000 // (options.samples * options.mean))),
            )
            self._tokens = Tokens(self.world, options.samples, mean, 0.5, longest, kinds)
            self.loop, self.agent = self._assemble()

    def _assemble(self) -> tuple[Loop, Agent]:
        spec, world, options = self._recipe, self.world, self.options
        pool = Pool(
            Fleet(self._launch, spec.cluster, lambda: options.generators, self._tell),
            spec.cluster,
            {"rollout": options.slots, "evaluation": 0},
            {"rollout": options.samples, "evaluation": 1},
            world.now,
        )
        pool._mail = Mail(world)  # type: ignore[assignment]
        self.pool = pool
        info = identify(spec, self._rundir)
        agent = Agent(
            self._rundir, info, spec.tunables(), spec.rails(), ACTIONS, port=None, token_limit=options.longest
        )
        watch = Stopwatch(agent.phase, world.now, cpu=None)
        task = Problems(options.prompts, 150)
        curriculum = Curriculum(options.prompts, options.seed, 2.0, 64)
        learner = Ranks(world, options.ranks, options.step_seconds)
        collector = Collector(
            pool.rollouts, curriculum, task, Words(), watch, seed=options.seed, samples=options.samples,
            admission=admission(spec.staleness.mode), penalty=spec.length.penalty,
        )  # fmt: skip
        store = CheckpointStore(self._rundir.checkpoints)
        loop = Loop(
            spec, self._rundir, learner=learner, curriculum=curriculum, collector=collector, sync=Publish(pool),
            evaluate=lambda: [EvalResult("held_out", 64, 2, 0.5, 0.0, {2: 0.5}, {2: 0.0}, 3.0, 0.0)],
            keeper=Keeper(store, spec.checkpoint.health, spec.checkpoint.keep, agent.checkpoint),
            control=agent, tunables=agent.values, watch=watch, devices=Devices(options.generators, options.ranks, "free"),
        )  # fmt: skip
        self._executor = Executor(world, learner.seconds)
        loop._stepper._worker.shutdown()
        loop._stepper._worker = self._executor
        record = loop._record

        def recorded(stepped: Any) -> None:
            record(stepped)
            self._after(stepped)

        loop._record = recorded  # type: ignore[method-assign]
        return loop, agent

    def run(self) -> None:
        self._last = (self.world.now(), self.world.driver)
        self.loop.run()
        self.agent.close()

    def _launch(self, name: str) -> SimulatedEngine:
        with self.world.mine():
            self.engines[name] = SimulatedEngine(name, self.world, self._speed, self._tokens, self.options.slots)
            return self.engines[name]

    def _tell(self, event: str, /, **fields: Any) -> None:
        if event == "generator_lost":
            self.lost += 1
            del self.engines[fields["name"]]

    def _after(self, stepped: Any) -> None:
        """A line about the step, and the failures of the next one."""
        with self.world.mine():
            now, driver = self.world.now(), self.world.driver
            report = stepped.report
            row = {
                "step": report.step,
                "seconds": now - self._last[0],
                "driver": driver - self._last[1],
                "groups": len(stepped.batch),
                "staleness": dict(Counter(report.rollouts.staleness)),
                "inflight": report.buffer["inflight"],
                "ready": report.buffer["ready"],
                "dropped": sum(report.rollouts.dropped_groups.values()),
                "live": self.pool.live,
                "rss_gib": rss(),
                "batch_mib": self._executor.sent / 2**20,
                "pickling": self._executor.handing_over,
                "waiting": report.phase_seconds.get("generating", 0.0) / max(1e-9, sum(report.phase_seconds.values())),
            }
            self.rows.append(row)
            self._last = (now, driver)
            say(row)
            alive = [engine for engine in self.engines.values() if not engine.dead and engine.ready.done()]
            for engine in self.world.random.sample(alive, round(self.options.lost * len(alive))):
                self.world.after(self.world.random.uniform(0, self.options.step_seconds), engine.die)


class Publish:
    """Implements `WeightSync`: no weights, all the protocol."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def publish(self, version: Version) -> None:
        self._pool.publish({}, version)


def recipe(options: argparse.Namespace) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "scale",
            "seed": options.seed,
            "steps": options.steps,
            "batch": {"prompts_per_step": options.batch, "samples_per_prompt": options.samples},
            "rollout": {"slots": max(options.slots, options.samples)},
            "staleness": {"max_staleness": options.staleness},
            "length": {"max_new_tokens": options.longest, "thinking_budget": options.longest, "control": "none"},
            "evaluation": {"every": 1000, "prompts": 8, "k": 2, "slots": 16},
            "checkpoint": {"every": options.checkpoint, "keep": 2},
            "cluster": {
                "learners": {"ranks": options.ranks},
                "generators": {"min": max(1, options.generators // 2), "max": options.generators},
            },
        }
    )


def rss() -> float:
    """GiB of this process."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) / 2**20


def say(row: Mapping[str, Any]) -> None:
    stale = row["staleness"]
    mean = sum(k * n for k, n in stale.items()) / sum(stale.values())
    print(
        f"step {row['step']:3}  {row['seconds']:7.1f} s  driver {row['driver']:6.2f} s  "
        f"{row['groups'] / row['driver']:7.0f} groups/CPU-s  in flight {row['inflight']:6}  ready {row['ready']:6}  "
        f"staleness {mean:.2f} max {max(stale)}  live {row['live']:3}  dropped {row['dropped']}  {row['rss_gib']:.2f} GiB",
        flush=True,
    )


def summary(simulation: Simulation, skip: int) -> dict[str, Any]:
    """Over the steps after the first `skip`, in which the pipeline fills."""
    rows = simulation.rows[skip:] or simulation.rows
    stale: Counter[int] = sum((Counter(row["staleness"]) for row in rows), Counter())
    total = sum(stale.values())
    driver, seconds = sum(r["driver"] for r in rows), sum(r["seconds"] for r in rows)
    groups = sum(r["groups"] for r in rows)
    return {
        "steps": len(rows),
        "seconds_per_step": seconds / len(rows),
        "driver_cpu_per_step": driver / len(rows),
        "driver_share": driver / seconds,
        "groups_per_second": groups / seconds,
        "groups_per_cpu_second": groups / driver,
        "ms_per_group": 1000 * driver / groups,
        "batch_mib": statistics.mean(r["batch_mib"] for r in rows),
        "pickling_cpu_per_step": statistics.mean(r["pickling"] for r in rows),
        "rss_gib": max(r["rss_gib"] for r in rows),
        "staleness": {k: round(n / total, 4) for k, n in sorted(stale.items())},
        "staleness_mean": sum(k * n for k, n in stale.items()) / total,
        "dropped_groups": sum(r["dropped"] for r in rows),
        "generators_lost": simulation.lost,
    }


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="wide")
    parser.add_argument("--generators", type=int, default=512)
    parser.add_argument("--ranks", type=int, default=64, help="learner ranks")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--skip", type=int, default=3, help="first steps that the summary leaves out")
    parser.add_argument("--staleness", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=200_000, help="training prompts")
    parser.add_argument("--lost", type=float, default=0.0, help="share of the generators lost in every step")
    parser.add_argument("--checkpoint", type=int, default=5, help="steps between two checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path, help="write the summary here")
    for name in PRESETS["wide"]:
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(PRESETS["wide"][name]), help="instead of the preset's"
        )
    options = parser.parse_args(arguments)
    for name, value in PRESETS[options.preset].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(options, Path(folder) / "run")
        profile = (
            cProfile.Profile(time.thread_time) if options.profile else None
        )  # CPU, not wall: the machine is shared
        if profile:
            profile.runcall(simulation.run)
        else:
            simulation.run()
    found = summary(simulation, options.skip)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options) | {"json": str(options.json)}, **found}, indent=1))
    if profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
