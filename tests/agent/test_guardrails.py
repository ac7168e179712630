from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from controlplane.agent.boundary import BoundaryState, Directive
from controlplane.agent.guardrails import Bounds, GuardRails, Refusal, Situation, Verdict, Wait, admit
from controlplane.agent.memory import Memory
from controlplane.contract.documents import Ack, AckState, Action, Desired, Lease, Setting, Target
from controlplane.contract.tunables import TUNABLES
from tests.agent.house import FRESH, GOOD, INFO, RAILS, VALUES

TO_GOOD: dict[str, Any] = {"action": Action.rollback, "target": Target(step=3, digest="good-3")}


def ask(memory: Memory | None = None, rails: GuardRails = RAILS, step: int = 10, **changes: Any) -> Verdict:
    document = Desired.model_validate(
        {
            "run_uid": INFO.run_uid,
            "incarnation": "inc",
            "epoch": 1,
            "generation": 1,
            "base_generation": 0,
            "decision_id": "d1",
            "issued_at": 0.0,
            "expires_at_step": 100,
            "reason": "because",
            **changes,
        }
    )
    boundary = BoundaryState(step, 0, 1.0, VALUES, (GOOD, FRESH))
    actions = (Action.rollback, Action.stop, Action.pause, Action.probe)
    return admit(document, Situation(INFO.run_uid, "inc", actions, boundary, memory or Memory()), rails)


def lr(scale: float) -> dict[str, Setting]:
    return {"lr_scale": Setting(scale=scale)}


def arms(*sets: dict[str, object], steps: int = 5) -> dict[str, object]:
    probe = {"probe_id": "p1", "arms": {f"arm{n}": each for n, each in enumerate(sets)}, "steps": steps}
    return {"action": "probe", "probe": probe}


def test_arms_of_a_probe_stay_inside_the_rails() -> None:
    verdict = ask(**arms({"lr_scale": {"value": 9.0}}, {"lr_scale": {"scale": 0.01}}))
    assert isinstance(verdict, Directive)
    assert verdict.values == {}
    now = VALUES["lr_scale"]
    assert verdict.arms == {"arm0": {"lr_scale": min(2 * now, 4.0)}, "arm1": {"lr_scale": max(now / 2, 0.1)}}


