"""Decontamination: what gives an evaluation item away is found, what only sounds like one stays."""

import random

from tests.trainer.data.corpus import corpus
from trainer.data.files import Record
from trainer.data.prepare.contamination import Item, decontamination
from trainer.data.prepare.entry import Entry, Sifted

SET_PHRASE = "can be written as m over n, where {} and {} are relatively prime positive integers. Find {}+{}."
ITEM = "Every morning Aya goes for a walk of nine kilometers and stops at a coffee shop afterwards for some minutes"


def run(prompts: list[str], items: list[str], ngram: int = 13, boilerplate: int = 3) -> Sifted:
    entries = [Entry(Record(prompt=prompt, answer="1", id=str(n)), "file") for n, prompt in enumerate(prompts)]
    named = [Item("AIME", f"item{n}", text) for n, text in enumerate(items)]
    return decontamination(entries, named, ngram, boilerplate)


def test_thirteen_words_in_a_row_give_an_item_away_and_twelve_do_not() -> None:
    words = ITEM.split()
    sifted = run(["Say: " + " ".join(words[3:16]) + " or not", "Say: " + " ".join(words[3:15]) + " or not"], [ITEM])
    assert [r.entry.record.id for r in sifted.removed] == ["0"]
    assert sifted.removed[0].of == "AIME/item0"
    assert "goes for a walk" in sifted.removed[0].reason


def test_case_punctuation_and_latex_hide_nothing() -> None:
    hidden = ITEM.upper().replace(" ", " , ").replace("NINE", r"$\left( nine \right)$")
    assert run([hidden], [ITEM]).removed


def test_a_set_phrase_of_several_items_is_no_contamination_whatever_its_letters() -> None:
    names = ["mn", "pq", "ab", "xy"]
    items = [
        f"Problem {w} is quite its own. The chance {SET_PHRASE.format(*n, *n)}"
        for w, n in zip(("one", "two", "three"), names, strict=False)
    ]
    clean = "A wheel turns around. The chance " + SET_PHRASE.format("m", "n", "m", "n")
    assert not run([clean], items).removed
    assert run([clean], items[:2]).removed, "two items are not yet a phrase"
    assert run([items[0]], items).removed, "a whole item is always found"


def test_a_short_item_is_found_inside_a_prompt_and_a_very_short_one_only_as_the_whole() -> None:
    items = ["What is the sum of 17 and 25?", "Find x."]
    sifted = run(["Think well. What is the sum of 17 and 25? Box it.", "find X", "First find x. Then go on."], items)
    assert {(r.entry.record.id, r.of) for r in sifted.removed} == {("0", "AIME/item0"), ("1", "AIME/item1")}


def test_planted_items_are_all_found_and_clean_prompts_all_stay() -> None:
    rng = random.Random(0)
    clean, held = corpus(300, seed=11), corpus(200, seed=12)
    planted = [f"Please solve. {record.prompt} Think step by step." for record in rng.sample(held, 20)]
    sifted = run([record.prompt for record in clean] + planted, [record.prompt for record in held])
    assert {r.entry.record.prompt for r in sifted.removed} == set(planted)
    assert not run([e.record.prompt for e in sifted.kept], [record.prompt for record in held]).removed


def test_the_empty_prompt_and_the_empty_set_are_no_trouble() -> None:
    assert not run(["", "$$", ITEM], ["", "$"]).removed
    assert not run([], []).removed
