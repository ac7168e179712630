"""What the controller does about a run, and above all what it does not do."""

import json

import pytest

from controlplane.contract.documents import Ack, AckState, Action, Health, Phase
from controlplane.decide import Decision, Evaluator, Kind
from controlplane.detect import Outcome
from controlplane.policy import Autonomy, Policy, load, parse
from tests.looks import Run

DEMO = load("demo")


def healthy(run: Run, evaluator: Evaluator, steps: int = 60) -> list[Decision]:
    """Steps of a run that is well, with a good checkpoint every ten."""
    decisions = []
    for _ in range(steps):
        run.advance()
        if run.step % 10 == 0:
            run.checkpoint()
        decisions.append(evaluator.look(run.look())[1])
    return decisions


def collapse(run: Run, evaluator: Evaluator, steps: int = 15) -> list[Decision]:
    """Steps of a run whose pass rate and gradient have gone; stops at the first action."""
    decisions = []
    for _ in range(steps):
        decisions.append(evaluator.look(run.advance(pass_rate=0.1, grad_norm=6, truncation=0.4, zero=0.9))[1])
        if decisions[-1].kind in (Kind.act, Kind.observe, Kind.advise, Kind.page):
            break
    return decisions


def carry_out(run: Run, decision: Decision) -> None:
    """What a trainer does with a rollback."""
    assert decision.change is not None
    assert decision.change.target is not None
    assert decision.decision_id is not None
    assert decision.generation is not None
    run.restore(decision.change.target.step)
    run.lr_scale = decision.change.set["lr_scale"].value or 0
    run.applied_generation = decision.generation
    run.last_ack = Ack(
        decision_id=decision.decision_id,
        generation=decision.generation,
        state=AckState.applied,
        at_step=run.step,
        readback={"lr_scale": run.lr_scale},
    )


def test_a_healthy_run_is_left_alone() -> None:
    assert {d.kind for d in healthy(Run(), Evaluator(DEMO), 250)} == {Kind.nothing}


def test_a_collapse_is_rolled_back_behind_its_onset_with_a_lower_learning_rate() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    healthy(run, evaluator, 64)
    decision = collapse(run, evaluator)[-1]
    assert decision.kind is Kind.act
    assert decision.change is not None
    assert decision.change.action is Action.rollback
    assert decision.change.target is not None
    assert decision.change.target.step == 50  # onset near 64, five steps before it at most 59
    assert decision.change.set["lr_scale"].value == 0.5
    assert decision.expires_at_step is not None
    assert decision.expires_at_step > run.step


def test_one_key_alone_never_rolls_back() -> None:
    for fault in ({"pass_rate": 0.1}, {"grad_norm": 6.0, "truncation": 0.4}):
        run, evaluator = Run(), Evaluator(DEMO)
        healthy(run, evaluator)
        kinds = {evaluator.look(run.advance(**fault))[1].kind for _ in range(30)}
        assert Kind.act not in kinds


def test_the_target_is_a_checkpoint_that_was_proved_good() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    healthy(run, evaluator)
    run.checkpoints = [
        c.model_copy(update={"health": Health.fresh if c.step > 20 else Health.good}) for c in run.checkpoints
    ]
    change = collapse(run, evaluator)[-1].change
    assert change is not None
    assert change.target is not None
    assert change.target.step == 20


def test_without_a_good_checkpoint_a_person_is_paged_once() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    healthy(run, evaluator)
    run.checkpoints = []
    decisions = [evaluator.look(run.advance(pass_rate=0.05, grad_norm=6, truncation=0.5))[1] for _ in range(20)]
    assert [d.kind for d in decisions].count(Kind.page) == 1
    assert Kind.act not in {d.kind for d in decisions}
    assert "proved good" in next(d.reason for d in decisions if d.kind is Kind.page)


@pytest.mark.parametrize(("ceiling", "kind"), [(Autonomy.observe, Kind.observe), (Autonomy.advise, Kind.advise)])
def test_autonomy_is_a_ceiling_and_the_finding_is_told_once(ceiling: Autonomy, kind: Kind) -> None:
    run, evaluator = Run(), Evaluator(DEMO.capped(ceiling))
    healthy(run, evaluator)
    decisions = [evaluator.look(run.advance(pass_rate=0.05, grad_norm=6, truncation=0.5))[1] for _ in range(20)]
    assert [d.kind for d in decisions].count(kind) == 1
    assert not {d.kind for d in decisions} & {Kind.act}
    assert all(d.decision_id is None for d in decisions)


