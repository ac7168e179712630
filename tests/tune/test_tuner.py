"""From a person's word or a bad forecast to an arm that is adopted: real trainer, real agent, real controller, real study."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="the extra `tune` is not installed")

import torch
import yaml
from optuna.trial import TrialState

from controlplane.agent import Agent, BoundaryState, Directive
from controlplane.contract.approvals import Order
from controlplane.contract.rundir import RunDir, RunInfo, read_lines
from controlplane.contract.yamlfile import FileError
from controlplane.journal import EntryKind, Journal
from controlplane.loop import Controller
from controlplane.policy import Policy, parse
from controlplane.post import say
from controlplane.replay import replay
from controlplane.sources import Sample
from controlplane.sources.exposition import parse as parse_metrics
from controlplane.tune.command import schedule, tuner_of
from controlplane.tune.proposer import Proposer
from tests.trainer import rig
from tests.trainer.conftest import Script
from trainer.control import ACTIONS
from trainer.loop import Loop
from trainer.probe import helper
from trainer.probe.record import Record
from trainer.types import Prompt, Verdict

POLICY = """
policy: v1
name: tuning
autonomy: {probe: act}
detectors:
  broken: {kind: nonfinite, steps: 2}
clamps:
  lr_scale: {min: 0.25, max: 4.0}
forecast: {target: 0.9}
verdict: {after_steps: 6, grace_steps: 2}
tuning:
  space: {lr_scale: 1.5}
  steps: 12
  arms: 2
  min_effect: 0.02
  noise: {persistence: 0.5, wandering: 0.1}
"""


class Beside:
    """A helper that has ended."""

    def failed(self) -> str:
        return ""

    def stop(self) -> None: ...


class House:
    """A run of the rig whose every boundary is also a look of its controller. `better` says how often a prompt passes."""

    def __init__(self, root: Path, better: Any, policy: str = POLICY, steps: int = 40) -> None:
        self.rundir, self.now, self.better = RunDir(root), 0.0, better
        root.mkdir(exist_ok=True)
        self.spec = rig.recipe(steps=steps, staleness={"max_staleness": 1}, batch={"prompts_per_step": 5})
        self.spec = self.spec.model_copy(
            update={"guard_rails": self.spec.guard_rails.model_copy(update={"cooldown_steps": 0})}
        )
        self.policy: Policy = parse(policy)
        info = RunInfo(
            run_uid="u",
            name="tiny",
            created_at=0,
            planned_steps=steps,
            config_hash="c",
            framework="f",
            algorithm="a",
            model="m",
        )
        self.rundir.info.write_text(info.model_dump_json())
        rails, mine = self.spec.rails(), self.spec.tunables()
        self.agent = Agent(
            self.rundir, info, mine, rails, ACTIONS, port=None, poll_seconds=None, clock=lambda: self.now
        )
        self.controller = self.begin_controller()
        self.acks: list[Any] = []
        house = self

        class Task(rig.Parity):
            def verify(self, prompt: Prompt, completion: str, finished: bool) -> Verdict:
                tokens = sum(7 * i + int(t) for i, t in enumerate(completion.split()))
                passed = (tokens * 2654435761 + prompt.ordinal) % 1000 < 1000 * house.better(house.loop)
                return Verdict(1.0 if passed else -1.0, passed)

        class Control(Script):
            def boundary(self, state: BoundaryState) -> Directive | None:
                super().boundary(state)
                return house.boundary(state)

            def step(self, report: Any) -> None:
                house.agent.step(report)

            def evaluation(self, report: Any) -> None:
                house.agent.evaluation(report)

            def acknowledge(self, directive: Any, state: Any, at_step: int, readback: Any, reason: str = "") -> None:
                house.acks.append((directive, state, reason))
                house.agent.acknowledge(directive, state, at_step, readback, reason)

        def beside(folder: Path) -> Beside:
            """The spare process, here and at once."""
            run, self.loop = self.loop, rig.assemble(folder, self.spec, helper.Deaf(), Task())
            order = helper.Order.read(folder)
            snapshot = torch.load(folder / "snapshot.pt", weights_only=False)
            helper.train(self.loop.machine, order, snapshot, Record(folder.parent / order.record))
            self.loop = run
            return Beside()

        self.loop: Loop = rig.assemble(root, self.spec, Control(), Task(), launch=beside)

    def begin_controller(self) -> Controller:
        journal = Journal(self.rundir.journal)
        controller = Controller(self.rundir, self.policy, POLICY, self, journal, clock=lambda: self.now)
        tuner = tuner_of(self.rundir, self.policy)
        assert tuner is not None
        controller.advised_by(tuner)
        return controller

    def read(self, names: Collection[str]) -> Sample:
        return Sample(self.now, parse_metrics(self.agent.store.text(), names))

    def boundary(self, state: BoundaryState) -> Directive | None:
        self.now += 1.0
        directive = self.agent.boundary(state)  # shows what is true now
        if directive is None:
            if self.controller._epoch == 0:
                self.controller.attach()
                self.controller.export()
            self.controller.tick()
            directive = self.agent.boundary(state)
        return directive

    def go(self) -> str:
        try:
            return self.loop.run()
        finally:
            self.controller._silence()

    def ask(self) -> None:
        say(self.rundir, Order(order_id="o1", action="probe", tunable="lr_scale", by="ada", at=self.now))

    @property
    def journal(self) -> list[dict[str, Any]]:
        """Trials as they ended."""
        lines = Journal(self.rundir.journal, read_only=True).entries(kind=EntryKind.trial)
        return [e.body for e in lines if e.body["outcome"] != "running"]

    @property
    def decisions(self) -> list[dict[str, Any]]:
        looks = Journal(self.rundir.journal, read_only=True).entries(kind=EntryKind.look)
        return [e.body["decision"] for e in looks]


def higher_is_better(loop: Loop) -> float:
    return 0.9 if loop.tunables["lr_scale"] > 1 else 0.2


def no_difference(loop: Loop) -> float:
    return 0.5


@pytest.fixture(autouse=True)
def study_in_a_journal_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite flushes every line to the disk; what is tested here does not need that."""
    monkeypatch.setattr(
        "controlplane.tune.command.study_url", lambda rundir, url="": f"journal:{rundir.controller}/study.log"
    )


