"""A generator in a thread of its own: nothing from outside waits for a group to end, and nothing is said twice."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cluster.fakes import request
from tests.trainer.rig import Typist
from trainer.cluster.decoding import Decoder
from trainer.cluster.engine import Harvest, Lane, WeightsFile
from trainer.sync import files
from trainer.types import Group, Version


class Gated(Typist):
    """Makes a token only when it is let."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.gate = threading.Semaphore(0)
        self.entered = threading.Event()

    def poll(self) -> list[Group]:
        self.entered.set()
        self.gate.acquire()
        return super().poll()


class Idle(Typist):
    """Counts its tokens, and never makes one."""

    progress = 0

    def poll(self) -> list[Group]:
        time.sleep(0.001)
        return []


class Broken(Typist):
    def poll(self) -> list[Group]:
        raise FloatingPointError("logits that are not numbers")


def decoder(generator: Typist) -> Decoder:
    made = Decoder({"rollout": generator, "evaluation": Typist(4)}, 2)
    made.load({"weight": 0.5}, Version(0, 0))
    return made


@pytest.fixture
def gated() -> Iterator[tuple[Gated, Decoder]]:
    generator = Gated(4)
    made = decoder(generator)
    yield generator, made
    generator.gate.release(1000)
    made.close()


def collected(it: Decoder, number: int) -> list[tuple[Lane, int, Group]]:
    groups: list[tuple[Lane, int, Group]] = []
    while len(groups) < number:
        groups += it.collect(5.0).groups
    return groups


def test_weights_change_between_two_tokens_of_a_completion_and_every_token_says_which(gated: Any) -> None:
    generator, it = gated
    it.submit("rollout", 0, [request(7)])
    generator.gate.release(1)
    loading = threading.Thread(target=it.load, args=({"weight": 0.7}, Version(0, 1)))
    generator.entered.clear()
    loading.start()
    generator.gate.release(1)
    loading.join()
    generator.gate.release(20)
    ((_, _, group),) = collected(it, 1)
    longest = max(group.completions, key=lambda completion: len(completion.tokens))
    versions = [span.version for span in longest.spans]
    assert versions == sorted(versions)
    assert {versions[0], versions[-1]} == {Version(0, 0), Version(0, 1)}


def test_groups_of_both_lanes_are_said_once_with_their_round_and_room_is_up_to_date() -> None:
    it = decoder(Typist(4))
    it.submit("rollout", 0, [request(0), request(1), request(2)])
    it.submit("evaluation", 3, [request(0)])
    groups = collected(it, 4)
    assert sorted((lane, round, group.request.id) for lane, round, group in groups) == [
        ("evaluation", 3, 0), ("rollout", 0, 0), ("rollout", 0, 1), ("rollout", 0, 2),
    ]  # fmt: skip
    harvest = it.collect(0.0)
    assert (list(harvest.groups), dict(harvest.room), harvest.seen) == ([], {"rollout": 4, "evaluation": 4}, 2)
    assert harvest.stalled == 0.0
    it.close()


def test_room_is_said_before_a_whole_group_has_ended(gated: Any) -> None:
    generator, it = gated
    it.submit("rollout", 0, [request(0), request(1)])
    assert it.collect(0.0).room["rollout"] <= 4
    got: list[Harvest] = []
    thread = threading.Thread(target=lambda: got.append(it.collect(60.0)))
    thread.start()
    generator.gate.release(20)
    thread.join(10)
    assert got


def test_an_abort_takes_back_what_was_not_said_and_ignores_what_was_submitted_before_it() -> None:
    it = decoder(Typist(4))
    it.submit("rollout", 0, [request(0)])
    while not it._outbox:
        time.sleep(0.001)
    assert it.abort("rollout", 1) > 0
    it.submit("rollout", 0, [request(1)])
    it.submit("rollout", 1, [request(2)])
    assert [group.request.id for _, _, group in collected(it, 1)] == [2]
    assert it.collect(0.0).groups == []
    it.close()


def test_an_engine_that_makes_no_token_says_for_how_long() -> None:
    it = decoder(Idle(4))
    it.submit("rollout", 0, [request(0)])
    time.sleep(0.05)
    assert it.collect(0.0).stalled >= 0.04
    it.load({"weight": 1.0}, Version(0, 1))
    assert it.collect(0.0).stalled >= 0.04  # new weights are no token
    it.close()


def test_an_error_of_the_generator_reaches_whoever_collects_or_submits() -> None:
    it = decoder(Broken(4))
    it.submit("rollout", 0, [request(0)])
    it._thread.join(5)
    with pytest.raises(FloatingPointError, match="not numbers"):
        it.collect(1.0)
    with pytest.raises(FloatingPointError):
        it.submit("rollout", 0, [request(1)])


def test_a_file_that_is_not_the_one_meant_changes_nothing(tmp_path: Path) -> None:
    generator = Typist(4)
    it = decoder(generator)
    weights = {"weight": torch.tensor([0.25])}
    digest = files.write(tmp_path / "w", weights, weights.items())
    with pytest.raises(files.WeightsFileError, match="has digest"):
        it.load(WeightsFile(tmp_path / "w", "0" * 64), Version(0, 1))
    assert generator._version == Version(0, 0)
    assert it.load(WeightsFile(tmp_path / "w", digest), Version(0, 1)).digest == digest
    assert (generator._weight, generator._version) == (0.25, Version(0, 1))
    it.close()
