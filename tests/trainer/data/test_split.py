"""The split: sizes, strata, what stays together, and what holds when data are added."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.yamlfile import FileError
from trainer.data.files import Record
from trainer.data.prepare.entry import Entry
from trainer.data.prepare.spec import Similarity, Split
from trainer.data.prepare.split import apportion, split, stratum

AMOUNT = st.one_of(st.sampled_from([0.0, 0.05, 0.1, 0.3]), st.integers(0, 10))


def entries(difficulties: list[str], prefix: str = "r") -> list[Entry]:
    return [
        Entry(Record(prompt=f"{prefix}{n}", answer="1", id=f"{prefix}{n}", difficulty=difficulty), "file")
        for n, difficulty in enumerate(difficulties)
    ]


def ids(result: dict[str, list[Entry]]) -> dict[str, set[str]]:
    return {name: {e.record.id for e in chosen} for name, chosen in result.items()}


@given(st.dictionaries(st.text(max_size=2), st.integers(0, 50), max_size=8), st.data())
def test_parts_add_up_and_are_within_one_of_their_share(sizes: dict[str, int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(sizes.values())))
    parts = apportion(sizes, total)
    assert sum(parts.values()) == total
    assert all(abs(parts[k] - total * sizes[k] / sum(sizes.values())) < 1 for k in sizes if total)
    assert all(parts[k] <= sizes[k] for k in sizes)


@settings(deadline=None)
@given(st.lists(st.sampled_from("123"), min_size=25, max_size=80), AMOUNT, AMOUNT, st.integers(0, 3))
def test_splits_are_disjoint_complete_of_the_size_asked_for_and_true_to_the_strata(
    difficulties: list[str], validation: int | float, test: int | float, seed: int
) -> None:
    made = entries(difficulties)
    result = split(made, Split(validation=validation, test=test, seed=seed, together=None), Similarity())
    assert sorted(e.record.id for chosen in result.values() for e in chosen) == sorted(e.record.id for e in made)
    whole = Counter(difficulties)
    for name, amount in (("validation", validation), ("test", test)):
        wanted = amount if isinstance(amount, int) else round(amount * len(made))
        assert len(result[name]) == wanted
        for level, count in Counter(e.record.difficulty for e in result[name]).items():
            assert abs(count - wanted * whole[level or ""] / len(made)) < 2


@settings(deadline=None)
@given(st.lists(st.sampled_from("12"), min_size=30, max_size=60), st.integers(0, 3), st.randoms())
def test_the_order_decides_nothing_and_the_seed_does(difficulties: list[str], seed: int, rng: random.Random) -> None:
    made = entries(difficulties)
    mixed = rng.sample(made, len(made))
    wanted = Split(validation=0.2, test=0.2, seed=seed)
    assert split(made, wanted, Similarity()) == split(mixed, wanted, Similarity())
    other = Split(validation=0.2, test=0.2, seed=seed + 1)
    assert ids(split(made, wanted, Similarity())) != ids(split(made, other, Similarity()))


@settings(deadline=None)
@given(st.integers(20, 120), st.integers(0, 30), st.sampled_from([(0.1, 0.1), (5, 5), (0.2, 0.0), (8, 0.05)]))
def test_added_prompts_move_few_others_and_never_from_validation_to_test(
    old: int, new: int, amounts: tuple[int | float, int | float]
) -> None:
    wanted = Split(validation=amounts[0], test=amounts[1], together=None)
    here = ids(split(entries(["1"] * old), wanted, Similarity()))
    there = ids(split(entries(["1"] * old) + entries(["1"] * new, prefix="new"), wanted, Similarity()))
    assert not here["validation"] & there["test"]
    assert not here["test"] & there["validation"]
    for name in ("validation", "test"):
        grown = len(there[name]) - len(here[name])
        assert len(here[name] - there[name]) <= new
        assert len((there[name] - here[name]) & here["train"]) <= max(0, grown)


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=15, max_size=40), st.integers(0, 5))
def test_prompts_that_are_alike_never_straddle_splits(families: list[int], seed: int) -> None:
    made = [
        Entry(
            Record(
                prompt=" ".join(f"w{family}x{i}" for i in range(30)) + f" {member}",
                answer=str(member),
                id=f"{family}-{member}",
                difficulty=str(member % 2),
            ),
            "file",
        )
        for family, size in enumerate(families)
        for member in range(size)
    ]
    result = split(made, Split(validation=0.2, test=0.2, seed=seed), Similarity())
    assert len(result["validation"]) <= round(0.2 * len(made)), "a family that does not fit is passed over"
    assert len(result["test"]) <= round(0.2 * len(made))
    homes = {name: {e.record.id.split("-")[0] for e in chosen} for name, chosen in result.items()}
    assert not homes["train"] & homes["validation"]
    assert not homes["train"] & homes["test"]
    assert not homes["validation"] & homes["test"]


def test_edges_part_numbers_and_fractions_and_a_pass_rate_stands_in() -> None:
    def of(**more: object) -> str:
        return stratum(Entry(Record(prompt="p", **more), "file"), (0.25, 0.5))  # type: ignore[arg-type]

    assert [of(difficulty=d) for d in ("1/8", "2/8", "0.3", "4")] == [
        "below 0.25",
        "0.25 to 0.5",
        "0.25 to 0.5",
        "0.5 and above",
    ]
    assert of(pass_rate=0.1) == "below 0.25"
    assert of() == "unknown"
    with pytest.raises(FileError, match=r"^split\.edges: the difficulty 'hard'"):
        of(difficulty="hard")


def test_what_cannot_be_split_is_refused_with_the_key() -> None:
    with pytest.raises(FileError, match=r"^split\.validation: 8 for validation and 2 for test"):
        split(entries(["1"] * 10), Split(validation=8, test=2), Similarity())
    with pytest.raises(FileError, match=r"^split\.edges: there are 60 different"):
        split(entries([str(n) for n in range(60)]), Split(), Similarity())