def study_of(house: House) -> Proposer:
    return Proposer(f"journal:{house.rundir.controller}/study.log", "scalerl/tiny")


def test_a_person_asks_and_what_is_proved_better_is_adopted_and_guarded(tmp_path: Path) -> None:
    house = House(tmp_path / "run", higher_is_better)
    house.ask()
    assert house.go() == "end"
    assert house.loop.tunables["lr_scale"] == pytest.approx(1.5)
    assert house.loop.state.branch == 1
    up, down = sorted(house.journal, key=lambda trial: -trial["value"])
    assert (up["outcome"], down["outcome"] != "adopt") == ("adopt", True)
    assert up["low"] > 0.02
    assert up["device_seconds"] > 0
    assert up["steps"] < 12  # proved before its last step, and the other direction was not tried any more
    assert (down["outcome"], down["steps"]) == ("cancelled", 0)
    assert "ada asked for it" in up["trigger"]
    told = {t.number: t for t in study_of(house).study.trials}
    assert told[up["number"]].value is not None
    assert told[up["number"]].user_attrs["outcome"] == "adopt"
    assert all(t.state.is_finished() for t in told.values())
    acted = [d for d in house.decisions if d["kind"] == "act"]
    assert acted[0]["purpose"] == "probe"
    assert acted[-1]["purpose"] == "adopt"
    assert acted[0]["approved_by"] == "ada"
    [verdict] = [d for d in house.decisions if d["kind"] == "verdict"]
    assert verdict["helped"] is True
    assert not list(house.rundir.said.glob("*.json"))  # the order is done with