def test_nothing_is_done_while_an_answer_is_awaited() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    healthy(run, evaluator)
    assert collapse(run, evaluator)[-1].kind is Kind.act
    decision = evaluator.look(run.advance(pass_rate=0.0, truncation=0.9))[1]
    assert decision.kind is Kind.hold
    assert "waiting for the trainer" in decision.reason


def test_between_confirmation_and_new_branch_the_old_metrics_are_not_judged() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    healthy(run, evaluator)
    decision = collapse(run, evaluator)[-1]
    before = run.look()
    carry_out(run, decision)
    late = before.model_copy(update={"observed": run.observed().model_copy(update={"branch": 0})})
    held = evaluator.look(late)[1]
    assert held.kind is Kind.hold
    assert "rollback is confirmed" in held.reason


def test_a_rollback_rewinds_to_its_target_even_when_the_new_branch_is_seen_later() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    for _ in range(60):
        run.advance()
        if run.step in (10, 20, 30, 40, 50, 56):
            run.evaluate(0.8)
        if run.step % 10 == 0:
            run.checkpoint()
        evaluator.look(run.look())
    decision = collapse(run, evaluator)[-1]
    assert decision.change is not None
    assert decision.change.target is not None
    assert decision.change.target.step == 50
    before = run.look()
    carry_out(run, decision)
    confirmed = before.model_copy(update={"observed": run.observed().model_copy(update={"branch": 0})})
    evaluator.look(confirmed)
    for _ in range(8):
        run.advance()  # the next look comes eight steps later, past the abandoned evaluation of step 56
    evaluator.look(run.look())
    for _ in range(2):
        run.advance()
    run.evaluate(0.8)
    evaluator.look(run.look())
    assert evaluator.forecast is not None
    assert (evaluator.forecast.step, evaluator.forecast.points) == (60, 6)


def test_after_a_rollback_the_run_is_judged_anew_and_gets_a_verdict() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    healthy(run, evaluator)
    carry_out(run, collapse(run, evaluator)[-1])
    later = healthy(run, evaluator, 60)
    verdicts = [d for d in later if d.kind is Kind.verdict]
    assert [v.helped for v in verdicts] == [True]
    assert {d.kind for d in later} == {Kind.nothing, Kind.verdict}  # what the abandoned branch showed is forgotten


def test_a_restore_gets_its_grace_and_alarms_before_it_do_not_count() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    healthy(run, evaluator)
    carry_out(run, collapse(run, evaluator)[-1])
    for _ in range(DEMO.verdict.grace_steps - 1):
        judgement, decision = evaluator.look(run.advance(pass_rate=0.1, truncation=0.9, grad_norm=9))
        readings = {f.outcome for name, f in judgement.findings.items() if name != "stalled"}
        assert readings == {Outcome.inconclusive}
        assert judgement.since_breach == {}
        assert decision.kind is Kind.nothing
    run.advance()
    first = evaluator.look(run.advance())[0].findings["pass_drop"]
    assert first.outcome is Outcome.ok
    assert first.statistic < 1  # the sum of the abandoned branch is gone


def test_the_trainers_own_limit_on_rollbacks_pages() -> None:
    run, evaluator = Run(rollbacks_left=0), Evaluator(DEMO)
    healthy(run, evaluator)
    decision = collapse(run, evaluator)[-1]
    assert decision.kind is Kind.page
    assert "guard rails allow no further rollback" in decision.reason


def test_a_policy_that_only_observes_at_first_does_so() -> None:
    run, evaluator = Run(), Evaluator(DEMO.model_copy(update={"observe_until_step": 100}))
    healthy(run, evaluator)
    decisions = collapse(run, evaluator, 12)
    assert Kind.act not in {d.kind for d in decisions}
    assert "only observes until step 100" in decisions[-1].reason


