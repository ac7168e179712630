"""Changes of tunables: clamps and pace, budgets, approval, leases, verdicts, taking back, the way back, orders."""

from itertools import pairwise
from math import isnan
from typing import Any

import pytest

from controlplane.contract.approvals import Approval, Order
from controlplane.contract.documents import Ack, AckState, Action, Health, TunableState
from controlplane.decide import Decision, Evaluator, ForecastView, Kind, Purpose, unsupported
from controlplane.decide.expectation import gain_per_step, of_evaluation
from controlplane.detect import Outcome
from controlplane.policy import Policy
from tests.looks import Run

SOFTEN: dict[str, Any] = {
    "name": "soften",
    "when": {"all": ["grad_stays"]},
    "then": {"scale": {"lr_scale": 0.5}},
    "limits": {"max_per_run": 3, "cooldown_steps": 20},
}
GROW: dict[str, Any] = {
    "name": "grow",
    "priority": "efficiency",
    "when": {"all": ["idle"]},
    "then": {"scale": {"prompts_per_step": 1.2}},
    "limits": {"max_per_run": 9, "cooldown_steps": 10},
}


def policy(*rules: dict[str, Any], **more: Any) -> Policy:
    """A policy that softens on gradients, grows on idleness, and whatever a test adds."""
    body: dict[str, Any] = {
        "policy": "v1",
        "name": "test",
        "autonomy": {"rollback": "act", "lr": "act", "batch": "act"},
        "forecast": {"axis": "step"},
        "detectors": {
            "grad_stays": {"kind": "robust_z", "signal": "grad_norm", "consecutive": 3},
            "pass_drop": {"kind": "cusum", "signal": "pass_rate", "side": "low"},
            "idle": {"kind": "level", "signal": "utilization", "below": 0.7},
            "nonfinite": {"kind": "nonfinite", "steps": 3},
        },
        "rules": list(rules) or [SOFTEN],
        "clamps": {"lr_scale": {"min": 0.1, "max": 1.0}, "prompts_per_step": {"min": 32, "max": 128}},
        "verdict": {"after_steps": 10, "grace_steps": 0},
    }
    return Policy.model_validate(body | more)


class Story:
    """A run under an evaluator; actions are carried out at once unless told otherwise."""

    def __init__(self, policy: Policy, **run: Any) -> None:
        prompts = {"prompts_per_step": TunableState(value=64, min=1, max=1000)}
        self.run, self.evaluator = Run(tunables=prompts, **run), Evaluator(policy)
        self.decisions: list[Decision] = []

    def steps(self, count: int, *, obey: bool = True, **values: Any) -> list[Decision]:
        first = len(self.decisions)
        for _ in range(count):
            self.run.advance(**values)
            if self.run.step % 10 == 0:
                self.run.checkpoint()
            decision = self.evaluator.look(self.run.look())[1]
            self.decisions.append(decision)
            if decision.kind is Kind.act and obey:
                self.run.carry_out(decision)
        return self.decisions[first:]

    def until(self, kind: Kind, most: int = 60, **values: Any) -> Decision:
        for _ in range(most):
            if (decision := self.steps(1, **values)[0]).kind is kind:
                return decision
        raise AssertionError(f"no {kind} in {most} steps: {[d.reason for d in self.decisions[-most:]]}")

    def answer(self, decision: Decision, answer: str, by: str = "ada") -> None:
        given = Approval(decision_id=decision.decision_id or "", answer=answer, by=by, at=0.0)  # type: ignore[arg-type]
        self.run.approvals = (*self.run.approvals, given)


def of(decisions: list[Decision], kind: Kind, purpose: Purpose = Purpose.answer) -> list[Decision]:
    return [d for d in decisions if d.kind is kind and d.purpose is purpose]


# Softening, its verdict, and taking it back


def test_one_key_that_stays_softens_and_the_decision_says_what_was_before() -> None:
    story = Story(policy())
    story.steps(60)
    decision = story.until(Kind.act, grad_norm=9)
    assert (decision.rule, decision.before, story.run.lr_scale) == ("soften", {"lr_scale": 1.0}, 0.5)


def test_a_change_after_which_the_alarm_is_over_helped_and_stays() -> None:
    story = Story(policy())
    story.steps(60)
    story.until(Kind.act, grad_norm=9)
    later = story.steps(30)
    assert [d.helped for d in later if d.kind is Kind.verdict] == [True]
    assert story.run.lr_scale == 0.5