def test_a_later_run_knows_what_the_probes_of_an_earlier_one_have_shown(tmp_path: Path) -> None:
    earlier = House(tmp_path / "earlier", higher_is_better)
    earlier.ask()
    earlier.go()
    later = RunDir(tmp_path / "later")
    later.root.mkdir()
    later.info.write_bytes(earlier.rundir.info.read_bytes())
    tuner = tuner_of(later, earlier.policy, [earlier.rundir])
    assert tuner is not None
    known = tuner._proposer.study.trials
    assert {t.user_attrs["origin"] for t in known} == {earlier.rundir.read_info().run_uid}
    measured = [trial for trial in earlier.journal if trial["effect"] is not None]
    assert [t.params["lr_scale"] for t in known] == pytest.approx([trial["relative"] for trial in measured])
    with pytest.raises(FileError, match="--learn-from"):
        tuner_of(later, earlier.policy, [RunDir(tmp_path / "nowhere")])


def test_beside_the_run_what_is_proved_better_is_adopted_without_a_new_branch(tmp_path: Path) -> None:
    house = House(tmp_path / "run", higher_is_better, POLICY.replace("  space:", "  design: spare\n  space:"))
    house.ask()
    assert house.go() == "end"
    assert house.loop.tunables["lr_scale"] == pytest.approx(1.5)
    assert house.loop.state.branch == 0
    [up] = [trial for trial in house.journal if trial["outcome"] == "adopt"]
    assert (up["design"], up["low"] > 0.02) == ("spare", True)
    [verdict] = [d for d in house.decisions if d["kind"] == "verdict"]
    assert (verdict["purpose"], verdict["helped"]) == ("adopt", True)
    assert replay(Journal(house.rundir.journal, read_only=True)).differences == ()


def test_a_switchback_has_one_arm_and_leaves_the_values_as_they_were_where_nothing_is_proved(tmp_path: Path) -> None:
    policy = POLICY.replace("  space:", "  design: switchback\n  washout: 1\n  space:")
    house = House(tmp_path / "run", no_difference, policy, steps=60)
    house.ask()
    assert house.go() == "end"
    assert (house.loop.tunables["lr_scale"], house.loop.state.branch) == (1.0, 0)
    [trial] = house.journal
    assert (trial["design"], trial["outcome"]) == ("switchback", "inconclusive")
    assert trial["high"] - trial["low"] > 0.3  # no paired prompts, and the run's own progress taken out
    steps = list(read_lines(house.rundir.steps))
    assert {line["tunables"]["lr_scale"] for line in steps} == {1.0, 1.5}
    assert replay(Journal(house.rundir.journal, read_only=True)).differences == ()


def test_what_was_adopted_is_a_schedule_that_a_recipe_takes_and_a_run_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    house = House(tmp_path / "run", higher_is_better, steps=30)
    house.ask()
    house.go()
    schedule(house.rundir.root)
    written = yaml.safe_load(capsys.readouterr().out)
    [up] = [trial for trial in house.journal if trial["outcome"] == "adopt"]
    assert written == {"schedule": [{"step": up["from_step"] + 1, "set": {"lr_scale": up["value"]}}]}
    script = Script()
    recipe = rig.recipe(steps=8, **written)
    rig.assemble(tmp_path / "later", recipe, script).run()
    scales = {report.step: report.tunables["lr_scale"] for report in script.steps}
    assert all((scale == up["value"]) == (step > up["from_step"]) for step, scale in scales.items())
    with pytest.raises(ValueError, match="outside the guard rails"):
        rig.recipe(schedule=[{"step": 3, "set": {"lr_scale": 99.0}}])


def test_every_decision_about_a_probe_is_made_again_from_the_journal(tmp_path: Path) -> None:
    house = House(tmp_path / "run", higher_is_better, steps=30)
    house.ask()
    house.go()
    again = replay(Journal(house.rundir.journal, read_only=True))
    assert again.looks > 30
    assert again.differences == ()