def test_a_rollback_that_did_not_help_is_said_so() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    healthy(run, evaluator)
    carry_out(run, collapse(run, evaluator)[-1])
    later = [evaluator.look(run.advance(pass_rate=0.3))[1] for _ in range(60)]
    assert [d.helped for d in later if d.kind is Kind.verdict] == [False]


def test_rollbacks_are_limited_then_a_person_is_paged() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    acts = 0
    for _ in range(3):
        healthy(run, evaluator, 60)
        last = collapse(run, evaluator, 20)[-1]
        if last.kind is Kind.act:
            acts += 1
            carry_out(run, last)
    assert acts == 2
    assert last.kind is Kind.page
    assert "already acted 2 times" in last.reason


def test_cooldown_counts_steps_over_branches() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    healthy(run, evaluator)
    carry_out(run, collapse(run, evaluator)[-1])
    healthy(run, evaluator, 12)
    decision = collapse(run, evaluator, 8)[-1]
    assert decision.kind is Kind.hold
    assert "cools down" in decision.reason


def test_a_refused_action_pages_and_does_not_use_up_the_budget() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    healthy(run, evaluator)
    act = collapse(run, evaluator)[-1]
    assert act.decision_id is not None
    run.last_ack = Ack(
        decision_id=act.decision_id, generation=1, state=AckState.rejected, reason="cooldown", at_step=run.step
    )
    decision = evaluator.look(run.advance(pass_rate=0.1, grad_norm=6, truncation=0.4))[1]
    assert decision.kind is Kind.page
    assert "did not carry out" in decision.reason
    assert evaluator.standing.acted["collapse"] == ()


def test_stale_or_missing_data_means_no_action_and_one_page() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    healthy(run, evaluator)
    collapse(run, evaluator, 2)
    bad = run.advance(pass_rate=0.0, grad_norm=9, truncation=0.9)
    for snapshot in (
        bad.model_copy(update={"at": bad.at + 1000}),
        bad.model_copy(update={"observed": None, "errors": ("observed.json cannot be read",)}),
        bad.model_copy(update={"sampled_at": None, "metrics": {}, "errors": ("the trainer's metrics cannot be read",)}),
    ):
        decision = evaluator.look(snapshot)[1]
        assert decision.kind in (Kind.page, Kind.hold)
        assert decision.change is None
    assert evaluator.look(bad.model_copy(update={"at": bad.at + 1001}))[1].kind is Kind.hold


def test_a_stalled_trainer_is_told_once_and_again_after_it_moved() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    healthy(run, evaluator)

    def wait(seconds: float) -> Kind:
        look = run.look()
        return evaluator.look(look.model_copy(update={"at": look.at + seconds, "sampled_at": look.at + seconds}))[
            1
        ].kind

    assert [wait(30), wait(100), wait(110)] == [Kind.nothing, Kind.page, Kind.hold]
    healthy(run, evaluator, 3)
    assert wait(100) is Kind.page


def test_nonfinite_steps_need_no_second_key() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    healthy(run, evaluator)
    decisions = [evaluator.look(run.advance(nonfinite=True))[1] for _ in range(3)]
    assert [d.kind for d in decisions] == [Kind.nothing, Kind.nothing, Kind.act]
    assert decisions[-1].rule == "numbers-gone"


def test_values_stay_inside_the_clamps() -> None:
    run, evaluator = Run(lr_scale=0.15), Evaluator(DEMO)
    healthy(run, evaluator)
    change = collapse(run, evaluator)[-1].change
    assert change is not None
    assert change.set["lr_scale"].value == 0.1


def test_a_rollback_that_can_change_nothing_pages() -> None:
    run, evaluator = Run(lr_scale=0.1), Evaluator(DEMO)
    healthy(run, evaluator)
    decision = collapse(run, evaluator, 20)[-1]
    assert decision.kind is Kind.page
    assert "cannot be changed further" in decision.reason


def test_a_stopped_trainer_is_no_alarm() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    healthy(run, evaluator)
    gone = run.look(Phase.stopped).model_copy(update={"sampled_at": None, "metrics": {}, "errors": ("no target",)})
    assert evaluator.look(gone)[1].kind is Kind.nothing