def test_a_change_that_did_not_help_is_taken_back_once_and_the_rule_then_calls_a_person() -> None:
    story = Story(policy())
    story.steps(60)
    story.until(Kind.act, grad_norm=9)
    later = story.steps(60, grad_norm=9, pass_rate=0.4)
    assert [d.helped for d in later if d.kind is Kind.verdict] == [False]
    (revert,) = of(later, Kind.act, Purpose.revert)
    assert revert.change is not None
    assert revert.change.set["lr_scale"].value == 1.0
    assert story.run.lr_scale == 1.0
    assert not of(later, Kind.act)


def test_the_verdict_sees_an_alarm_that_stands_as_before() -> None:
    story = Story(policy(GROW))
    story.steps(5, busy=0.9)
    first = story.until(Kind.act, busy=0.5)
    assert first.rule == "grow"
    verdict = story.until(Kind.verdict, busy=0.5)
    assert verdict.helped is False
    assert "idle stands as before" in verdict.reason
    assert story.until(Kind.act, busy=0.5).purpose is Purpose.revert
    assert story.until(Kind.page, busy=0.5).reason.endswith("did not help; a person has to look")


def test_an_alarm_that_stands_but_weaker_counts_as_help() -> None:
    story = Story(policy(GROW))
    story.steps(5, busy=0.9)
    story.until(Kind.act, busy=0.5)
    assert story.until(Kind.verdict, busy=0.6).helped is True
    assert story.run.value("prompts_per_step") == 77  # whole prompts
    assert story.until(Kind.act, busy=0.6).purpose is Purpose.answer


def test_a_value_that_somebody_else_changed_since_is_not_taken_back() -> None:
    story = Story(policy())
    story.steps(60)
    story.until(Kind.act, grad_norm=9)
    story.run.lr_scale = 0.7
    later = story.steps(60, grad_norm=9, pass_rate=0.4)
    assert not of(later, Kind.act, Purpose.revert)
    assert story.run.lr_scale in (0.7, 0.35)


def test_a_policy_may_keep_what_did_not_help() -> None:
    story = Story(policy(verdict={"after_steps": 10, "grace_steps": 0, "revert": False}))
    story.steps(60)
    story.until(Kind.act, grad_norm=9)
    assert not of(story.steps(40, grad_norm=9, pass_rate=0.4), Kind.act, Purpose.revert)


# The way back


def test_after_quiet_steps_the_value_goes_back_step_by_step_and_no_further() -> None:
    story = Story(policy({**SOFTEN, "recover": {"after_quiet_steps": 15, "step": 1.5}}))
    story.steps(60)
    story.until(Kind.act, grad_norm=9)
    later = story.steps(150)
    steps = of(later, Kind.act, Purpose.recover)
    assert [d.change.set["lr_scale"].value for d in steps if d.change] == [0.75, 1.0]
    assert story.evaluator.standing.changed == {}
    acts = [i for i, d in enumerate(later) if d.kind is Kind.act]
    assert acts[0] >= 14
    assert acts[1] - acts[0] >= 15


def test_there_is_no_way_back_while_the_alarm_comes_and_goes() -> None:
    story = Story(policy({**SOFTEN, "recover": {"after_quiet_steps": 30, "step": 1.5}}))
    story.steps(60)
    story.until(Kind.act, grad_norm=9)
    for _ in range(6):
        story.steps(14)
        story.steps(3, grad_norm=30)
    assert not of(story.decisions, Kind.act, Purpose.recover)


def test_a_step_back_that_did_harm_is_taken_back_and_not_tried_again() -> None:
    story = Story(policy({**SOFTEN, "recover": {"after_quiet_steps": 15, "step": 2.0}}))
    story.steps(60)
    story.until(Kind.act, grad_norm=9)
    story.steps(14)
    while story.run.lr_scale == 0.5:
        story.steps(1)
    assert story.until(Kind.verdict, pass_rate=0.5).helped is False
    story.steps(100)
    assert story.run.lr_scale == 0.5
    assert len(of(story.decisions, Kind.act, Purpose.recover)) == 1
    assert len(of(story.decisions, Kind.act, Purpose.revert)) == 1


# Clamps and pace


def test_one_step_is_no_larger_than_the_pace_allows() -> None:
    clamps = {"lr_scale": {"min": 0.1, "max": 1.0, "decrease": {"max_step": 0.8}}}
    story = Story(policy(clamps=clamps))
    story.steps(60)
    story.until(Kind.act, grad_norm=9)
    assert story.run.lr_scale == 0.8


