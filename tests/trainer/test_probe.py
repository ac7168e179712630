"""A probe trains its arms on the same prompts from one snapshot, and leaves nothing behind but what was adopted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controlplane.agent import BoundaryState, Directive
from controlplane.contract.documents import AckState, Action, Probe, Ruling, Setting
from controlplane.contract.rundir import RunDir, read_lines
from tests.trainer import rig
from tests.trainer.conftest import Script
from tests.trainer.test_exactly_once import lineage
from trainer.loop import Loop

START, STEPS, LAST = 4, 3, 12
TWO_A_TURN = 8
"""Steps of an arm with which a turn is two of them."""
Ask = Callable[[BoundaryState], Directive | None]
ARMS = {"up": {"lr_scale": 2.0}, "down": {"lr_scale": 0.5}}


def order(arms: dict[str, dict[str, float]], steps: int = STEPS, wait: float = 0.0) -> Directive:
    spec = Probe(
        probe_id="p1",
        arms={arm: {name: Setting(value=value) for name, value in sets.items()} for arm, sets in arms.items()},
        steps=steps,
        wait_seconds=wait,
    )
    return Directive("d1", 1, {}, Action.probe, probe=spec, arms=arms)


def ruling(values: dict[str, float] | None = None, **says: Any) -> Directive:
    return Directive("d2", 2, values or {}, Action.probe, probe=Ruling(probe_id="p1", **says))


class Controller:
    """Orders a probe at step START; then answers as `then` says, given the boundary and the record so far."""

    def __init__(
        self, root: Path, then: Callable[[BoundaryState, list[dict[str, Any]]], Directive | None], **order_: Any
    ) -> None:
        self.rundir, self._then, self._order = RunDir(root), then, {"arms": ARMS, **order_}
        self._ordered = False

    def __call__(self, state: BoundaryState) -> Directive | None:
        if state.step == START and not self._ordered:
            self._ordered = True
            return order(**self._order)
        return self._then(state, self.record) if state.probe else None

    @property
    def record(self) -> list[dict[str, Any]]:
        return list(read_lines(self.rundir.probes / "p1.jsonl"))


def ran(root: Path, ask: Ask) -> tuple[Loop, Script, RunDir]:
    script = Script(ask)
    # Nothing in flight is lost at a fork, and the learner runs no step ahead: what a step sees is known.
    recipe = rig.recipe(
        steps=LAST, staleness={"max_staleness": 2}, batch={"prompts_per_step": 3}, checkpoint={"keep": 9}
    )
    loop = rig.assemble(root, recipe, script)
    assert loop.run() == "end"
    return loop, script, RunDir(root)


def never(state: BoundaryState, record: list[dict[str, Any]]) -> None:
    return None


def arm(record: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [line for line in record if line["kind"] == "step" and line["arm"] == name]


def outcome(rundir: RunDir) -> tuple[str, str]:
    last = list(read_lines(rundir.probes / "p1.jsonl"))[-1]
    return last["outcome"], last["reason"]


def adopt_up(state: BoundaryState, record: list[dict[str, Any]]) -> Directive | None:
    return ruling({"lr_scale": 2.0}, adopt="up") if record[-1]["kind"] == "waiting" else None


def test_arms_see_the_same_prompts_and_part_only_by_their_tunables(tmp_path: Path) -> None:
    twins = {"same": {"temperature": 0.9999}, "up": {"lr_scale": 2.0}}  # the rig's sampler does not look at temperature
    _, _, rundir = ran(tmp_path / "run", Controller(tmp_path / "run", never, arms=twins))
    record = list(read_lines(rundir.probes / "p1.jsonl"))
    control, same, up = (
        [(line["t"], line["step"], line["prompts"]) for line in arm(record, name)] for name in ("control", "same", "up")
    )
    assert len(control) == STEPS
    assert same == control
    assert [prompts for _, _, prompts in up] != [prompts for _, _, prompts in control]
    assert up[0] == control[0]  # sampled before the first update


def test_a_probe_that_nobody_rules_on_leaves_the_run_bit_for_bit_as_without_it(tmp_path: Path) -> None:
    plain, _, quiet = ran(tmp_path / "plain", lambda _: None)
    probed, script, rundir = ran(tmp_path / "probed", Controller(tmp_path / "probed", never))
    assert outcome(rundir) == ("control", "no ruling came in time")
    one, other = plain._learner.state_dict(), probed._learner.state_dict()
    assert one["model"]["weight"].equal(other["model"]["weight"])
    assert one["model"]["seen"].equal(other["model"]["seen"])
    assert [line["ordinals"] for line in read_lines(quiet.ledger)] == [
        line["ordinals"] for line in read_lines(rundir.ledger)
    ]
    assert [report.step for report in script.steps] == list(range(1, LAST + 1))
    assert probed.state.account.completions == plain.state.account.completions


def test_from_outside_the_run_stands_still_while_other_arms_are_trained(tmp_path: Path) -> None:
    _, script, _ = ran(tmp_path / "run", Controller(tmp_path / "run", never))
    during = [b for b in script.boundaries if b.standing_still]
    assert len(during) >= 2 * STEPS
    assert {(b.branch, b.values["lr_scale"]) for b in during} == {(0, 1.0)}
    assert {b.step for b in during} == set(range(START + 1, START + STEPS + 1))
    assert len({(b.step, b.compute) for b in during}) == STEPS


def turns(record: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Which arm took which of its steps, in order."""
    return [(line["arm"], line["t"]) for line in record if line["kind"] == "step"]


