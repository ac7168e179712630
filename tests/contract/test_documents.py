import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from controlplane.contract.approvals import Approval, Order
from controlplane.contract.documents import Action, Desired, Lease, Said, Setting, Target

FIELDS: dict[str, object] = {
    "run_uid": "run-1",
    "incarnation": "inc",
    "epoch": 1,
    "generation": 2,
    "base_generation": 1,
    "decision_id": "d1",
    "issued_at": 1.5,
    "expires_at_step": 10,
    "set": {"lr_scale": {"scale": 0.5}},
    "lease": {"until_step": 20, "revert_to": {"lr_scale": 1.0}},
    "action": "rollback",
    "target": {"step": 3, "digest": "abc"},
    "reason": "because",
    "evidence": {"z": 7.5},
}
KEY = b"k" * 32


def desired(**changes: object) -> Desired:
    return Desired.model_validate({**FIELDS, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"set": {"learning_rate": {"value": 1}}},
        {"action": "probe", "target": None},
        {"probe": {"probe_id": "p1", "end": True}},
        {"action": "probe", "target": None, "probe": {"probe_id": "p1"}},
        {"action": "probe", "target": None, "probe": {"probe_id": "../p1", "end": True}},
        {
            "action": "probe",
            "target": None,
            "probe": {"probe_id": "p", "steps": 3, "arms": {"control": {"lr_scale": {"scale": 2}}}},
        },
        {"action": "probe", "target": None, "probe": {"probe_id": "p", "steps": 3, "arms": {"a": {}}}},
        {
            "action": "probe",
            "target": None,
            "probe": {"probe_id": "p", "steps": 3, "arms": {"a": {"speed": {"scale": 2}}}},
        },
        {"set": {"lr_scale": {}}},
        {"set": {"lr_scale": {"value": 1, "scale": 1}}},
        {"set": {"lr_scale": {"scale": 0}}},
        {"set": {"lr_scale": {"value": float("nan")}}},
        {"set": {"lr_scale": {"scale": float("inf")}}},
        {"lease": {"until_step": 20, "revert_to": {"lr_scale": float("nan")}}},
        {"target": None},
        {"action": "none"},
        {"action": "explode"},
        {"base_generation": 2},
        {"generation": 0, "base_generation": 0},
        {"epoch": -1},
        {"schema_version": 2},
        {"more": 1},
    ],
)
def test_incoherent_documents_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        desired(**changes)


def test_setting_resolves_against_the_value_in_force() -> None:
    assert Setting(value=3.0).resolve(8.0) == 3.0
    assert Setting(scale=0.5).resolve(8.0) == 4.0


@given(
    st.sampled_from(
        [
            {"run_uid": "run-2"},
            {"incarnation": "other"},
            {"epoch": 2},
            {"generation": 3},
            {"base_generation": 0},
            {"decision_id": "d2"},
            {"issued_at": 2.5},
            {"apply_from_step": 1},
            {"expires_at_step": 11},
            {"set": {"lr_scale": Setting(scale=0.51)}},
            {"lease": Lease(until_step=21, revert_to={"lr_scale": 1.0})},
            {"action": Action.stop},
            {"target": Target(step=3, digest="abd")},
            {"reason": "why not"},
            {"evidence": {"z": 7.6}},
        ]
    )
)
def test_the_signature_covers_every_field(change: dict[str, object]) -> None:
    signed = desired().signed(KEY)
    assert signed.verified(KEY)
    assert not signed.verified(b"x" * 32)
    assert not signed.model_copy(update=change).verified(KEY)


def test_the_signature_survives_the_wire() -> None:
    signed = desired().signed(KEY)
    assert Desired.model_validate_json(signed.model_dump_json()).verified(KEY)
    assert Desired.model_validate_json(json.dumps(signed.model_dump(mode="json"), indent=1)).verified(KEY)


def test_an_unsigned_document_or_a_signature_of_strange_letters_is_not_verified() -> None:
    assert not desired().verified(KEY)
    assert not desired(signature="é").verified(KEY)


@pytest.mark.parametrize(
    "word",
    [
        Approval(decision_id="d1", answer="approve", by="ann", at=1.0, reason="seen it"),
        Order(order_id="o1", action="pause", by="ann", at=1.0),
    ],
)
def test_what_a_person_says_is_believed_only_as_it_was_signed(word: Approval | Order) -> None:
    said = Said(run_uid="run-1", word=word)
    signed = said.signed(KEY)
    again = Said.model_validate_json(signed.model_dump_json())
    assert again.verified(KEY)
    assert again.word == word
    assert not signed.verified(b"x" * 32)
    assert not signed.model_copy(update={"word": word.model_copy(update={"by": "eve"})}).verified(KEY)
    assert not said.verified(KEY)


def test_an_order_can_neither_set_values_nor_roll_back() -> None:
    order = {"order_id": "o", "by": "ann", "at": 1.0}
    for more in ({"action": "rollback"}, {"action": "none"}, {"action": "pause", "set": {"lr_scale": {"value": 1}}}):
        with pytest.raises(ValidationError):
            Order.model_validate({**order, **more})