def test_a_tunable_that_moved_lately_waits() -> None:
    clamps = {"prompts_per_step": {"min": 32, "max": 128, "increase": {"max_step": 1.2, "min_gap_steps": 40}}}
    story = Story(policy(GROW, clamps=clamps))
    story.steps(5, busy=0.9)
    times, busy = [], 0.30
    for _ in range(120):
        busy += 0.002  # each verdict sees it weaker
        if story.steps(1, busy=busy)[0].kind is Kind.act:
            times.append(story.run.step)
    assert len(times) == 3
    assert min(b - a for a, b in pairwise(times)) >= 40


def test_a_clamp_on_the_learning_rate_itself_bounds_its_scale() -> None:
    clamps = {"lr_scale": {"min": 0.01, "max": 10}, "learning_rate": {"min": 1e-6, "max": 1e-5}}
    story = Story(policy(clamps=clamps))
    story.run.gauges["rl_trainer_learning_rate"] = 1.25e-6
    story.steps(60)
    story.until(Kind.act, grad_norm=9)
    assert story.run.lr_scale == pytest.approx(0.8)


def test_a_value_that_a_person_set_outside_the_clamps_is_not_pulled_in_by_an_unrelated_rule() -> None:
    story = Story(policy(), lr_scale=0.05)
    story.steps(60)
    decision = story.until(Kind.page, grad_norm=9)
    assert "cannot be changed further inside its clamps" in decision.reason
    assert story.run.lr_scale == 0.05


# Budgets, capability, dry runs


def test_the_budget_of_the_run_holds_over_all_rules() -> None:
    story = Story(policy({**GROW, "limits": {"cooldown_steps": 0, "max_per_run": 9}}, budget={"max_actions": 1}))
    story.steps(5, busy=0.9)
    story.until(Kind.act, busy=0.3)
    assert "all 1 actions of the budget are used up" in story.until(Kind.page, busy=0.5).reason


def test_what_a_trainer_cannot_do_becomes_advice_told_once() -> None:
    fixed = {"prompts_per_step": TunableState(value=64, min=1, max=1000, capability="restart")}
    story = Story(policy(GROW))
    story.run.tunables = fixed
    decisions = story.steps(30, busy=0.3)
    assert [d.kind for d in decisions].count(Kind.advise) == 1
    assert "cannot change prompts_per_step while it runs" in next(d.reason for d in decisions if d.kind is Kind.advise)
    assert unsupported(policy(GROW, SOFTEN), story.run.observed()) == (
        "grow: this trainer cannot change prompts_per_step while it runs",
    )


def test_a_trainer_that_cannot_roll_back_gets_advice() -> None:
    rule = {"name": "gone", "when": {"all": ["nonfinite"]}, "then": {"rollback": {}, "scale": {"lr_scale": 0.5}}}
    story = Story(policy(rule), actions=(Action.none, Action.checkpoint))
    story.steps(30)
    assert "cannot roll back" in story.until(Kind.advise, nonfinite=True).reason


def test_a_dry_run_only_writes_down() -> None:
    story = Story(policy({**SOFTEN, "dry_run": True}))
    story.steps(60)
    decisions = story.steps(20, grad_norm=9)
    assert [d.kind for d in decisions].count(Kind.observe) == 1
    assert not of(decisions, Kind.act)


# Leases


def test_a_temporary_change_is_a_lease_that_the_trainer_ends_by_itself() -> None:
    story = Story(policy({**SOFTEN, "then": {"scale": {"lr_scale": 0.5}, "for_steps": 30}}))
    story.steps(60)
    decision = story.until(Kind.act, grad_norm=9)
    assert decision.lease is not None
    assert decision.lease.until_step == (decision.step or 0) + 30
    assert decision.lease.revert_to == {"lr_scale": 1.0}
    story.steps(3)
    assert story.evaluator.standing.changed == {}


# Approval


def asking(on_timeout: str = "drop") -> Policy:
    return policy(approval={"required_for": ["lr"], "expires_steps": 20, "on_timeout": on_timeout})


def asked(story: Story) -> Decision:
    story.steps(60)
    return story.until(Kind.waiting, grad_norm=9)


