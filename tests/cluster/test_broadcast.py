"""Weights sent to all engines at once: who is invited, what the others take, and what becomes of a publication that fails."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.fakes import Clock, FakeEngine, Workshop, done, spec
from trainer.cluster import broadcast
from trainer.cluster.broadcast import BroadcastSync, Meeting
from trainer.cluster.engine import Invitation, Loaded, WeightsFile
from trainer.cluster.fleet import Fleet
from trainer.cluster.pool import Pool
from trainer.cluster.sync import FileSync, Outbox
from trainer.types import Version


class Taker(FakeEngine):
    """Remembers what it was given, and confirms it as a real one does."""

    def __init__(self, *args: Any, **keys: Any) -> None:
        super().__init__(*args, **keys)
        self.given: list[Any] = []
        self.proof = "the weights"

    def load(self, weights: Any, version: Version) -> Any:
        self.given.append(weights)
        super().load(weights, version)
        if isinstance(weights, WeightsFile):
            return done(Loaded(version, weights.digest))
        return done(Loaded(version, self.proof if weights.prove else ""))


class Takers(Workshop):
    def __call__(self, name: str) -> FakeEngine:
        self.engines.append(Taker(name, **self.keys))
        return self.engines[-1]


class Ranks:
    """What the learner ranks were asked for."""

    def __init__(self) -> None:
        self.exports: list[Path] = []
        self.meetings: list[Meeting] = []
        self.error: Exception | None = None

    def export(self, path: Path) -> str:
        path.write_bytes(b"weights")
        self.exports.append(path)
        return f"digest {len(self.exports)}"

    def apply(self, function: Callable[..., Any], *args: Any, doing: str) -> list[Any]:
        if function is broadcast.layout:
            return [{"names": ["w"]}]
        if function is broadcast.place:
            return [("127.0.0.1", 1000 + len(self.meetings))]
        self.meetings.append(args[0])
        if self.error is not None:
            raise self.error
        return [None]


class Scene:
    def __init__(self, tmp_path: Path, wanted: int) -> None:
        self.takers, self.ranks, self.wanted = Takers(), Ranks(), wanted
        self.pool = Pool(
            Fleet(self.takers, spec(), lambda: self.wanted),
            spec(),
            {"rollout": 4, "evaluation": 4},
            {"rollout": 2, "evaluation": 1},
            clock=Clock(),
        )
        files = FileSync(self.ranks.export, self.pool, Outbox(tmp_path, "run"))
        self.sync = BroadcastSync(files, self.pool, self.ranks.apply, workers=2, deadline=5.0)

    def until_sampling(self, n: int) -> None:
        for _ in range(1000):
            if len(self.pool.sampling) == n:
                return
            self.pool.turn()
        raise AssertionError(f"{len(self.pool.sampling)} sample")

    def given(self, name: str) -> list[Any]:
        return next(engine.given for engine in self.takers.engines if engine.name == name)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path, wanted=2)
    scene.sync.publish(Version(0, 0))  # nobody samples yet
    scene.until_sampling(2)
    return scene


def test_who_comes_up_takes_a_file_and_who_samples_is_invited(scene: Scene) -> None:
    first, second = scene.pool.sampling
    assert [type(weights) for weights in scene.given(first)] == [WeightsFile]
    scene.sync.publish(Version(0, 1))
    invitations = [scene.given(name)[-1] for name in (first, second)]
    assert all(isinstance(each, Invitation) for each in invitations)
    assert len({each.group for each in invitations}) == 1
    assert [each.join["rank_offset"] for each in invitations] == [1, 3]  # two workers each, after the sender
    assert {each.join["world_size"] for each in invitations} == {5}
    assert len(scene.ranks.exports) == 1


def test_the_group_is_kept_while_the_same_engines_sample_and_made_anew_when_others_do(scene: Scene) -> None:
    scene.sync.publish(Version(0, 1))
    scene.sync.publish(Version(0, 2))
    scene.wanted = 3
    for _ in range(50):
        scene.pool.turn()
    scene.until_sampling(3)
    scene.sync.publish(Version(0, 3))
    names = [meeting.name for meeting in scene.ranks.meetings]
    assert names[0] == names[1] != names[2]
    assert len(scene.ranks.meetings[2].members) == 3


def test_an_engine_that_comes_up_between_two_broadcasts_takes_the_newest_weights_from_a_new_file(scene: Scene) -> None:
    scene.sync.publish(Version(0, 7))
    scene.wanted = 3
    for _ in range(50):
        scene.pool.turn()
    scene.until_sampling(3)
    newcomer = scene.takers.engines[-1]
    assert [weights.digest for weights in newcomer.given] == ["digest 2"]  # type: ignore[attr-defined]
    assert newcomer.version == Version(0, 7)
    scene.sync.publish(Version(0, 8))
    assert [path.exists() for path in scene.ranks.exports] == [False, True]


def test_engines_are_compared_in_a_new_group_and_after_a_rollback(scene: Scene) -> None:
    for version in (Version(0, 1), Version(0, 2), Version(1, 3), Version(1, 4)):
        scene.sync.publish(version)
    given = scene.given(scene.pool.sampling[0])
    assert [each.prove for each in given if isinstance(each, Invitation)] == [True, False, True, False]


@pytest.mark.parametrize(("engines", "wrong", "left"), [(3, 1, 2), (2, 1, 0)])
def test_an_engine_with_other_weights_than_most_is_lost_and_all_are_where_there_is_no_most(
    tmp_path: Path, engines: int, wrong: int, left: int
) -> None:
    scene = Scene(tmp_path, wanted=engines)
    scene.sync.publish(Version(0, 0))
    scene.until_sampling(engines)
    for engine in scene.takers.engines[:wrong]:
        engine.proof = "other weights"  # type: ignore[attr-defined]
    first = scene.takers.engines[:engines]
    scene.sync.publish(Version(0, 1))
    assert [engine.killed for engine in first].count(False) == left
    assert all(engine.killed for engine in first[:wrong])
    scene.until_sampling(engines)  # others take their places, from a file


def test_no_file_is_asked_of_the_ranks_while_they_send(scene: Scene) -> None:
    """They do one thing at a time: an export in the middle of a broadcast would wait for it, and it for the export."""
    scene.sync.publish(Version(0, 1))
    scene.wanted = 3
    inside: list[int] = []
    begin = scene.pool._until_confirmed

    def sending() -> None:
        for _ in range(50):
            scene.pool.turn()  # the third engine comes up now
        inside.append(len(scene.ranks.exports))
        begin()

    scene.pool._until_confirmed = sending  # type: ignore[method-assign]
    scene.sync.publish(Version(0, 2))
    assert inside[0] == 1
    assert scene.takers.engines[-1].version == Version(0, 2)


def test_a_broadcast_that_the_ranks_cannot_finish_is_an_error_of_the_publication(scene: Scene) -> None:
    scene.ranks.error = RuntimeError("learner rank 0 is gone")
    with pytest.raises(RuntimeError, match="rank 0 is gone"):
        scene.sync.publish(Version(0, 1))
