"""Restart budgets, the directory for weights, the wanted number, and what a recipe may say of a cluster."""

import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from controlplane.contract.rundir import RunDir
from tests.cluster.runs import recipe
from trainer.cli import train
from trainer.cluster.budget import Budget
from trainer.cluster.engine import WeightsFile
from trainer.cluster.settings import Restarts
from trainer.cluster.sync import FileSync, Outbox, parent_of
from trainer.cluster.wanted import file_of, generators, wanted
from trainer.recipe import Recipe
from trainer.types import Version


def test_waits_double_to_their_limit_and_old_failures_are_forgotten() -> None:
    budget = Budget(Restarts(limit=3, window_seconds=100, first_wait=2, longest_wait=5))
    assert (budget.due(), budget.spent(0)) == (0, False)
    waits = []
    for now in (10.0, 20.0, 30.0):
        budget = budget.after_failure(now)
        waits.append(budget.due() - now)
        assert not budget.spent(now)
    assert waits == [2, 4, 5]
    budget = budget.after_failure(40.0)
    assert budget.spent(40.0)
    assert budget.spent(110.0)
    assert not budget.spent(110.1)  # the first failure is older than the window
    assert budget.after_failure(500.0).due() == 502.0


def test_only_the_newest_weights_file_stays_and_a_new_process_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    seen: list[tuple[Any, Version]] = []

    class Listening:
        def publish(self, weights: Any, version: Version) -> None:
            assert weights.path.read_bytes() == b"w"  # and the one before is still there for who needs it
            seen.append((weights, version))

    def export(path: Path) -> str:
        path.write_bytes(b"w")
        return "digest"

    other = Outbox(tmp_path, "another")
    outbox = Outbox(tmp_path, "mine")
    sync = FileSync(export, Listening(), outbox)  # type: ignore[arg-type]
    for version in (Version(0, 7), Version(1, 8), Version(0, 7)):  # a restart in place may come to a number again
        sync.publish(version)
        assert list(seen[-1][0].path.parent.iterdir()) == [seen[-1][0].path]
    assert len({weights.path for weights, _ in seen}) == 3
    assert isinstance(seen[0][0], WeightsFile)
    again = Outbox(tmp_path, "mine")
    assert not seen[-1][0].path.exists()
    assert len(list(tmp_path.iterdir())) == 2  # that of another run is left alone
    again.close()
    other.close()
    assert list(tmp_path.iterdir()) == []


def test_what_dead_runs_left_is_removed_and_what_a_living_one_uses_is_not(tmp_path: Path) -> None:
    hour_ago = time.time() - 3600
    living = Outbox(tmp_path, "living")
    dead, young = tmp_path / "scalerl-dead-1", tmp_path / "scalerl-young-1"
    for directory in (dead, young, tmp_path / "of-somebody-else"):
        directory.mkdir()
    for directory in tmp_path.iterdir():
        if directory != young:
            os.utime(directory, (hour_ago, hour_ago))
    with closing(Outbox(tmp_path, "mine")), closing(living):
        left = {path.name.rsplit("-", 1)[0] for path in tmp_path.iterdir()}
        assert left == {"scalerl-living", "scalerl-mine", "scalerl-young", "of-somebody"}


def test_weights_lie_where_the_recipe_says_else_in_shared_memory_of_one_machine_else_beside_the_run(
    tmp_path: Path,
) -> None:
    assert parent_of(Path("/fast"), tmp_path, one_machine=True) == Path("/fast")
    assert parent_of(None, tmp_path, one_machine=True) == Path("/dev/shm")
    assert parent_of(None, tmp_path, one_machine=False) == tmp_path / "weights"


def test_the_wanted_number_is_shown_changed_and_refused_outside_the_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, rundir = typer.Typer(), RunDir(tmp_path / "run")
    app.command()(generators)
    refused = CliRunner().invoke(app, [str(rundir.root)])
    assert (refused.exit_code, "no run has started here" in refused.output) == (2, True)
    rundir.root.mkdir()
    spec = recipe(cluster={"generators": {"min": 2, "max": 5}})
    rundir.recipe.write_text(spec.dump())
    bounds = spec.cluster.generators
    assert CliRunner().invoke(app, [str(rundir.root)]).output == "5 generators wanted (2 to 5)\n"
    assert CliRunner().invoke(app, [str(rundir.root), "3"]).output == "3 generators wanted (2 to 5)\n"
    assert wanted(rundir, bounds) == 3
    refused = CliRunner().invoke(app, [str(rundir.root), "6"])
    assert (refused.exit_code, refused.output) == (2, "6 is outside cluster.generators of the run's recipe: 2 to 5\n")
    assert wanted(rundir, bounds) == 3
    with monkeypatch.context() as patch:
        patch.setattr("os.getuid", lambda: 12345)
        assert wanted(rundir, bounds) == 5  # somebody else's wish
    file_of(rundir).write_text("many")
    assert wanted(rundir, bounds) == 5


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"generators": {"min": 4, "max": 3}}, "must be at least generators.min, which is 4"),
        ({"generators": {"gpus": 16}}, "must fit into one machine of 8 GPUs"),
        ({"generators": {"number": 3}}, "Extra inputs are not permitted"),
    ],
)
def test_a_split_that_cannot_be_is_refused(cluster: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate({"name": "x", "steps": 1, "cluster": cluster})


def test_a_run_may_go_on_with_another_cluster_and_not_with_another_batch() -> None:
    one, other = recipe(), recipe(cluster={"generators": {"max": 7}})
    assert one != other
    assert one.digest() == other.digest()
    assert one.digest() != recipe(batch={"prompts_per_step": 5}).digest()


def test_an_address_without_a_cluster_is_refused(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(train)
    refused = CliRunner().invoke(app, ["tiny", "--run", str(tmp_path / "run"), "--address", "10.0.0.1:6379"])
    assert (refused.exit_code, refused.output) == (2, "--address: only with --cluster ray\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("address", "message"), [("127.0.0.1:9", "nobody answers at 127.0.0.1:9: "), ("ray://head:10001", "give HOST:PORT")]
)
def test_an_address_where_nobody_is_ends_at_once_in_one_sentence(tmp_path: Path, address: str, message: str) -> None:
    file = tmp_path / "micro.yaml"
    file.write_text(recipe().dump())
    app = typer.Typer()
    app.command()(train)
    failed = CliRunner().invoke(
        app, [str(file), "--run", str(tmp_path / "run"), "--cluster", "ray", "--address", address]
    )
    assert failed.exit_code == 1
    assert "the run cannot go on: " in failed.output
    assert message in failed.output.splitlines()[-1]
