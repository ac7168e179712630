"""Policies read back: every detector with its figures, every rule with what it does, every difference with what it means."""

from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

import controlplane.policy
from controlplane.policy import Policy, find, load, parse, preset_names
from controlplane.policytools import difference, explain, schema
from controlplane.policytools.command import app
from controlplane.policytools.difference import Effect

GUARD = find("guard")[1]


@pytest.mark.parametrize("name", preset_names())
def test_every_shipped_policy_explains_itself_from_measured_figures(name: str) -> None:
    simulated: list[str] = []
    text = explain(load(name), simulated.append)
    assert simulated == []  # what ships has been measured; nothing is simulated on the spot
    policy = load(name)
    for part in (*policy.detectors, *(rule.name for rule in policy.rules)):
        assert f"\n  {part}" in text
    noisy = [d for d in policy.detectors.values() if d.kind in ("cusum", "robust_z", "trend", "bernoulli_cusum")]
    assert text.count("false alarms per 1,000") >= len(noisy)


def test_a_rule_says_what_it_needs_what_it_does_and_how_far_it_may_go() -> None:
    text = explain(load("guard"))
    assert "when pass_drop, and one of grad_spike, mismatch" in text
    assert (
        "acts: roll back to the newest good checkpoint at least 20 steps before the onset and multiply lr_scale by 0.5"
        in text
    )
    assert "only writes down clip, batch, sampling, length" in text
    observed = explain(parse(GUARD.replace("rollback: act, lr: act", "rollback: advise, lr: observe")))
    assert "advises to roll back" in observed
    assert "only writes down that it would multiply lr_scale by 0.8" in observed
    asked = explain(parse(GUARD + "\napproval: {required_for: [rollback], on_timeout: act}\n"))
    assert "asks for approval, then: roll back" in asked


def test_probes_are_told_and_more_of_them_are_looser() -> None:
    few = parse(GUARD + "\ntuning: {space: {lr_scale: 1.5}, max_probes: 2}\n")
    more = parse(GUARD + "\ntuning: {space: {lr_scale: 1.5}, max_probes: 3}\n")
    assert "Probes lr_scale (at most x 1.5) when a person asks: 2 arms of 40 steps, at most 2 in a run." in explain(few)
    assert [(d.effect, d.place) for d in difference(few, more)] == [(Effect.looser, "tuning.max_probes")]


def test_where_probes_run_is_said_and_ordered_by_what_of_the_run_they_touch() -> None:
    designs = ("off", "spare", "inline", "switchback")
    policies = [parse(GUARD + f"\ntuning: {{space: {{lr_scale: 1.5}}, design: {design}}}\n") for design in designs]
    for before, after in pairwise(policies):
        assert [(d.effect, d.place) for d in difference(before, after)] == [(Effect.looser, "tuning.design")]
        assert [d.effect for d in difference(after, before)] == [Effect.stricter]
    said = [explain(policy) for policy in policies]
    assert "Probes lr_scale" not in said[0]
    assert "A second process trains them while the run goes on" in said[1]
    assert "Meanwhile the run waits" in said[2]
    assert "1 arm of 40 steps" in said[3]
    assert "takes turns" in said[3]


def test_settings_of_ones_own_are_simulated_and_said_so() -> None:
    said: list[str] = []
    text = explain(
        parse(GUARD.replace("grad_norm, above: 4, consecutive: 4", "grad_norm, above: 3, consecutive: 7")), said.append
    )
    assert said == ["simulates grad_stays, whose settings have not been measured before"]
    assert "(20,000 simulated readings)" in text


