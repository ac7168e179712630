"""Real runs on a real Ray, with something done to them at chosen steps, and what must be true of each of them afterwards."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from controlplane.contract.rundir import RunDir, read_lines
from tests.trainer.conftest import MICRO, even_sum_passes
from trainer.build import Run
from trainer.cluster.drive import drive
from trainer.loop import Loop
from trainer.recipe import Recipe
from trainer.tasks.arithmetic import Arithmetic
from trainer.warmstart import warm_started

At = Mapping[int, Callable[[Loop], object]]
"""Step -> what to do at the boundary after it, once."""


def recipe(**keys: Any) -> Recipe:
    """The micro recipe on a cluster: two generators, short deadlines; keys are replaced two levels down."""
    merged: dict[str, Any] = {
        **MICRO,
        "steps": 16,
        "task": {"training_prompts": 200, "held_out_prompts": 8},
        "evaluation": {"every": 8, "prompts": 4, "k": 2, "slots": 8},
        "checkpoint": {"every": 4, "keep": 10, "health": {"good_after_steps": 2}},
        "cluster": {
            "learners": {"ranks": 1},
            "generators": {"min": 1, "max": 2},
            "restarts": {"first_wait": 0.0},
            "deadlines": {
                "start": 120,
                "hang": 30,
                "load": 30,
                "abort": 30,
                "drain": 30,
            },  # a loaded machine is no fault
        },
    }
    for key, value in keys.items():
        if key == "cluster":
            value = {part: {**merged[key].get(part, {}), **value.get(part, {})} for part in {*merged[key], *value}}
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return Recipe.model_validate(merged)


def go(root: Path, spec: Recipe, at: At | None = None, address: str = "") -> tuple[Run, str]:
    """Drive a run in this process to its end. Call again to go on."""
    left = dict(at or {})
    ask = Loop._control_point

    def asked(loop: Loop) -> None:
        for step in sorted(step for step in left if step <= loop.state.step):
            left.pop(step)(loop)
        ask(loop)

    start = warm_started(spec.model, spec.task, spec.warm_start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arithmetic, "verify", even_sum_passes)
        patch.setattr(Loop, "_control_point", asked)
        done = drive(spec, RunDir(root), start, address, lambda _: None, lambda _: None)
    assert not left, f"never came to step {min(left)}"
    return done


def events(root: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_lines(RunDir(root).events) if line["event"] == kind]


def joined(root: Path) -> dict[str, int]:
    """Process id of every generator that ever joined."""
    return {line["name"]: line["pid"] for line in events(root, "generator_joined")}


def wait_for(what: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def listening(loop: Loop) -> bool:
    """The driver hears what its generators say, while a test holds the run up."""
    loop.session.collector._generator._pool.turn(0.01)  # type: ignore[attr-defined]
    return True


def signalled(root: Path, name: str, number: signal.Signals) -> Callable[[Loop], None]:
    """Send a signal to the process of a generator, which must have joined by then."""

    def send(_: Loop) -> None:
        os.kill(joined(root)[name], number)

    return send


def check(root: Path, spec: Recipe) -> None:
    """All steps, each once in the lineage; no prompt twice in an epoch; nothing too old; nothing left behind."""
    rundir = RunDir(root)
    lines = {(line["branch"], line["step"]): line for line in read_lines(rundir.ledger)}
    assert sorted(step for _, step in lines) == list(range(1, spec.steps + 1))
    items = [(line["epoch"], ordinal) for line in lines.values() for ordinal in line["ordinals"]]
    items += [tuple(pair) for line in lines.values() for pair in line.get("next_epoch", [])]
    assert len(items) == spec.steps * spec.batch.prompts_per_step
    assert max(Counter(items).values()) == 1
    *_, last = read_lines(rundir.steps)
    assert last["completions"] == len(items) * spec.batch.samples_per_prompt
    assert all(line["staleness_max"] <= spec.staleness.max_staleness for line in read_lines(rundir.steps))
    uid = rundir.read_info().run_uid
    assert not [path for place in (Path("/dev/shm"), root / "weights") for path in place.glob(f"*{uid}*")]
