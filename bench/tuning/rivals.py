"""Arms `pbt` and `pb2` of the comparison: Ray Tune's own schedulers over a population of real runs.

Set up as their documentation recommends: synchronous, a quantile of 25 %, exploit through checkpoints (ours: weights, optimizer,
curriculum and what was in flight), initial members drawn from the whole search space - and the first one is the person's own setting. Selection is by
the held-out pass rate itself, which is more than the other methods get to see, and nobody is charged for evaluations.
Needs bench/tuning/requirements.txt.
"""

import json
import os
import random
import tempfile
from math import exp, log
from pathlib import Path
from typing import Any

import torch

from bench.tuning.lab import STEP, Clock, Costs, counted, held_out, made, recipe_of, space_of

POPULATION = 4
STEPS = 20
ROUND = STEPS * STEP
"""Completions of each member between two decisions."""


def initial(member: int, seed: int, own: dict[str, float], space: dict[str, tuple[float, float]]) -> dict[str, float]:
    """The first member is what the person has set, the others are drawn from the search space."""
    if member == 0:
        return own
    rng = random.Random(f"{seed}-{member}")
    return {name: exp(rng.uniform(log(low), log(high))) for name, (low, high) in space.items()}


def run(root: Path, start: str, arm: str, seed: int, steps: int) -> tuple[Costs, dict[str, Any]]:
    """A population until every member has taken so many steps."""
    import ray
    from ray import tune
    from ray.tune.schedulers import PopulationBasedTraining
    from ray.tune.schedulers.pb2 import PB2

    searched = space_of(start)

    class Member(tune.Trainable):
        """One run. A round is `ROUND` completions, whatever the size of its steps, and an evaluation."""

        def setup(self, config: dict[str, Any]) -> None:
            self._clock, self._spent, self._round = Clock(), 0, 0
            self._folder = tempfile.TemporaryDirectory()
            self._loop = made(Path(self._folder.name), recipe_of(start, seed))
            self._loop._stepper.publish()
            counted(self._loop, self._count)
            self.reset_config(config)

        def _count(self, completions: int) -> None:
            self._spent += completions

        def reset_config(self, config: dict[str, Any]) -> bool:
            for name, (low, high) in searched.items():
                value = min(max(float(config[name]), low), high)
                self._loop.tunables[name] = float(round(value)) if name == "prompts_per_step" else value
            return True

        def step(self) -> dict[str, Any]:
            self._round += 1
            while self._spent < self._round * ROUND:
                self._loop.machine.stepper.step()
            score = held_out(self._loop)
            values = {name: self._loop.tunables[name] for name in searched}
            line = {"round": self._round, "spent": self._spent, "pass": score, "cpu": self._clock.seconds, **values}
            with (root / f"{self.trial_id}.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            return {"pass_ratio": score, "rounds": self._round}

        def save_checkpoint(self, directory: str) -> None:
            torch.save((self._loop.savepoints.snapshot(), self._round, self._spent), Path(directory) / "member.pt")

        def load_checkpoint(self, directory: str) -> None:
            snapshot, self._round, self._spent = torch.load(Path(directory) / "member.pt", weights_only=False)
            self._loop.machine.fork(snapshot)

        def cleanup(self) -> None:
            self._loop.close()
            self._folder.cleanup()

    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob("*.jsonl"):
        old.unlink()
    own = {name: recipe_of(start, seed).tunables()[name] for name in searched}
    members = {str(i): initial(i, seed, own, searched) for i in range(POPULATION)}
    space: dict[str, Any] = {"member": tune.grid_search(list(members))}
    for name in searched:
        space[name] = tune.sample_from(lambda spec, name=name: members[spec["config"]["member"]][name])
    kind = {"metric": "pass_ratio", "mode": "max", "time_attr": "rounds", "perturbation_interval": 1, "synch": True}
    if arm == "pbt":
        mutations = {
            n: (lambda low=low, high=high: exp(random.uniform(log(low), log(high))))
            for n, (low, high) in searched.items()
        }
        scheduler: Any = PopulationBasedTraining(**kind, hyperparam_mutations=mutations, quantile_fraction=0.25)
    else:
        bounds = {name: [low, high] for name, (low, high) in searched.items()}
        scheduler = PB2(**kind, hyperparam_bounds=bounds, quantile_fraction=0.25)
    random.seed(seed)
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so; members are the run here, not a guest of it
    ray.init(
        num_cpus=POPULATION,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        logging_level="ERROR",
    )
    rounds = -(-steps // STEPS)
    try:
        tuner = tune.Tuner(
            Member,
            param_space=space,
            tune_config=tune.TuneConfig(scheduler=scheduler, reuse_actors=True),
            run_config=tune.RunConfig(
                storage_path=str(root.resolve() / "ray"),
                stop={"rounds": rounds},
                verbose=0,
                name=f"{start}-{arm}-{seed}",
            ),
        )
        results = tuner.fit()
        if results.errors:
            raise RuntimeError(f"{arm}: {results.errors[0]}")
    finally:
        ray.shutdown()
    costs = _curve(root)
    if len(costs.curve) < rounds:  # Ray Tune returns as if all were well when it is interrupted
        raise RuntimeError(f"{arm}: ended after {len(costs.curve)} of {rounds} rounds")
    return costs, {"cpu_members": _cpu(root)}


def _lines(root: Path) -> list[list[dict[str, Any]]]:
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(root.glob("*.jsonl"))]


def _curve(root: Path) -> Costs:
    """The best member of each round, as the scheduler sees it. A member that was overwritten has paid all the same."""
    costs, members = Costs(), _lines(root)
    for round_ in range(1, min(max(line["round"] for line in member) for member in members) + 1):
        here = [next(line for line in member if line["round"] == round_) for member in members]
        costs.wall = round_ * ROUND
        costs.spare = (len(members) - 1) * costs.wall
        costs.curve.append((costs.wall, costs.total, round_ * STEPS, max(line["pass"] for line in here)))
    return costs


def _cpu(root: Path) -> float:
    return sum(max(line["cpu"] for line in member) for member in _lines(root))