def test_an_action_that_needs_approval_waits_for_it_and_is_then_taken_once() -> None:
    story = Story(asking())
    waiting = asked(story)
    held = story.steps(5, grad_norm=9)
    assert {d.kind for d in held} == {Kind.hold}
    assert "more steps for approval" in held[-1].reason
    assert story.run.lr_scale == 1.0
    story.answer(waiting, "approve")
    act = story.steps(1)[0]
    assert (act.kind, act.decision_id, act.approved_by) == (Kind.act, waiting.decision_id, "approved by ada")
    assert story.run.lr_scale == 0.5
    assert not of(story.steps(40), Kind.act)  # the answer is still in every look, and counts once


def test_a_denial_drops_it_and_it_is_not_asked_again_at_once() -> None:
    story = Story(asking())
    waiting = asked(story)
    story.answer(waiting, "approve", "ada")
    story.answer(waiting, "deny", "bob")
    dropped = story.steps(1, grad_norm=9)[0]
    assert (dropped.kind, dropped.decision_id) == (Kind.dropped, waiting.decision_id)
    assert "denied by bob" in dropped.reason
    assert Kind.waiting not in {d.kind for d in story.steps(15, grad_norm=9)}
    assert story.run.lr_scale == 1.0


@pytest.mark.parametrize(("on_timeout", "kind"), [("drop", Kind.dropped), ("page", Kind.page), ("act", Kind.act)])
def test_without_an_answer_the_policy_says_what_happens(on_timeout: str, kind: Kind) -> None:
    story = Story(asking(on_timeout))
    asked(story)
    decisions = story.steps(22, grad_norm=0.4)
    assert [d.kind for d in decisions if d.kind not in (Kind.hold, Kind.nothing, Kind.verdict)] == [kind]
    assert story.run.lr_scale == (0.5 if on_timeout == "act" else 1.0)


def test_an_answer_to_another_decision_changes_nothing() -> None:
    story = Story(asking())
    waiting = asked(story)
    story.answer(waiting.model_copy(update={"decision_id": "another"}), "approve")
    assert {d.kind for d in story.steps(10, grad_norm=9)} == {Kind.hold}


def test_a_question_of_a_rule_that_the_policy_no_longer_has_is_dropped() -> None:
    """A restart with another policy finds the question in the journal."""
    story = Story(asking())
    waiting = asked(story)
    other = Evaluator(policy(GROW))
    other.standing = story.evaluator.standing
    story.evaluator = other
    story.answer(waiting, "approve")
    story.steps(1)
    dropped = story.steps(1)[0] if story.decisions[-1].kind is not Kind.dropped else story.decisions[-1]
    assert dropped.kind is Kind.dropped
    assert "no longer has the rule soften" in dropped.reason
    assert other.standing.waiting is None
    assert story.run.lr_scale == 1.0


def test_an_approval_is_not_used_while_the_data_are_stale() -> None:
    story = Story(asking())
    waiting = asked(story)
    story.answer(waiting, "approve")
    look = story.run.advance(grad_norm=9)
    late = look.model_copy(update={"at": look.at + 1000})
    assert story.evaluator.look(late)[1].kind in (Kind.page, Kind.hold)
    assert story.evaluator.standing.waiting is not None


def test_a_rollback_does_not_wait_behind_a_question_about_the_learning_rate() -> None:
    gone = {"name": "gone", "when": {"all": ["nonfinite"]}, "then": {"rollback": {}, "scale": {"lr_scale": 0.5}}}
    story = Story(policy(SOFTEN, gone, approval={"required_for": ["lr"], "expires_steps": 50}))
    asked(story)
    act = story.until(Kind.act, nonfinite=True, grad_norm=9)
    assert act.rule == "gone"
    assert story.evaluator.standing.waiting is None


def test_an_approved_rollback_to_a_checkpoint_that_has_gone_bad_is_not_done() -> None:
    gone = {"name": "gone", "when": {"all": ["nonfinite"]}, "then": {"rollback": {}, "scale": {"lr_scale": 0.5}}}
    story = Story(policy(gone, approval={"required_for": ["rollback"]}))
    story.steps(40)
    waiting = story.until(Kind.waiting, nonfinite=True)
    story.run.checkpoints = [c.model_copy(update={"health": Health.bad}) for c in story.run.checkpoints]
    story.answer(waiting, "approve")
    assert story.steps(1)[0].kind is Kind.page
    assert story.run.branch == 0


# Rules that hold together