def test_without_an_effect_nothing_is_adopted_and_the_run_goes_on_as_it_was(tmp_path: Path) -> None:
    house = House(tmp_path / "run", no_difference)
    house.ask()
    assert house.go() == "end"
    assert (house.loop.tunables["lr_scale"], house.loop.state.branch) == (1.0, 0)
    assert {trial["outcome"] for trial in house.journal} <= {"inconclusive", "reject"}
    rulings = [d["change"]["probe"] for d in house.decisions if d["kind"] == "act" and d["purpose"] == "probe"]
    stops = [arm for ruling in rulings for arm in ruling.get("stop", ())]
    assert stops, "an arm that is hopeless is stopped"
    assert len(stops) == len(set(stops)), "and that is asked for once"
    assert all(t.state in (TrialState.COMPLETE, TrialState.FAIL) for t in study_of(house).study.trials)


def test_nobody_asks_and_nothing_is_wrong_so_nothing_is_probed(tmp_path: Path) -> None:
    house = House(tmp_path / "run", no_difference, steps=20)
    house.go()
    assert not house.rundir.probes.exists()
    assert not any(d["rule"] == "tuning" for d in house.decisions)


def test_a_controller_killed_during_a_probe_carries_on_with_it(tmp_path: Path) -> None:
    house = House(tmp_path / "run", higher_is_better)
    house.ask()
    killed = False
    tick = house.boundary

    def boundary(state: BoundaryState) -> Directive | None:
        nonlocal killed
        if state.probe and not killed and len(list(read_lines(house.rundir.probes / f"{state.probe}.jsonl"))) > 16:
            killed = True
            study_of(house).study.ask()  # and it had just asked for another arm
            house.controller._silence()
            house.controller._journal.close()
            house.controller = house.begin_controller()
        return tick(state)

    house.boundary = boundary  # type: ignore[method-assign]
    assert house.go() == "end"
    assert killed
    assert house.loop.tunables["lr_scale"] == pytest.approx(1.5)
    numbers = [trial["number"] for trial in house.journal]
    assert len(numbers) == len(set(numbers)) == 2
    orphan = study_of(house).study.trials[-1]
    assert orphan.state is TrialState.FAIL
    assert "ended before it began" in orphan.user_attrs["reason"]


def test_an_adoption_that_does_not_hold_is_taken_back(tmp_path: Path) -> None:
    def fools(loop: Loop) -> float:
        return 0.0 if loop.state.branch == 1 else higher_is_better(loop)

    house = House(tmp_path / "run", fools)
    house.ask()
    house.go()
    assert house.loop.state.branch == 1
    [verdict] = [d for d in house.decisions if d["kind"] == "verdict"][:1]
    assert verdict["helped"] is False
    assert house.loop.tunables["lr_scale"] == 1.0
    assert any(d["purpose"] == "revert" and d["kind"] == "act" for d in house.decisions)


def test_below_act_only_a_person_begins_a_probe(tmp_path: Path) -> None:
    policy = POLICY.replace("probe: act", "probe: advise")
    alarmed = policy.replace("  space:", "  on_alarm: {low: [lr_scale]}\n  cooldown_steps: 0\n  space:").replace(
        "  broken:", "  low: {kind: level, signal: pass_rate, below: 0.9, consecutive: 1}\n  broken:"
    )
    house = House(tmp_path / "run", no_difference, alarmed, steps=24)
    house.go()
    assert not house.rundir.probes.exists()
    wished = [d for d in house.decisions if d["rule"] == "tuning"]
    assert wished
    assert all(d["kind"] == "hold" for d in wished)
    assert "nobody but a person" in wished[0]["reason"]


def test_after_an_alarm_only_downwards_is_tried(tmp_path: Path) -> None:
    alarmed = POLICY.replace("  space:", "  on_alarm: {low: [lr_scale]}\n  cooldown_steps: 0\n  space:").replace(
        "  broken:", "  low: {kind: level, signal: pass_rate, below: 0.9, consecutive: 1}\n  broken:"
    )
    house = House(tmp_path / "run", no_difference, alarmed, steps=24)
    house.go()
    [record] = list(house.rundir.probes.glob("*.jsonl"))[:1]
    begin = json.loads(record.read_text().splitlines()[0])
    assert [sets["lr_scale"] for name, sets in begin["arms"].items() if name != "control"] == [pytest.approx(1 / 1.5)]