def test_control_goes_on_only_when_the_arm_that_is_compared_has_caught_up(tmp_path: Path) -> None:
    _, _, rundir = ran(tmp_path / "run", Controller(tmp_path / "run", never))
    one_by_one = [(name, t) for t in range(1, STEPS + 1) for name in ("control", "up")]
    assert turns(list(read_lines(rundir.probes / "p1.jsonl"))) == [
        *one_by_one,
        *[("down", t) for t in range(1, STEPS + 1)],
    ]


def test_when_all_arms_were_given_up_control_needs_no_further_step(tmp_path: Path) -> None:
    def stop(state: BoundaryState, record: list[dict[str, Any]]) -> Directive | None:
        newest = record[-1].get("arm") if record[-1]["kind"] == "step" else None
        return ruling(stop=(newest,)) if newest in ("up", "down") else None

    _, script, rundir = ran(tmp_path / "run", Controller(tmp_path / "run", stop))
    assert turns(list(read_lines(rundir.probes / "p1.jsonl"))) == [("control", 1), ("up", 1), ("down", 1)]
    assert outcome(rundir) == ("control", "no ruling came in time")
    assert [report.step for report in script.steps] == list(range(1, LAST + 1))


def test_an_arm_may_be_adopted_while_control_goes_on(tmp_path: Path) -> None:
    def late(state: BoundaryState, record: list[dict[str, Any]]) -> Directive | None:
        return ruling({"lr_scale": 2.0}, adopt="up") if turns(record)[-2:] == [("up", 2), ("control", 3)] else None

    loop, script, rundir = ran(tmp_path / "run", Controller(tmp_path / "run", late, steps=TWO_A_TURN))
    assert outcome(rundir) == ("up", "adopted up")
    assert loop.state.forks == {1: START}
    assert [r.step for r in script.steps if r.branch == 0] == list(range(1, START + 4))
    assert [r.step for r in script.steps if r.branch == 1] == list(range(START + 1, LAST + 1))
    seen = loop._learner.seen  # type: ignore[attr-defined]
    written = [item for items in lineage(tmp_path / "run", loop.state.forks).values() for item in items]
    assert sorted(written) == sorted((int(e), int(o)) for e, o in seen.nonzero())
    assert int(seen.max()) == 1


