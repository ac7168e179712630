"""The study survives crashes, and nothing it says leaves trust region and clamps."""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra `tune` is not installed")

import psycopg
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from controlplane.tune.proposer import METRIC, Proposer
from controlplane.tune.space import LEAST_STEP, Axis, axes, directions
from controlplane.tune.trials import Trial
from tests.postgres import server

LR = Axis("lr_scale", 1.0, 0.25, 4.0)


def trial(number: int, relative: float, **changes: object) -> Trial:
    fields: dict[str, object] = {
        "number": number,
        "probe_id": "p1",
        "arm": "a",
        "design": "inline",
        "tunable": "lr_scale",
        "value": math.exp(relative),
        "relative": relative,
        "trigger": "a person asked",
        "from_step": 10,
        "until_step": 50,
        "branch": 0,
        "outcome": "adopt",
        "effect": 0.05,
        "low": 0.01,
        "high": 0.09,
        "gain": 0.1,
        "steps": 40,
    }
    return Trial.model_validate({**fields, **changes})


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A real server; it runs as somebody else, who must be let in, and sockets have short names."""
    with tempfile.TemporaryDirectory(prefix="pg") as place:
        Path(place).chmod(0o755)
        with server(Path(place) / "server") as url:
            yield url


@pytest.fixture(params=["sqlite", "journal", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return a_database(request.getfixturevalue("postgres"), request.node.name)
    return f"sqlite:///{tmp_path}/study.db" if request.param == "sqlite" else f"journal:{tmp_path}/study.log"


def a_database(postgres: str, test: str) -> str:
    """An empty database on the server, for one test."""
    name = "".join(c if c.isalnum() else "_" for c in test.lower())[:40]
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return postgres.replace("/postgres?", f"/{name}?")


@given(
    current=st.floats(0.05, 10),
    low=st.floats(0.01, 1),
    width=st.floats(1, 100),
    z=st.floats(-3, 3),
    trust=st.floats(1.05, 3),
)
def test_no_step_leaves_the_clamps_or_the_trust_region(
    current: float, low: float, width: float, z: float, trust: float
) -> None:
    axis = Axis("lr_scale", current, low, low * width, trust)
    value = axis.value(z)
    assert low <= value <= low * width
    if low <= current <= low * width:
        assert current / trust - 1e-9 <= value <= current * trust + 1e-9
    if axis.worth(z):
        assert abs(math.log(value / current)) >= max(LEAST_STEP, math.log(trust) / 3) - 1e-6
    assert (axis.violation(z) <= 0) == (low <= current * math.exp(z) <= low * width)


def test_whole_tunables_move_by_whole_steps_and_missing_ones_have_no_axis() -> None:
    assert Axis("prompts_per_step", 16, 4, 64).value(math.log(1.3)) == 21.0
    found = axes(
        {"lr_scale": 1.0, "clip_low": 0.0},
        {"lr_scale": (0.1, 2.0), "clip_low": (0, 1)},
        dict.fromkeys(("lr_scale", "clip_low", "ratio_max"), 1.5),
    )
    assert list(found) == ["lr_scale"]


def test_the_first_probe_goes_to_both_edges_and_after_instability_down(tmp_path: Path) -> None:
    proposer = Proposer(f"journal:{tmp_path}/s.log", "run")
    _, up, value = proposer.ask(LR)
    _, down, _ = proposer.ask(LR, taken=(up,))
    assert (value, up, down) == (pytest.approx(1.5), pytest.approx(math.log(1.5)), pytest.approx(-math.log(1.5)))
    assert directions(LR, unstable=True) == (-math.log(1.5),)
    for _ in range(2):
        assert proposer.ask(LR, unstable=True)[1] < 0


def test_a_tunable_at_its_clamp_is_not_moved_beyond_it(tmp_path: Path) -> None:
    proposer = Proposer(f"journal:{tmp_path}/s.log", "run")
    at_top = Axis("lr_scale", 2.0, 0.5, 2.0)
    for _ in range(3):
        number, z, value = proposer.ask(at_top)
        assert z < 0
        assert value < 2.0
        proposer.tell(trial(number, z))
    with pytest.raises(ValueError, match="cannot be moved"):
        proposer.ask(Axis("lr_scale", 1.0, 0.98, 1.02))
    with pytest.raises(ValueError, match="cannot be moved"):
        proposer.ask(at_top, taken=(-math.log(1.5),))


def test_telling_twice_and_after_a_restart_changes_nothing(url: str) -> None:
    number, z, _ = Proposer(url, "run").ask(LR)
    Proposer(url, "run").tell(trial(number, z, effect=0.05))
    Proposer(url, "run").tell(trial(number, z, effect=-9.0, outcome="reject"))
    [told] = Proposer(url, "run").study.trials
    assert told.state is TrialState.COMPLETE
    assert told.value == pytest.approx(0.5)
    assert told.user_attrs["outcome"] == "adopt"
    assert told.constraints


def test_what_the_journal_does_not_know_is_closed_and_what_it_knows_is_kept(url: str) -> None:
    proposer = Proposer(url, "run")
    lost, kept = proposer.ask(LR)[0], proposer.ask(LR)[0]
    assert Proposer(url, "run").close_orphans({kept}) == [lost]
    states = {t.number: t.state for t in Proposer(url, "run").study.trials}
    assert (states[lost], states[kept]) == (TrialState.FAIL, TrialState.RUNNING)


def test_a_cancelled_arm_has_no_value(tmp_path: Path) -> None:
    proposer = Proposer(f"journal:{tmp_path}/s.log", "run")
    number, z, _ = proposer.ask(LR)
    proposer.tell(trial(number, z, outcome="cancelled", effect=None, reason="a guard alarm"))
    assert proposer.study.trials[number].state is TrialState.FAIL
    assert proposer.study.trials[number].user_attrs["reason"] == "a guard alarm"


def test_probes_of_other_runs_enter_once_and_in_relative_units(tmp_path: Path) -> None:
    proposer = Proposer(f"journal:{tmp_path}/s.log", "run")
    past = [trial(0, math.log(1.4)), trial(1, math.log(3.0)), trial(2, -0.2, effect=None, outcome="cancelled")]
    space = {"lr_scale": 1.5}  # beyond the trust region and without an effect: nothing to learn
    assert proposer.learn_from(past, "run-0", space) == 1
    assert proposer.learn_from(past, "run-0", space) == 0
    assert proposer.learn_from(past, "run-1", {"ratio_max": 1.5}) == 0
    [known] = proposer.study.trials
    assert known.params == {"lr_scale": pytest.approx(math.log(1.4))}
    assert known.user_attrs["origin"] == "run-0"


@pytest.mark.parametrize("better", [1, -1])
def test_what_did_better_in_other_runs_is_tried_first_and_the_other_way_after_it(tmp_path: Path, better: int) -> None:
    proposer = Proposer(f"journal:{tmp_path}/s.log", "run")
    edge = math.log(1.5)
    past = [trial(0, better * edge, effect=0.1), trial(1, -better * edge, effect=-0.1)]
    assert proposer.learn_from(past, "run-0", {"lr_scale": 1.5}) == 2
    first = proposer.ask(LR)[1]
    assert first == pytest.approx(better * edge)
    assert proposer.ask(LR, taken=[first])[1] == pytest.approx(-better * edge)


def test_the_study_has_names_that_people_can_read(tmp_path: Path) -> None:
    proposer = Proposer(f"journal:{tmp_path}/s.log", "scalerl/tiny")
    proposer.describe(run="tiny", policy_hash="abc")
    assert proposer.study.metric_names == [METRIC]
    assert proposer.study.user_attrs == {"run": "tiny", "policy hash": "abc"}
    assert all(isinstance(v, (str, int, float)) for v in trial(0, 0.1).attributes().values())


def test_suggestions_move_towards_what_was_better(tmp_path: Path) -> None:
    proposer = Proposer(f"journal:{tmp_path}/s.log", "run", seed=1)
    for _ in range(10):
        number, z, _ = proposer.ask(LR)
        proposer.tell(trial(number, z, effect=0.1 * z / math.log(1.5)))
    later = [proposer.ask(LR)[1] for _ in range(4)]
    assert sum(z > 0 for z in later) >= 3
