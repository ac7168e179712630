"""The stages that look at one prompt at a time, and exact duplicates."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.yamlfile import FileError
from trainer.data.files import Record
from trainer.data.prepare.checks import format_standardization, standardized
from trainer.data.prepare.duplicates import duplicates
from trainer.data.prepare.entry import Entry
from trainer.data.prepare.lengths import length_validation, white_space_words
from trainer.data.prepare.spec import Length, Trivial
from trainer.data.prepare.text import answer_key, standard
from trainer.data.prepare.toxicity import find_score, toxicity_filtering
from trainer.data.prepare.trivial import trivial_prompts


def entry(prompt: str = "What is 1+1?", kind: str = "math", **more: object) -> Entry:
    return Entry(Record(prompt=prompt, **{"answer": "2", "id": "x", **more}), "file", kind)  # type: ignore[arg-type]


def rule(made: Entry) -> str | None:
    sifted = format_standardization([made])
    return sifted.removed[0].rule if sifted.removed else None


@given(st.text())
def test_standard_form_is_reached_in_one_step(text: str) -> None:
    assert standard(standard(text)) == standard(text)
    record = Record(prompt=text, answer=text, id=text, difficulty=text)
    assert standardized(standardized(record)) == standardized(record)


def test_standard_form_changes_nothing_a_reader_sees() -> None:
    assert standard("  caf\u0065\u0301 \r\n\r\n\r\n\r\n  x = 1\t\u200b\n") == "caf\u00e9\n\n  x = 1"


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (entry(), None),
        (entry(" \n\u200b"), "empty prompt"),
        (entry(answer=None), "no answer"),
        (entry(answer="  "), "no answer"),
        (entry(answer=r"$\boxed{}$"), "unusable answer"),
        (entry(answer="0"), None),
        (entry(kind="code"), "no tests"),
        (entry(kind="code", answer=None, tests=(" ",)), "no tests"),
        (entry(kind="code", answer=None, tests=("assert f(1) == 2",)), None),
        (entry("What is \ufffd?"), "damaged text"),
        (entry(f"What is {chr(0xD83D)}?"), "damaged text"),
        (entry("What is \x0crac{1}{2}?"), "damaged text"),
        (entry("a\x0c\nb"), None),
    ],
)
def test_what_cannot_be_asked_or_judged_is_removed(made: Entry, wanted: str | None) -> None:
    assert rule(made) == wanted


def test_a_made_id_depends_on_the_content_alone() -> None:
    one, other = entry("A", id=""), entry(" A\r\n", id="")
    ids = [e.record.id for e in format_standardization([one, entry("B", id=""), other]).kept]
    assert all(ids)
    assert len(set(ids)) == 2
    assert set(ids) == {e.record.id for e in format_standardization([other, entry("B", id="")]).kept}


def test_one_id_for_two_prompts_is_told_apart_and_for_two_copies_is_not() -> None:
    sifted = format_standardization([entry("A", id="1"), entry("B", id="1"), entry("C", id="2"), entry("C", id="2")])
    assert len({e.record.id for e in sifted.kept}) == 3
    assert sifted.notes["clashing ids renamed"] == 2


def test_tests_of_a_code_prompt_are_never_rewritten() -> None:
    test = "  assert f() == 'e\u0301 \t'\r\n"
    assert format_standardization([entry(kind="code", tests=(test,))]).kept[0].record.tests == (test,)


def test_too_long_is_removed_and_exactly_as_long_as_allowed_stays() -> None:
    limits = Length(prompt_characters=100, prompt_tokens=10, solution_tokens=5)
    given = [
        entry("w " * 9 + "w", solution="s s s s s"),
        entry("w " * 10 + "w"),
        entry("x" * 101),
        entry(solution="s " * 6),
    ]
    sifted = length_validation(given, limits, white_space_words)
    assert list(sifted.kept) == given[:1]
    assert [r.rule for r in sifted.removed] == ["long prompt", "long prompt", "long solution"]


def test_of_copies_one_stays_the_most_complete_and_then_the_smallest_id() -> None:
    full = entry("What is  1+1?", id="c", difficulty="1/8")
    sifted = duplicates([entry(id="a"), entry("What is 1 + 1 ?", id="b"), full])
    assert list(sifted.kept) == [full]
    assert {(r.entry.record.id, r.of) for r in sifted.removed} == {("a", "c"), ("b", "c")}


def test_copies_that_disagree_all_go_and_say_why() -> None:
    sifted = duplicates([entry(id="a"), entry(id="b", answer="3"), entry("other", id="c")])
    assert [e.record.id for e in sifted.kept] == ["c"]
    assert {(r.entry.record.id, r.rule, r.of) for r in sifted.removed} == {
        ("a", "conflicting answers", "b"),
        ("b", "conflicting answers", "a"),
    }
    assert "'2'" in sifted.removed[0].reason
    assert "'3'" in sifted.removed[0].reason


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1/2", "0.5"),
        (r"\boxed{\frac{1}{2}}", "$0.50$"),
        ("1,234", "1234"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"\dfrac{3}{6}", ".5"),
    ],
)
def test_equal_answers_are_no_conflict(one: str, other: str) -> None:
    assert answer_key(one) == answer_key(other) != ""


@pytest.mark.parametrize(("one", "other"), [("12", "1,2"), ("x", "X"), ("1/0", "1"), ("-1", "1")])
def test_different_answers_stay_different(one: str, other: str) -> None:
    assert answer_key(one) != answer_key(other)


def test_trivial_prompts_go_by_pass_rate_difficulty_and_length() -> None:
    made = [
        entry(id="hard", pass_rate=0.5),
        entry(id="solved", pass_rate=1.0),
        entry(id="unknown"),
        entry(id="easy", difficulty="Level 1"),
        entry("Hm?", id="short"),
    ]
    sifted = trivial_prompts(made, Trivial(pass_rate=0.9, difficulties=("Level 1",), shorter_than=5))
    assert [e.record.id for e in sifted.kept] == ["hard", "unknown"]
    assert [r.rule for r in sifted.removed] == ["solved too often", "too easy", "too short"]


def test_toxicity_removes_by_score_and_names_the_record_a_function_fails_on() -> None:
    made = [entry("kind", id="1"), entry("rude words", id="2")]
    sifted = toxicity_filtering(made, len, 6)
    assert [r.entry.record.id for r in sifted.removed] == ["2"]
    with pytest.raises(FileError, match=r"record '1' \(ZeroDivisionError"):
        toxicity_filtering(made, lambda prompt: 1 / 0, 0.5)
    with pytest.raises(FileError, match="record '1' is not a number"):
        toxicity_filtering(made, lambda prompt: float("nan"), 0.5)


def test_a_toxicity_function_that_is_not_there_is_one_sentence() -> None:
    assert find_score("builtins:len") is len
    for name in ("no_such_module_at_all:f", "builtins:no_such_function", "builtins:__name__"):
        with pytest.raises(FileError, match=r"^toxicity\.module: "):
            find_score(name)


@given(
    st.lists(st.tuples(st.sampled_from("abc "), st.sampled_from(["1", "2", "", None]), st.sampled_from(["i", "j", ""])))
)
def test_each_stage_loses_nothing_and_ignores_the_order(rows: list[tuple[str, str | None, str]]) -> None:
    made = [replace(entry(p, id=i, answer=a), source=f"row {n}") for n, (p, a, i) in enumerate(rows)]
    mixed = random.Random(0).sample(made, len(made))
    first, again = format_standardization(made), format_standardization(mixed)
    second, twice = duplicates(first.kept), duplicates(again.kept)
    for here, there, read in ((first, again, made), (second, twice, first.kept)):
        assert len(here.kept) + len(here.removed) == len(read)
        assert [e.record for e in here.kept] == [e.record for e in there.kept]
        assert sorted(str((r.entry.record, r.rule, r.of)) for r in here.removed) == sorted(
            str((r.entry.record, r.rule, r.of)) for r in there.removed
        )
    assert not duplicates(format_standardization(second.kept).kept).removed
