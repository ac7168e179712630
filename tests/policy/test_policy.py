"""A policy that is wrong is refused with file, line, key and what is allowed; one that is right means what it says."""

import pytest

from controlplane.contract.yamlfile import FileError
from controlplane.policy import Autonomy, Family, Policy, find, load, parse, preset_names

DEMO = find("demo")[1]


def test_every_shipped_policy_is_valid() -> None:
    assert {"demo", "observe"} <= set(preset_names())
    for name in preset_names():
        assert load(name).name == name


def test_what_is_not_named_is_only_observed() -> None:
    assert load("observe").allows(frozenset(Family)) is Autonomy.observe
    assert load("demo").allows(frozenset({Family.rollback})) is Autonomy.act
    assert load("demo").allows(frozenset({Family.rollback, Family.clip})) is Autonomy.observe


def test_a_ceiling_lowers_and_never_raises() -> None:
    capped = load("demo").capped(Autonomy.advise)
    assert capped.autonomy[Family.rollback] is Autonomy.advise
    assert capped.autonomy[Family.lr] is Autonomy.observe


@pytest.mark.parametrize(
    ("old", "new", "line_of", "says"),
    [
        ("kind: cusum", "kind: cussum", "pass_drop:", "'cusum', 'robust_z', 'level'"),
        ("rollback: act", "rollback: acts", "rollback: ", "observe, advise, act"),
        ("min: 0.1, max: 1.0", "min: 2, max: 1.0", "lr_scale: {min", "min 2 is above max 1"),
        ("h: 8.0", "hh: 8.0", "pass_drop:", "unknown key"),
        ("h: 8.0", "h: high", "pass_drop:", "valid number"),
        ("h: 8.0", "h: -1", "pass_drop:", "greater than 0"),
        ("name: demo", "nome: demo", "nome", "did you mean 'name'"),
        ("consecutive: 2", "consecutive: 0", "grad_spike:", "greater than or equal to 1"),
        ("lr_scale: 0.5", "lr_skale: 0.5", "then:", "unknown tunable 'lr_skale'"),
        ("all: [nonfinite]", "all: [nan]", "when: {all: [nan]}", "no detector 'nan'"),
        ("lr_scale: {min", "clip_low: {min", "scale: {lr_scale", "has no clamp"),
        ("name: stalled", "name: stale", "name: stale", "is reserved"),
        ("policy: v1", "policy: v2", "policy: v2", "'v1'"),
    ],
)
def test_a_mistake_names_its_place_and_what_is_allowed(old: str, new: str, line_of: str, says: str) -> None:
    text = DEMO.replace(old, new, 1)
    assert text != DEMO
    with pytest.raises(FileError) as caught:
        parse(text, "policy.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert says in message
    if line_of:
        line = next(i for i, row in enumerate(text.splitlines(), 1) if line_of in row)
        assert message.startswith(f"policy.yaml:{line}: ")


@pytest.mark.parametrize(
    "condition", ["{all: [pass_drop]}", "{all: [grad_spike]}", "{all: [pass_drop], any: [pass_drop]}"]
)
def test_a_rollback_needs_a_value_key_and_a_mechanism_key(condition: str) -> None:
    text = DEMO.replace("{all: [pass_drop], any: [grad_spike, truncated, no_signal]}", condition)
    with pytest.raises(FileError, match="two keys"):
        parse(text)


def test_a_rollback_that_changes_nothing_is_refused() -> None:
    with pytest.raises(FileError, match="must also change something"):
        parse(DEMO.replace("scale: {lr_scale: 0.5}     #", "page: true #", 1))


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(FileError, match="given twice"):
        parse(DEMO + "\nname: again\n", "p.yaml")


def test_a_policy_survives_the_journal() -> None:
    policy = load("demo")
    assert Policy.model_validate(policy.model_dump(mode="json")) == policy