def test_an_adopted_arm_becomes_the_run_on_a_new_branch_with_its_steps_written_down_once(tmp_path: Path) -> None:
    loop, script, rundir = ran(tmp_path / "run", Controller(tmp_path / "run", adopt_up, wait=20.0))
    assert outcome(rundir) == ("up", "adopted up")
    assert script.acks[-1][1:4] == (AckState.applied, START + STEPS, {**loop.tunables, "lr_scale": 2.0})
    assert loop.tunables["lr_scale"] == 2.0
    assert loop.state.forks == {1: START}
    assert [r.step for r in script.steps if r.branch == 1] == list(range(START + 1, LAST + 1))
    assert {r.tunables["lr_scale"] for r in script.steps if r.branch == 1} == {2.0}
    seen = loop._learner.seen  # type: ignore[attr-defined]
    written = [item for items in lineage(tmp_path / "run", loop.state.forks).values() for item in items]
    assert sorted(written) == sorted((int(e), int(o)) for e, o in seen.nonzero())
    assert int(seen.max()) == 1
    assert loop.state.account.completions == len(written) * rig.SAMPLES


def test_the_adopted_run_is_the_one_that_had_changed_the_tunable_in_the_first_place(tmp_path: Path) -> None:
    def change(state: BoundaryState) -> Directive | None:
        return Directive("d", 1, {"lr_scale": 2.0}) if state.step == START and state.values["lr_scale"] == 1 else None

    direct, _, _ = ran(tmp_path / "direct", change)
    adopted, _, _ = ran(tmp_path / "run", Controller(tmp_path / "run", adopt_up, wait=20.0))
    one, other = direct._learner.state_dict()["model"], adopted._learner.state_dict()["model"]
    assert one["weight"].equal(other["weight"])
    assert one["seen"].equal(other["seen"])


def test_an_arm_may_be_adopted_before_it_has_all_its_steps(tmp_path: Path) -> None:
    def early(state: BoundaryState, record: list[dict[str, Any]]) -> Directive | None:
        return ruling({"lr_scale": 2.0}, adopt="up") if record[-1].get("arm") == "up" and record[-1]["t"] == 2 else None

    loop, script, rundir = ran(tmp_path / "run", Controller(tmp_path / "run", early))
    assert outcome(rundir)[0] == "up"
    assert not arm(list(read_lines(rundir.probes / "p1.jsonl")), "down")
    assert [r.step for r in script.steps if r.branch == 1] == list(range(START + 1, LAST + 1))
    assert int(loop._learner.seen.max()) == 1  # type: ignore[attr-defined]


def test_an_arm_that_is_stopped_takes_no_further_step_and_the_next_one_begins(tmp_path: Path) -> None:
    def stop(state: BoundaryState, record: list[dict[str, Any]]) -> Directive | None:
        return ruling(stop=("up",)) if record[-1].get("arm") == "up" else None

    _, _, rundir = ran(tmp_path / "run", Controller(tmp_path / "run", stop))
    record = list(read_lines(rundir.probes / "p1.jsonl"))
    assert (len(arm(record, "up")), len(arm(record, "down"))) == (1, STEPS)


def test_an_arm_that_was_given_up_cannot_be_adopted(tmp_path: Path) -> None:
    def stop_then_adopt(state: BoundaryState, record: list[dict[str, Any]]) -> Directive | None:
        kinds = [(line["kind"], line.get("arm")) for line in record]
        if kinds[-1] == ("step", "up"):
            return ruling(stop=("up",))
        return ruling({"lr_scale": 2.0}, adopt="up") if kinds[-1] == ("step", "down") and record[-1]["t"] == 1 else None

    loop, script, _ = ran(tmp_path / "run", Controller(tmp_path / "run", stop_then_adopt))
    refused = [ack for ack in script.acks if ack[1] is AckState.rejected]
    assert "arm up was given up" in refused[0][4]
    assert loop.state.branch == 0
    with pytest.raises(ValueError, match="both stop and adopt"):
        Ruling(probe_id="p1", stop=("up",), adopt="up")