@pytest.mark.parametrize(
    ("old", "new", "effect", "place"),
    [
        ("lr: act}", "lr: observe}", Effect.stricter, "autonomy.lr"),
        ("lr: act}", "lr: act, batch: act}", Effect.looser, "autonomy.batch"),
        ("min: 0.1", "min: 0.05", Effect.looser, "clamps.lr_scale.min"),
        ("max: 1.0", "max: 0.9", Effect.stricter, "clamps.lr_scale.max"),
        ("max_step: 0.5", "max_step: 0.25", Effect.looser, "clamps.lr_scale.decrease.max_step"),
        (", min_gap_steps: 50", "", Effect.looser, "clamps.lr_scale.increase.min_gap_steps"),
        ("max_rollbacks: 2", "max_rollbacks: 3", Effect.looser, "budget.max_rollbacks"),
        ("observe_until_step: 100", "observe_until_step: 50", Effect.looser, "observe_until_step"),
        ("grad_norm, above: 4, consecutive: 4}", "grad_norm, above: 4, consecutive: 6}", Effect.later, "detectors.grad_stays.consecutive"),
        ("below: 0.02", "below: 0.05", Effect.sooner, "detectors.flat.below"),
        ("{all: [grad_stays]}", "{all: [grad_stays, loss_spike]}", Effect.stricter, "rules.soften.when.all"),
        (", loss_spike]}", "]}", Effect.stricter, "rules.collapse.when.any"),
        ("cooldown_steps: 200", "cooldown_steps: 20", Effect.looser, "rules.decline.limits.cooldown_steps"),
        ("    then: {scale: {lr_scale: 0.8}}", "    then: {scale: {lr_scale: 0.8}}\n    dry_run: true", Effect.stricter, "rules.soften.dry_run"),
        ("grace_steps: 10}", "grace_steps: 10, revert: false}", Effect.looser, "verdict.revert"),
        ("verdict:", "approval: {required_for: [lr]}\nverdict:", Effect.stricter, "approval.required_for"),
        ("max_age_seconds: 120}", "max_age_seconds: 120, on_stale: hold}", Effect.looser, "freshness.on_stale"),
        ("scale: {lr_scale: 0.8}", "scale: {lr_scale: 0.7}", Effect.changed, "rules.soften.then.scale.lr_scale"),
    ],
)  # fmt: skip
def test_a_difference_says_what_it_means_and_the_way_back_means_the_opposite(
    old: str, new: str, effect: Effect, place: str
) -> None:
    changed = GUARD.replace(old, new, 1)
    assert changed != GUARD
    before, after = parse(GUARD), parse(changed)
    opposite = {
        Effect.looser: Effect.stricter,
        Effect.stricter: Effect.looser,
        Effect.sooner: Effect.later,
        Effect.later: Effect.sooner,
        Effect.changed: Effect.changed,
    }
    assert [(d.effect, d.place) for d in difference(before, after)] == [(effect, place)]
    assert [(d.effect, d.place) for d in difference(after, before)] == [(opposite[effect], place)]


def test_a_policy_does_not_differ_from_itself_and_any_two_shipped_ones_do() -> None:
    policies = [load(name) for name in preset_names()]
    for a in policies:
        for b in policies:
            assert bool(difference(a, b)) == (a is not b)


def test_a_new_rule_that_acts_is_looser_and_one_that_tells_is_not() -> None:
    guard = load("guard")
    without = Policy.model_validate(
        {
            **guard.model_dump(mode="json"),
            "rules": [r.model_dump(mode="json") for r in guard.rules if r.name != "soften"],
        }
    )
    (found,) = difference(without, guard)
    assert (found.effect, found.place) == (Effect.looser, "rules.soften")


def test_the_schema_for_editors_is_that_of_the_models() -> None:
    kept = Path(controlplane.policy.__file__).parent / "policy.schema.json"
    assert kept.read_text() == schema(), "renew it: scalerl policy schema > controlplane/policy/policy.schema.json"


def test_the_commands_print_and_a_looser_policy_fails_where_that_is_asked() -> None:
    runner = CliRunner()
    assert "only writes down" in runner.invoke(app, ["explain", "observe"]).output
    assert runner.invoke(app, ["diff", "guard", "guard"]).output == "the two mean the same\n"
    looser = runner.invoke(app, ["diff", "demo", "guard", "--fail-if-looser"])
    assert looser.exit_code == 1
    assert "looser        autonomy.lr: observe -> act" in looser.output
    assert runner.invoke(app, ["diff", "demo", "guard"]).exit_code == 0
    assert runner.invoke(app, ["schema"]).output == schema()