def test_the_safest_rule_decides_and_the_others_are_named() -> None:
    gone = {"name": "gone", "when": {"all": ["nonfinite"]}, "then": {"rollback": {}, "scale": {"lr_scale": 0.5}}}
    tell = {"name": "tell", "when": {"all": ["nonfinite"]}, "then": {"page": True}}
    story = Story(policy(tell, GROW, SOFTEN, gone))
    story.steps(60, busy=0.9)
    decision = story.until(Kind.act, busy=0.9, nonfinite=True)
    assert decision.rule == "gone"
    assert [text.partition(":")[0] for text in decision.also] == ["tell"]


def test_a_person_is_called_although_a_rule_before_it_only_waits() -> None:
    gone = {"name": "gone", "when": {"all": ["nonfinite"]}, "then": {"rollback": {}, "scale": {"lr_scale": 0.5}}}
    tell = {"name": "tell", "when": {"all": ["nonfinite"]}, "then": {"page": True}}
    story = Story(policy(gone, tell, observe_until_step=1000))
    story.steps(30)
    decision = story.until(Kind.page, nonfinite=True)
    assert decision.rule == "tell"
    assert decision.also[0].startswith("gone: gone holds")


def test_nothing_is_raised_while_a_safer_rule_holds() -> None:
    dry = {**SOFTEN, "dry_run": True}
    story = Story(policy(GROW, dry))
    story.steps(60, busy=0.9)
    story.steps(2, busy=0.9, grad_norm=9)
    decisions = story.steps(8, busy=0.3, grad_norm=9)
    assert not of(decisions, Kind.act)
    assert any("nothing is raised while soften holds" in text for d in decisions for text in (d.reason, *d.also))


def test_of_two_changes_alike_the_more_careful_one_is_taken() -> None:
    careful = {**SOFTEN, "name": "careful", "then": {"scale": {"lr_scale": 0.5}}}
    bold = {**SOFTEN, "name": "bold", "then": {"scale": {"lr_scale": 0.9}}}
    story = Story(policy(bold, careful))
    story.steps(60)
    assert story.until(Kind.act, grad_norm=9).rule == "careful"


def test_a_first_key_without_a_second_is_a_near_miss_with_its_reason() -> None:
    two = {
        "name": "two",
        "when": {"all": ["pass_drop"], "any": ["grad_stays"]},
        "then": {"rollback": {}, "scale": {"lr_scale": 0.5}},
    }
    story = Story(policy(two))
    story.steps(60)
    decision = story.until(Kind.hold, pass_rate=0.2)
    assert "two lacks its second key (pass_drop" in decision.reason


# Orders of people


def order(action: str, order_id: str = "o1") -> Order:
    return Order(order_id=order_id, action=action, by="ada", at=0.0, reason="cluster goes down")  # type: ignore[arg-type]


def test_an_order_is_carried_out_once_even_without_metrics() -> None:
    story = Story(policy())
    story.steps(10)
    story.run.orders = (order("pause"),)
    blind = story.run.look().model_copy(update={"sampled_at": None, "metrics": {}, "errors": ("gone",)})
    decision = story.evaluator.look(blind)[1]
    assert (decision.kind, decision.decision_id, decision.purpose) == (Kind.act, "o1", Purpose.order)
    assert decision.change is not None
    assert decision.change.action is Action.pause
    story.run.carry_out(decision)
    assert not [d for d in story.steps(10) if d.purpose is Purpose.order]
    assert story.evaluator.standing.acted == {}


def test_an_order_that_the_trainer_cannot_carry_out_is_refused_once() -> None:
    story = Story(policy(), actions=(Action.none,))
    story.run.orders = (order("stop"),)
    decisions = story.steps(5)
    assert [d.kind for d in decisions].count(Kind.dropped) == 1


# Refusals


def test_a_refused_action_gives_its_budget_back() -> None:
    story = Story(policy())
    story.steps(60)
    decision = next(d for d in story.steps(10, grad_norm=9, obey=False) if d.kind is Kind.act)
    story.run.last_ack = Ack(
        decision_id=decision.decision_id or "",
        generation=1,
        state=AckState.rejected,
        reason="no",
        at_step=story.run.step,
    )
    story.steps(2)
    assert story.evaluator.standing.actions == 0
    assert story.evaluator.standing.changed == {}