def test_a_control_whose_last_step_was_not_finite_is_still_that_after_the_turns_of_the_others(tmp_path: Path) -> None:
    told: list[bool] = []

    def watch(state: BoundaryState, record: list[dict[str, Any]]) -> None:
        if not state.standing_still and record[-1]["kind"] == "step":
            told.append(loop.session.poisoned)

    loop = rig.assemble(tmp_path / "run", rig.recipe(steps=LAST), Script(Controller(tmp_path / "run", watch)))
    after_step = loop._probing.after_step

    def broken(stepped: Any) -> None:
        loop.session.poisoned = bool(loop._probing.probe_id)
        after_step(stepped)

    loop._probing.after_step = broken  # type: ignore[method-assign]
    assert loop.run() == "end"
    assert told
    assert all(told)


@pytest.mark.parametrize("when", ["control", "up"])
def test_any_other_directive_ends_the_probe_and_is_carried_out_on_the_run_itself(tmp_path: Path, when: str) -> None:
    def other(state: BoundaryState, record: list[dict[str, Any]]) -> Directive | None:
        return Directive("d3", 3, {"temperature": 0.5}) if record[-1].get("arm") == when else None

    loop, script, rundir = ran(tmp_path / "run", Controller(tmp_path / "run", other, steps=TWO_A_TURN))
    assert outcome(rundir) == ("control", "decision d3 is carried out on the run itself")
    assert script.acks[-1][:3] == ("d3", AckState.applied, START + (1 if when == "control" else 2))
    assert loop.tunables["temperature"] == 0.5
    assert loop.tunables["lr_scale"] == 1.0
    assert loop.state.branch == 0
    assert [r.step for r in script.steps] == list(range(1, LAST + 1))


def test_a_signal_during_an_arm_leaves_the_run_where_control_stands(tmp_path: Path) -> None:
    def stop(state: BoundaryState, record: list[dict[str, Any]]) -> None:
        if record[-1].get("arm") == "up":
            script_loop[0].stop("SIGTERM")

    root, script_loop = tmp_path / "run", []
    script = Script(Controller(root, stop, wait=20.0))
    loop = rig.assemble(root, rig.recipe(steps=LAST, batch={"prompts_per_step": 3}), script)
    script_loop.append(loop)
    assert loop.run() == "stop"
    assert (loop.state.step, loop.state.branch, loop.tunables["lr_scale"]) == (START + 1, 0, 1.0)


@pytest.mark.parametrize(
    ("order_", "reason"),
    [
        ({"steps": LAST}, "do not fit before the run ends"),
        ({"arms": {"none": {"lr_scale": 1.0}}}, "changes nothing inside the guard rails"),
    ],
)
def test_a_probe_that_makes_no_sense_is_refused(tmp_path: Path, order_: dict[str, Any], reason: str) -> None:
    _, script, rundir = ran(tmp_path / "run", Controller(tmp_path / "run", never, **order_))
    assert script.acks[0][1] is AckState.rejected
    assert reason in script.acks[0][4]
    assert not rundir.probes.exists()


@pytest.mark.parametrize(
    ("says", "values", "reason"),
    [
        ({"adopt": "sideways"}, {}, "has no arm sideways"),
        ({"adopt": "down"}, {"lr_scale": 0.5}, "has taken no step"),
        ({"adopt": "up"}, {"lr_scale": 1.5}, "does not set what arm up was trained with"),
    ],
)
def test_a_ruling_that_does_not_fit_its_probe_is_refused(
    tmp_path: Path, says: dict[str, Any], values: dict[str, float], reason: str
) -> None:
    def wrong(state: BoundaryState, record: list[dict[str, Any]]) -> Directive | None:
        return ruling(values, **says) if record[-1].get("arm") == "up" and record[-1]["t"] == 1 else None

    loop, script, _ = ran(tmp_path / "run", Controller(tmp_path / "run", wrong))
    refused = [ack for ack in script.acks if ack[1] is AckState.rejected]
    assert reason in refused[0][4]
    assert loop.state.branch == 0
