"""The process dies anywhere, again and again, also inside rollbacks: no prompt is trained twice, none is forgotten.

Every point at which the step machine touches the disk, the generator, the learner or the controller is a point of death,
before and after the touch. From then on the process can do nothing more: clean-up that a real death would not have run
does not run here either.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import trainer.checkpoint.store
import trainer.diary
from controlplane.agent import BoundaryState, Directive
from controlplane.contract.documents import AckState, Action, Health, Target
from controlplane.contract.rundir import RunDir, read_lines
from tests.trainer import rig
from tests.trainer.conftest import Script
from trainer.checkpoint.store import abandoned
from trainer.loop import Loop

STEPS, ASK_AT, ROLLBACKS = 10, (7, 9), 2


class Killed(BaseException):
    pass


class Reaper:
    """Counts touches and kills at the chosen one; a dead process stays dead."""

    def __init__(self, lives: list[int]) -> None:
        self.lives, self.left, self.dead = list(lives), 10**9, False
        self.touches = 0

    def born(self) -> None:
        self.dead = False
        self.left = self.lives.pop(0) if self.lives else 10**9

    def touch(self) -> None:
        self.touches += 1
        self.left -= 1
        if self.dead or self.left < 0:
            self.dead = True
            raise Killed

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def touched(*args: Any, **keys: Any) -> Any:
            self.touch()
            result = function(*args, **keys)
            self.touch()
            return result

        return touched


PLACES: list[tuple[Any, str]] = [
    (trainer.diary, "append_line"),
    (trainer.checkpoint.store, "write_atomic"),
    (torch, "save"),
    (os, "fsync"),
    (os, "replace"),
    (shutil, "rmtree"),
    (Path, "rename"),
    (Path, "unlink"),
    (Path, "write_text"),
    (rig.Abacus, "step"),
    (rig.Abacus, "load_state_dict"),
    (rig.Typist, "load"),
    (rig.Typist, "abort"),
    (Script, "step"),
    (Script, "checkpoint"),
    (Script, "boundary"),
    (Script, "acknowledge"),
]


@contextmanager
def reaped(reaper: Reaper) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # a process that dies loses nothing that was not synced
        for owner, name in PLACES:
            patch.setattr(owner, name, reaper.around(getattr(owner, name)))
        yield


class Controller:
    """Outlives the trainer: asks for a rollback until one has been applied, twice in the life of the run."""

    def __init__(self) -> None:
        self.asked = 0
        self.scripts: list[Script] = []

    @property
    def applied(self) -> int:
        return sum(ack[1] is AckState.applied for script in self.scripts for ack in script.acks)

    def __call__(self, state: BoundaryState) -> Directive | None:
        good = [c for c in state.checkpoints if c.health is Health.good and c.step < state.step]
        if self.applied == ROLLBACKS or state.step < ASK_AT[self.applied] or not good:
            return None
        self.asked += 1
        target = Target(step=good[0].step, digest=good[0].digest)
        return Directive(f"d{self.asked}", self.asked, {}, Action.rollback, target, "a test")


def live(root: Path, recipe: Any, reaper: Reaper) -> Loop:
    """Process after process, until the run has ended."""
    controller = Controller()
    while True:
        script = Script(controller)
        controller.scripts.append(script)
        reaper.born()
        try:
            with reaped(reaper):
                loop = rig.assemble(root, recipe, script)
                ended = loop.run()
        except Killed:
            continue
        assert ended == "end"
        return loop


def lineage(root: Path, forks: dict[int, int]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """What the ledger says is behind the weights: the last line of each (branch, step) that no later branch went behind."""
    lines = {(line["branch"], line["step"]): line for line in read_lines(RunDir(root).ledger)}
    return {
        (branch, step): [
            *((line["epoch"], ordinal) for ordinal in line["ordinals"]),
            *((epoch, ordinal) for epoch, ordinal in line.get("next_epoch", [])),
        ]
        for (branch, step), line in lines.items()
        if not abandoned(step, branch, forks) and all(branch != later or step > at for later, at in forks.items())
    }


def check(root: Path, loop: Loop, replay: str) -> None:
    """The weights remember what they were trained on; the ledger says the same; nothing twice, nothing forgotten."""
    seen = loop._learner.seen  # type: ignore[attr-defined]
    assert int(seen.max()) <= 1
    trained = {(int(epoch), int(ordinal)) for epoch, ordinal in seen.nonzero()}
    steps = lineage(root, loop.state.forks)
    assert sorted(step for _, step in steps) == list(range(1, STEPS + 1))
    written = Counter(item for items in steps.values() for item in items)
    assert max(written.values()) == 1
    assert set(written) == trained
    curriculum = loop.session.curriculum
    done = {(epoch, ordinal) for epoch, ordinals in curriculum._done.items() for ordinal in ordinals}
    done |= {(epoch, ordinal) for epoch in range(curriculum.epoch) for ordinal in range(rig.PROMPTS)}
    skipped = {
        (epoch, ordinal)
        for event in read_lines(RunDir(root).events)
        if event["event"] == "rollback"
        for epoch, ordinal in event["skipped"]
    }
    assert trained <= done
    if replay == "skip":
        assert not trained & skipped
        lost = loop.state.branch - sum(e["event"] == "rollback" for e in read_lines(RunDir(root).events))
        assert done - trained >= skipped
        assert lost > 0 or done - trained == skipped  # a death may have come between a rollback and its event
    else:
        assert skipped == set()
        assert done == trained
    account = loop.state.account
    assert account.completions == len(trained) * rig.SAMPLES


@pytest.mark.parametrize("snapshots", [0, 9])
@pytest.mark.parametrize("mode", ["pipeline", "ppo_off_policy"])
@pytest.mark.parametrize("replay", ["skip", "same", "reshuffle"])
@settings(max_examples=12, deadline=None)
@given(lives=st.lists(st.integers(0, 900), max_size=8))
def test_every_prompt_is_trained_exactly_once_per_epoch_wherever_the_process_dies(
    tmp_path_factory: pytest.TempPathFactory, replay: str, mode: str, snapshots: int, lives: list[int]
) -> None:
    root = tmp_path_factory.mktemp("run")
    recipe = rig.recipe(
        steps=STEPS,
        staleness={"mode": mode, "max_staleness": 2},
        batch={"prompts_per_step": 3},
        checkpoint={"replay": replay, "snapshots": snapshots, "keep": 3, "health": {"good_after_steps": 1}},
    )
    loop = live(root, recipe, Reaper(lives))
    check(root, loop, replay)
    shutil.rmtree(root)


@pytest.mark.parametrize("replay", ["skip", "same"])
def test_dying_at_any_point_from_the_request_of_a_rollback_to_the_step_after_it(tmp_path: Path, replay: str) -> None:
    recipe = rig.recipe(
        steps=STEPS,
        staleness={"max_staleness": 1},
        batch={"prompts_per_step": 3},
        checkpoint={"replay": replay, "snapshots": 2, "keep": 3, "health": {"good_after_steps": 1}},
    )
    whole = Reaper([])
    marks: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        from trainer.rollback import Savepoints

        real = Savepoints.rollback

        def marked(self: Any, *args: Any) -> Any:
            marks.append(whole.touches)
            done = real(self, *args)
            marks.append(whole.touches)
            return done

        patch.setattr(Savepoints, "rollback", marked)
        check(tmp_path / "whole", live(tmp_path / "whole", recipe, whole), replay)
    first, last = marks[0], marks[1]
    assert last - first > 20
    for point in range(first - 3, last + 12, 3):
        root = tmp_path / str(point)
        check(root, live(root, recipe, Reaper([point])), replay)
        shutil.rmtree(root)