REFUSED = [
    ("another run", {}, {"run_uid": "run-2"}, "written for run run-2"),
    ("another incarnation", {}, {"incarnation": "old"}, "written for incarnation old"),
    ("a fenced epoch", {"epoch": 2}, {}, "epoch 1 is fenced off"),
    ("an old generation", {"epoch": 1, "newest_generation": 3}, {}, "generation 1 is not newer than 3"),
    ("a stale base", {"applied_generation": 2}, {"generation": 5, "base_generation": 1}, "based on generation 1, but 2 is in force"),
    ("too late", {}, {"expires_at_step": 9}, "expired at step 9; this is step 10"),
    ("an unsupported action", {}, {"action": "checkpoint"}, "action checkpoint is not supported"),
    ("an arm with an unsupported tunable", {}, arms({"temperature": {"value": 1}}), "tunable temperature is not supported"),
    ("an unsupported tunable", {}, {"set": {"temperature": Setting(value=1)}}, "tunable temperature is not supported"),
    ("a lease on an unsupported tunable", {}, {"lease": Lease(until_step=20, revert_to={"temperature": 1})}, "tunable temperature"),
    ("a lease that is over", {}, {"set": lr(0.5), "lease": Lease(until_step=10, revert_to=VALUES)}, "the lease ends at step 10"),
    ("a checkpoint that is not there", {}, {"action": "rollback", "target": Target(step=4, digest="x")}, "there is no checkpoint of step 4"),
    ("a rewritten checkpoint", {}, {"action": "rollback", "target": Target(step=3, digest="x")}, "has digest good-3, not x"),
    ("a checkpoint not proved good", {}, {"action": "rollback", "target": Target(step=6, digest="fresh-6")}, "is fresh"),
    ("a rollback too many", {"rollbacks": 2}, TO_GOOD, "all 2 rollbacks of this run are used up"),
    ("anything but stop after a failed restore", {"poisoned": "it broke"}, {"set": lr(0.5)}, "only stop is accepted"),
    ("stop with a change after a failed restore", {"poisoned": "it broke"}, {"action": "stop", "set": lr(0.5)}, "only stop"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("memory", "document", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refuses(memory: dict[str, object], document: dict[str, object], reason: str) -> None:
    verdict = ask(Memory(**memory), **document)  # type: ignore[arg-type]
    assert isinstance(verdict, Refusal)
    assert reason in verdict.reason
    assert verdict.state is (AckState.expired if "expired" in reason else AckState.rejected)
    assert verdict.fenced is any(word in reason for word in ("written for", "fenced"))


def test_an_answered_decision_is_refused() -> None:
    ack = Ack(decision_id="d1", generation=1, state=AckState.applied, at_step=1)
    assert isinstance(ask(Memory(answers={"d1": ack})), Refusal)


def test_poisoned_process_still_stops() -> None:
    assert isinstance(ask(Memory(poisoned="it broke"), action="stop"), Directive)


def test_a_later_step_is_waited_for() -> None:
    assert isinstance(ask(apply_from_step=11), Wait)
    assert isinstance(ask(apply_from_step=10), Directive)


def test_the_last_step_before_expiry_is_in_time() -> None:
    assert isinstance(ask(expires_at_step=10), Directive)


def test_a_higher_epoch_goes_on_from_what_is_in_force() -> None:
    memory = Memory(epoch=1, newest_generation=9, applied_generation=2)
    assert isinstance(ask(memory, epoch=2, generation=3, base_generation=2), Directive)
    assert isinstance(ask(memory, epoch=1, generation=3, base_generation=2), Refusal)


def test_cooldown_holds_changes_but_no_rollback_action_or_renewal() -> None:
    memory, rails = Memory(last_change=5), RAILS.model_copy(update={"cooldown_steps": 10})
    refused = ask(memory, rails, set=lr(0.5))
    assert isinstance(refused, Refusal)
    assert refused.reason == "tunables changed at step 5; the cooldown lasts until step 15"
    assert isinstance(ask(memory, rails, step=15, set=lr(0.5)), Directive)
    assert isinstance(ask(memory, rails, set=lr(0.5), **TO_GOOD), Directive)
    assert isinstance(ask(memory, rails, action="pause"), Directive)
    assert isinstance(ask(memory, rails, set=lr(1.0), lease=Lease(until_step=50, revert_to=VALUES)), Directive)


def test_values_are_clamped_to_relative_change_and_bounds_and_rounded() -> None:
    def value(name: str, **setting: float) -> float:
        verdict = ask(set={name: Setting(**setting)})
        assert isinstance(verdict, Directive)
        return verdict.values[name]

    assert value("lr_scale", scale=0.01) == 0.5
    assert value("lr_scale", value=3.0) == 2.0
    assert value("lr_scale", value=0.8) == 0.8
    assert value("max_staleness", value=5.4) == 5.0
    assert value("max_staleness", value=100) == 16.0


def test_whole_tunables_may_always_move_by_one() -> None:
    rails = GuardRails(max_relative_change=1.1)
    assert rails.step_to("max_staleness", 0, 1) == 0
    assert rails.step_to("max_staleness", 5, 0) == 1
    assert rails.step_to("prompts_per_step", 10, 4) == 5


@given(
    name=st.sampled_from(sorted(TUNABLES)),
    wanted=st.floats(-1e9, 1e9),
    share=st.floats(0, 1),
    factor=st.floats(1.01, 10),
)
def test_no_request_leaves_the_rails(name: str, wanted: float, share: float, factor: float) -> None:
    spec, rails = TUNABLES[name], GuardRails(max_relative_change=factor)
    current = rails.inside(name, spec.lowest + share * (spec.highest - spec.lowest))
    value = rails.step_to(name, wanted, current)
    bounds = rails.of(name)
    assert bounds.min <= value <= bounds.max
    assert not spec.whole or value.is_integer()
    if current > 0:
        slack = 1.0 if spec.whole else 1e-9 * current
        assert current / factor - slack <= value <= current * factor + slack


@pytest.mark.parametrize(
    "rails",
    [
        {"bounds": {"nonsense": {"min": 0, "max": 1}}},
        {"bounds": {"lr_scale": {"min": 1, "max": 0.5}}},
        {"bounds": {"lr_scale": {"min": 0.1, "max": 100}}},
        {"bounds": {"max_staleness": {"min": 0.5, "max": 3}}},
        {"max_relative_change": 1.0},
        {"cooldown_steps": -1},
        {"more": 1},
    ],
)
def test_impossible_rails_are_refused(rails: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GuardRails.model_validate(rails)


def test_a_tunable_without_bounds_has_those_of_the_contract() -> None:
    spec = TUNABLES["temperature"]
    assert GuardRails().of("temperature") == Bounds(min=spec.lowest, max=spec.highest)