def test_the_same_looks_give_the_same_decisions_bit_for_bit() -> None:
    def story() -> list[str]:
        run, evaluator, out = Run(seed=7), Evaluator(DEMO), []
        for decision in (*healthy(run, evaluator), *collapse(run, evaluator)):
            out.append(json.dumps(decision.model_dump(mode="json"), sort_keys=True))
        return out

    assert story() == story()


def test_a_restarted_evaluator_stands_where_the_old_one_stood() -> None:
    run, old, new = Run(seed=3), Evaluator(DEMO), Evaluator(DEMO)

    def both(snapshot: object) -> None:
        _, decision = old.look(snapshot)  # type: ignore[arg-type]
        new.recall(snapshot, decision)  # type: ignore[arg-type]

    for _ in range(60):
        run.advance()
        if run.step % 10 == 0:
            run.checkpoint()
            run.evaluate(0.8)
        both(run.look())
    for _ in range(3):
        both(run.advance(pass_rate=0.1, grad_norm=6))
    for _ in range(5):
        snapshot = run.advance(pass_rate=0.1, grad_norm=6, truncation=0.4)
        assert old.look(snapshot)[1] == new.look(snapshot)[1]
    assert old.standing == new.standing


def test_a_policy_without_rules_only_looks() -> None:
    policy = Policy.model_validate({**DEMO.model_dump(mode="json"), "rules": []})
    run, evaluator = Run(), Evaluator(policy)
    healthy(run, evaluator)
    assert {d.kind for d in collapse(run, evaluator, 20)} == {Kind.nothing}


def test_the_forecast_follows_the_lineage_after_a_rollback() -> None:
    run, evaluator = Run(), Evaluator(DEMO)
    for _ in range(100):
        run.advance()
        if run.step % 5 == 0:
            run.evaluate(0.9 - 0.8 / (1 + run.step / 20))
            run.checkpoint()
        evaluator.look(run.look())
    before = evaluator.forecast
    assert before is not None
    assert before.points == 20
    run.restore(50)
    evaluator.look(run.look())  # the gauges still show the last evaluation of the abandoned branch
    assert evaluator.forecast == before
    for _ in range(10):
        run.advance()
    run.evaluate(0.8)
    evaluator.look(run.look())
    after = evaluator.forecast
    assert after is not None
    assert (after.step, after.branch, after.points) == (60, 1, 11)  # ten up to step 50, and the new one
    assert 0.0 <= after.quantiles["0.1"] <= after.quantiles["0.5"] <= after.quantiles["0.9"] <= 1.0


def test_an_alarm_that_flickers_is_told_once_and_again_after_silence() -> None:
    policy = parse(
        "policy: v1\nname: flicker\ndetectors:\n  cut: {kind: level, signal: truncation, above: 0.3, consecutive: 1}\n"
        "rules:\n  - {name: cut, when: {all: [cut]}, then: {page: true}}\n"
    )
    run, evaluator = Run(), Evaluator(policy)

    def paged(steps: int, truncation: float) -> int:
        return sum(evaluator.look(run.advance(truncation=truncation))[1].kind is Kind.page for _ in range(steps))

    paged(3, 0.0)
    assert sum(paged(1, share) for share in (0.6, 0.0, 0.6, 0.0, 0.0, 0.6) * 5) == 1
    assert paged(30, 0.0) == 0
    assert paged(1, 0.6) == 1


def test_a_page_of_nan_is_stale_data_and_no_old_alarm_is_acted_on_beside_it() -> None:
    """Found by the state machine: an alarm that still stood was acted on in a look whose page held no number at all."""
    run, evaluator = Run(), Evaluator(DEMO)
    healthy(run, evaluator)
    for _ in range(2):
        evaluator.look(run.advance(nonfinite=True))
    bad = run.advance(nonfinite=True)
    alarmed = bad.model_copy(update={"observed": run.observed().model_copy(update={"branch": 1})})
    assert evaluator.look(alarmed)[1].kind is Kind.hold  # the alarm stands, but the branches do not agree yet
    gone = bad.model_copy(update={"metrics": dict.fromkeys(bad.metrics, float("nan"))})
    decision = evaluator.look(gone)[1]
    assert decision.kind is Kind.hold
    assert "no longer say" in decision.reason
