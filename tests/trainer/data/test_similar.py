"""Near duplicates: nothing alike is missed, nothing else is found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.yamlfile import FileError
from trainer.data.files import Record
from trainer.data.prepare import similar
from trainer.data.prepare.entry import Entry
from trainer.data.prepare.near import near_duplicates
from trainer.data.prepare.shingles import shingles
from trainer.data.prepare.similar import similar_pairs
from trainer.data.prepare.spec import NearDuplicates, Similarity

SETS = st.lists(st.sets(st.integers(0, 12), max_size=8), max_size=15)


def entry(name: str, prompt: str, answer: str = "1") -> Entry:
    return Entry(Record(prompt=prompt, answer=answer, id=name), "file")


@settings(max_examples=200, deadline=None)
@given(SETS, st.sampled_from([0.5, 0.6, 2 / 3, 0.75, 0.8, 1.0]))
def test_the_pairs_found_are_those_that_comparing_all_finds(sets: list[set[int]], threshold: float) -> None:
    found = similar_pairs([np.array(sorted(one), dtype=np.uint64) for one in sets], threshold)
    wanted = [
        (i, j, len(sets[i] & sets[j]) / len(sets[i] | sets[j]))
        for i in range(len(sets))
        for j in range(i + 1, len(sets))
        if sets[i] | sets[j] and len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= threshold
    ]
    assert [tuple(pair) for pair in found] == wanted


def test_a_text_that_all_prompts_share_is_refused_and_not_compared_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "MOST", 100)
    alike = [np.arange(10, dtype=np.uint64) for _ in range(30)]
    with pytest.raises(FileError, match=r"similarity: 1,305 pairs"):
        similar_pairs(alike, 0.8)


def test_shingles_ignore_case_white_space_and_latex_spacing_but_not_signs() -> None:
    like = Similarity()
    one = shingles(r"Compute $\left(3+4\right)\,x$ now", like)
    assert np.array_equal(one, shingles("compute  (3 + 4) x\nnow", like))
    assert not np.array_equal(one, shingles(r"Compute $(3-4) x$ now", like))


def test_short_prompts_are_told_apart_by_characters() -> None:
    settings = Similarity(unit="character", size=2)
    a, b = shingles("07+3-2=", settings), shingles("07+3-2+5-1=", settings)
    assert 0 < len(np.intersect1d(a, b)) < len(b)
    assert len(shingles("7", settings)) == 1


TEXT = "a farmer sells {} of the apples from the old orchard at the end of the long road and keeps the others for the winter"


def test_a_planted_near_duplicate_goes_and_the_smaller_id_stays() -> None:
    entries = [
        entry("b", TEXT.format("most")),
        entry("a", TEXT.format("many")),
        entry("c", "What is seven times six ?"),
    ]
    sifted = near_duplicates(entries, Similarity(), NearDuplicates(threshold=0.7))
    assert {e.record.id for e in sifted.kept} == {"a", "c"}
    assert [(r.entry.record.id, r.of) for r in sifted.removed] == [("b", "a")]


def test_prompts_alike_with_different_answers_stay_unless_told_otherwise() -> None:
    entries = [entry("a", TEXT.format(12), "12"), entry("b", TEXT.format(13), "13")]
    kept = near_duplicates(entries, Similarity(), NearDuplicates(threshold=0.7))
    assert len(kept.kept) == 2
    assert kept.notes == {"pairs alike with different answers, kept": 1}
    strict = NearDuplicates(threshold=0.7, different_answers="remove")
    assert len(near_duplicates(entries, Similarity(), strict).kept) == 1


def test_the_ends_of_a_chain_stay_when_only_its_middle_is_near_both() -> None:
    words = [f"w{i}" for i in range(40)]
    chain = [" ".join(words[start : start + 30]) for start in (0, 5, 10)]
    a, b, c = (entry(name, text) for name, text in zip("abc", chain, strict=True))
    sifted = near_duplicates([c, b, a], Similarity(), NearDuplicates(threshold=0.6))
    assert {e.record.id for e in sifted.kept} == {"a", "c"}
    assert [r.of for r in sifted.removed] == ["a"]
