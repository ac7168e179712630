"""Everything that may break under a run is broken, and the run goes on: no prompt twice, none forgotten, nothing too old."""

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cluster.runs import check, events, go, joined, listening, recipe, signalled, wait_for
from trainer.cluster.fleet import NoGenerators
from trainer.cluster.wanted import file_of
from trainer.loop import Loop

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


def both(root: Path) -> Any:
    """Waits until two generators have joined; the run stands still meanwhile."""
    return lambda loop: wait_for(lambda: listening(loop) and len(joined(root)) >= 2)


def after(root: Path, then: Any) -> Any:
    """Both are there, then something happens."""

    def do(loop: Loop) -> None:
        both(root)(loop)
        then(loop)

    return do


def test_a_generator_that_is_killed_is_replaced_and_its_groups_begin_again(tmp_path: Path) -> None:
    spec = recipe()
    _, reason = go(tmp_path, spec, {3: after(tmp_path, signalled(tmp_path, "g0.1", signal.SIGKILL))})
    assert reason == "end"
    (lost,) = events(tmp_path, "generator_lost")
    assert (lost["name"], lost["reason"]) == ("g0.1", "the process has died")
    check(tmp_path, spec)


def test_a_generator_that_hangs_is_killed_and_the_run_goes_on(tmp_path: Path) -> None:
    spec = recipe(cluster={"deadlines": {"hang": 4, "load": 10}})
    _, reason = go(tmp_path, spec, {3: after(tmp_path, signalled(tmp_path, "g1.1", signal.SIGSTOP))})
    assert reason == "end"
    lost = next(line for line in events(tmp_path, "generator_lost") if line["name"] == "g1.1")
    assert lost["reason"] in ("did not answer for 4 s", "did not confirm new weights within 10 s")
    check(tmp_path, spec)
    with pytest.raises(ProcessLookupError):
        os.kill(joined(tmp_path)["g1.1"], 0)


def test_a_slow_generator_loses_nothing(tmp_path: Path) -> None:
    spec, over = recipe(steps=30), threading.Event()

    def slow(_: Loop) -> None:
        pid = joined(tmp_path)["g0.1"]

        def brake() -> None:
            while not over.wait(0.05):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.3)
                os.kill(pid, signal.SIGCONT)

        threading.Thread(target=brake, daemon=True).start()

    def let_go(_: Loop) -> None:
        over.set()
        time.sleep(0.5)

    assert go(tmp_path, spec, {3: after(tmp_path, slow), 29: let_go})[1] == "end"
    assert events(tmp_path, "generator_lost") == []
    check(tmp_path, spec)


def test_with_no_generator_left_the_run_ends_in_one_sentence_and_the_same_command_goes_on(tmp_path: Path) -> None:
    spec = recipe(cluster={"restarts": {"limit": 0}})

    def kill_both(_: Loop) -> None:
        for pid in joined(tmp_path).values():
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(NoGenerators, match=r"only 0 of at least 1 generators .* the process has died"):
        go(tmp_path, spec, {6: after(tmp_path, kill_both)})
    assert len(events(tmp_path, "generator_given_up")) == 2
    assert go(tmp_path, spec)[1] == "end"
    (resumed,) = events(tmp_path, "resume")
    assert resumed["step"] == 4
    check(tmp_path, spec)


def test_a_disk_that_is_full_at_a_checkpoint_is_an_event_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, save = recipe(), torch.save

    def full(loop: Loop) -> None:
        def fails_once(*_: Any, **__: Any) -> None:
            monkeypatch.setattr(torch, "save", save)
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(torch, "save", fails_once)

    assert go(tmp_path, spec, {6: full})[1] == "end"
    assert [line["step"] for line in events(tmp_path, "checkpoint_failed")] == [8]
    assert [line["step"] for line in events(tmp_path, "checkpoint")] == [0, 4, 12, 16]
    check(tmp_path, spec)


def test_the_number_of_generators_follows_a_number_in_the_run_directory(tmp_path: Path) -> None:
    spec = recipe(steps=20, cluster={"generators": {"max": 3}})

    def want(number: int, names: set[str]) -> Any:
        def do(loop: Loop) -> None:
            _write(loop, number)
            wait_for(lambda: listening(loop) and {p.name for p in _live(loop)} == names)

        return do

    def _write(loop: Loop, number: int) -> None:
        from controlplane.contract.rundir import RunDir, write_atomic

        write_atomic(file_of(RunDir(tmp_path)), f"{number}\n")

    def _live(loop: Loop) -> list[Any]:
        return [member.engine for member in loop.session.collector._generator._pool._fleet.alive("live", "draining")]

    at = {4: want(1, {"g0.1"}), 10: want(2, {"g0.1", "g1.2"})}
    assert go(tmp_path, spec, {2: lambda loop: want(3, {"g0.1", "g1.1", "g2.1"})(loop), **at})[1] == "end"
    assert events(tmp_path, "generator_lost") == []
    assert {line["name"] for line in events(tmp_path, "generator_left")} == {"g1.1", "g2.1"}
    check(tmp_path, spec)
