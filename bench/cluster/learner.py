"""What the way over learner ranks costs: `python -m bench.cluster.learner`, on one machine without a GPU.

The same random batches (16 prompts x 8 completions of about 38 tokens) in three arrangements that take turns, so that other
work on the machine hits them alike: the learner in this process, one rank, two ranks. A rank is a Ray actor with one
thread. Beside the step: export of the weights, a copy in memory, shards on disk, and the way back from each. Wall times are
medians of all rounds; CPU time is that of driver and ranks together, and other work on the machine hardly touches it.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.learner import SHAPES, batch
from trainer.cluster.learners import Limits
from trainer.cluster.ray_session import connected
from trainer.learn.learner import PlainLearner
from trainer.model import load_model, make_tiny
from trainer.recipe import Recipe, find_recipe, load_recipe
from trainer.sync import files
from trainer.tasks.tokenizer import character_tokenizer

TUNABLES = {"lr_scale": 1.0}
WARM_UP = 2


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def groups(recipe: Recipe, start: Path, scratch: Path) -> dict[str, Any]:
    """One rank, and two."""
    from trainer.cluster.learner_group import LearnerGroup

    made = {}
    for ranks in (1, 2):
        learners = recipe.cluster.learners.model_copy(update={"ranks": ranks, "cpus": 1.0})
        cluster = recipe.cluster.model_copy(update={"learners": learners})
        own = recipe.model_copy(update={"cluster": cluster})
        made[f"{ranks} rank{'s' * (ranks > 1)}"] = LearnerGroup(
            own, start, gpus=0, checkpoints=scratch, poison=scratch / "poisoned.json", limits=Limits()
        )
    return made


def round_trip(group: Any, scratch: Path) -> dict[str, float]:
    """Seconds of everything beside the step."""
    from trainer.checkpoint.shards import StoredShards

    directory = Path(tempfile.mkdtemp(dir=scratch))
    kept: list[Any] = []
    seconds = {
        "export": timed(lambda: group.export(directory / "weights")),
        "copy in memory": timed(lambda: kept.append(group.keep())),
        "shards on disk": timed(lambda: group.write(made(directory / "shards"), None)),
    }
    states = {"back from memory": kept[0], "back from disk": StoredShards(directory / "shards")}
    for name, shards in states.items():
        state = {"shards": shards, "base_lr": group.base_lr}
        seconds[name] = timed(lambda state=state: group.load_state_dict(state))
    return seconds


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=list(SHAPES), default="0.5M")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(find_recipe("tiny"))
    with tempfile.TemporaryDirectory() as name, connected("", 4):
        scratch = Path(name)
        tokenizer = character_tokenizer()
        make_tiny(SHAPES[options.model], tokenizer, seed=0).save_pretrained(scratch / "model")
        plain = PlainLearner(load_model(scratch / "model"), recipe.optimizer, recipe.loss, recipe.precision)
        ranks = groups(recipe, scratch / "model", scratch)
        steps: dict[str, list[float]] = {"this process": [], **{name: [] for name in ranks}}
        spent: dict[str, list[float]] = {name: [] for name in steps}
        beside: dict[str, list[dict[str, float]]] = {name: [] for name in ranks}
        for step in range(1, options.rounds + WARM_UP + 1):
            work = batch(16, 8, step)
            for name, learner in {"this process": plain, **ranks}.items():
                before = cpu(learner)
                steps[name].append(
                    timed(lambda learner=learner, step=step, work=work: learner.step(step, work, TUNABLES))
                )
                spent[name].append(cpu(learner) - before)
            for name, group in ranks.items():
                beside[name].append(round_trip(group, scratch))
        own = timed(lambda: files.write(scratch / "w", plain.model.state_dict(), plain.model.state_dict().items()))
        for group in ranks.values():
            group.close()
    show(options.model, steps, spent, beside, own)


def cpu(learner: Any) -> float:
    """Seconds that this process and the ranks have computed."""
    ranks = [] if isinstance(learner, PlainLearner) else learner.apply(own_cpu, doing="telling its CPU time")
    return time.process_time() + sum(ranks)


def own_cpu(_: Any) -> float:
    return time.process_time()


def show(
    model: str,
    steps: dict[str, list[float]],
    spent: dict[str, list[float]],
    beside: dict[str, list[dict[str, float]]],
    own: float,
) -> None:
    print(f"{model} parameters, torch {torch.__version__}; ms, median (least)")
    for name in steps:
        print(f"  step, {name:13} {_words(steps[name])}   CPU {_words(spent[name])}")
    print(f"  export, this process {own * 1e3:8.1f}")
    for name, rounds in beside.items():
        for what in rounds[0]:
            print(f"  {what}, {name:8} {_words([each[what] for each in rounds])}")


def _words(times: list[float]) -> str:
    counted = times[WARM_UP:]
    return f"{statistics.median(counted) * 1e3:8.1f} ({min(counted) * 1e3:.1f})"


if __name__ == "__main__":
    main()