def test_a_trainer_that_refuses_is_not_asked_again_at_every_look() -> None:
    story = Story(policy())
    story.steps(60)
    acts = 0
    for _ in range(15):
        decision = story.steps(1, grad_norm=9, obey=False)[0]
        if decision.kind is Kind.act:
            acts += 1
            story.run.last_ack = Ack(
                decision_id=decision.decision_id or "",
                generation=decision.generation or 0,
                state=AckState.rejected,
                reason="cooldown",
                at_step=story.run.step,
            )
    assert acts == 1


def test_rollbacks_of_all_rules_together_stay_inside_the_budget() -> None:
    gone = {
        "name": "gone",
        "when": {"all": ["nonfinite"]},
        "then": {"rollback": {}, "scale": {"lr_scale": 0.9}},
        "limits": {"max_per_run": 9, "cooldown_steps": 0},
    }
    story = Story(policy(gone, budget={"max_rollbacks": 1}))
    story.steps(40)
    story.until(Kind.act, nonfinite=True)
    story.steps(40)
    assert "all 1 rollbacks of the budget are used up" in story.until(Kind.page, nonfinite=True).reason


def test_one_rise_is_no_larger_than_the_pace_allows() -> None:
    clamps = {"prompts_per_step": {"min": 32, "max": 128, "increase": {"max_step": 1.1}}}
    story = Story(policy(GROW, clamps=clamps))
    story.steps(5, busy=0.9)
    story.until(Kind.act, busy=0.3)
    assert story.run.value("prompts_per_step") == 70


def test_a_mechanism_that_has_stood_for_long_is_no_second_key() -> None:
    two = {
        "name": "two",
        "when": {"all": ["pass_drop"], "any": ["idle"], "fresh_steps": 30},
        "then": {"rollback": {}, "scale": {"lr_scale": 0.5}},
    }
    detectors = policy().model_dump(mode="json")["detectors"]
    detectors["idle"] = {"kind": "level", "signal": "zero_variance", "above": 0.6}
    for stood, kind in ((5, Kind.act), (60, Kind.hold)):
        story = Story(policy(two, detectors=detectors))
        story.steps(60, zero=0.1)
        story.steps(stood, zero=0.95)
        decisions = story.steps(20, zero=0.95, pass_rate=0.3, obey=False)
        assert (Kind.act in {d.kind for d in decisions}) == (kind is Kind.act)


def test_a_signal_that_vanishes_takes_its_alarm_with_it() -> None:
    """No data is never good or bad: an alarm whose signal is gone becomes an error, and no key."""
    story = Story(policy(SOFTEN))
    story.steps(60)
    story.steps(3, grad_norm=9, obey=False)
    findings = {}
    for _ in range(12):
        look = story.run.advance(grad_norm=9)
        bare = {key: value for key, value in look.metrics.items() if key != "rl_trainer_grad_norm"}
        findings = story.evaluator.look(look.model_copy(update={"metrics": bare}))[0].findings
    assert findings["grad_stays"].outcome is Outcome.error


def test_without_a_signal_that_must_have_data_nothing_is_done_and_a_person_is_told() -> None:
    signals = {"kv": {"query": "kv", "kind": "percent", "must_have_data": True}}
    story = Story(policy(signals=signals, freshness={"max_age_seconds": 5}))
    for _ in range(60):
        look = story.run.advance()
        story.evaluator.look(look.model_copy(update={"signals": {"kv": 50.0}}))
    decisions = [story.evaluator.look(story.run.advance(grad_norm=9))[1] for _ in range(12)]
    assert Kind.page in {d.kind for d in decisions}
    assert "kv has had no value" in next(d.reason for d in decisions if d.kind is Kind.page)
    assert decisions[-1].kind is Kind.hold


def test_the_forecast_says_what_a_step_should_gain_and_a_refused_one_says_nothing() -> None:
    band = ((100.0, 0.4, 0.5, 0.6), (200.0, 0.45, 0.55, 0.65))
    view = ForecastView(
        step=100, branch=0, compute=100.0, budget=200.0, points=9, quantiles={}, band=band, refused=False
    )
    assert gain_per_step(view, 2.0) == pytest.approx(0.001)
    assert gain_per_step(view.model_copy(update={"refused": True}), 2.0) == 0.0
    assert gain_per_step(None, 2.0) == 0.0
    middle, sd = of_evaluation(view, 150.0, 256)
    assert middle == pytest.approx(0.525)
    assert 0.07 < sd < 0.10
    assert isnan(of_evaluation(None, 150.0, 256)[0])
