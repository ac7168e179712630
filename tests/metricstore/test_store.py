"""The store gives back what it was given, and never more than it may hold."""

import math
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.metricstore import MetricStore, StoreError
from controlplane.metricstore.codec import ABSENT, pack, unpack
from controlplane.metricstore.store import BLOCK


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=300))
@settings(max_examples=60, deadline=None)
def test_every_bit_comes_back(values: list[int]) -> None:
    bits = np.array(values, np.uint64)
    assert (unpack(pack(bits), len(bits)) == bits).all()


def test_what_was_appended_is_read_before_and_after_compaction(tmp_path: Path) -> None:
    store = MetricStore(tmp_path / "m.db")
    rows = {float(at): {"a": at / 3, 'b{x="1"}': math.nan if at % 2 else 1.0} for at in range(3 * BLOCK // 2)}
    for at, values in rows.items():
        store.append(at, values)
    assert store._count("block") == 1
    times, readings = store.read("a")
    assert times.tolist() == list(rows)
    assert readings.tolist() == [row["a"] for row in rows.values()]
    times, readings = store.read('b{x="1"}', 10, 300)
    assert times.tolist() == [float(at) for at in range(10, 301)]
    assert [math.isnan(value) for value in readings] == [at % 2 == 1 for at in range(10, 301)]
    assert store.span() == (0.0, 3 * BLOCK // 2 - 1)
    assert store.read("unknown")[0].size == 0


def test_a_series_that_was_not_there_has_no_reading_and_nan_stays_a_reading(tmp_path: Path) -> None:
    store = MetricStore(tmp_path / "m.db")
    store.append(1, {"a": 1.0})
    store.append(2, {"b": math.nan})
    store.append(3, {"a": 3.0, "b": 4.0})
    for _ in range(2):
        assert store.read("a")[0].tolist() == [1.0, 3.0]
        assert store.read("b")[0].tolist() == [2.0, 3.0]
        store.compact()
    store.append(4, {"c": 0.0})
    assert store.read("a")[0].tolist() == [1.0, 3.0]
    assert np.array([ABSENT]).view(np.float64)[0] != 0  # the mark is a NaN of its own


def test_a_reopened_store_goes_on_and_a_reader_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    store = MetricStore(path)
    store.append(1, {"a": 1.0})
    reader = MetricStore(path, read_only=True)
    store.close()
    store = MetricStore(path)
    store.append(2, {"b": 2.0, "a": 5.0})
    assert reader.read("a")[1].tolist() == [1.0, 5.0]
    assert reader.series() == ["a", "b"]


def test_two_writers_share_one_store(tmp_path: Path) -> None:
    first, second = MetricStore(tmp_path / "m.db"), MetricStore(tmp_path / "m.db")
    for at in range(0, 600, 2):
        first.append(at, {"a": float(at), f"x{at % 7}": 1.0})
        second.append(at + 1, {"b": float(at), f"x{at % 5}": 2.0, "a": float(at + 1)})
    times, values = first.read("a")
    assert times.tolist() == values.tolist() == [float(at) for at in range(600)]
    assert second.read("b")[0].size == 300


def test_a_scrape_that_could_not_be_written_takes_no_series_with_it(tmp_path: Path) -> None:
    store, other = MetricStore(tmp_path / "m.db"), sqlite3.connect(tmp_path / "m.db", isolation_level=None)
    store._db.execute("PRAGMA busy_timeout=50")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        store.append(1, {"a": 1.0})
    other.execute("ROLLBACK")
    store.append(2, {"a": 2.0})
    assert MetricStore(tmp_path / "m.db", read_only=True).read("a")[1].tolist() == [2.0]


def test_a_clock_that_goes_back_loses_nothing(tmp_path: Path) -> None:
    store = MetricStore(tmp_path / "m.db")
    for at in [*range(100), *range(50, 150)]:
        store.append(at, {"a": float(at)})
    store.compact()
    for at in range(100):
        store.append(at, {"a": -1.0})
    store.compact()
    times, values = store.read("a")
    assert len(times) == 250
    assert (np.diff(times) >= 0).all()
    assert (values == -1.0).sum() == 100


def test_age_and_size_are_bounded_and_the_oldest_goes_first(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    aged = MetricStore(tmp_path / "aged.db", keep_seconds=15 * BLOCK)
    sized = MetricStore(tmp_path / "sized.db", max_bytes=200_000)
    for at in range(0, 15 * BLOCK * 8, 15):
        values = {f"m{index}": float(noise.normal()) for index in range(20)}
        aged.append(at, values)
        sized.append(at, values)
    span = aged.span()
    assert span is not None
    assert span[1] - span[0] <= 15 * (2 * BLOCK + 2)
    # One block may come on top: it is written before the oldest is dropped.
    assert sized.size < 200_000 + 60_000
    assert (tmp_path / "sized.db").stat().st_size < 300_000
    span = sized.span()
    assert span is not None
    assert span[0] > 0
    assert span[1] == 15 * BLOCK * 8 - 15


def test_a_crash_in_the_middle_of_compaction_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MetricStore(tmp_path / "m.db")
    for at in range(50):
        store.append(at, {"a": float(at)})

    def broken(_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr("controlplane.metricstore.store._counted", broken)
    with pytest.raises(KeyboardInterrupt):
        store.compact()
    monkeypatch.undo()
    assert MetricStore(tmp_path / "m.db", read_only=True).read("a")[1].tolist() == list(range(50))


def test_what_is_no_store_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing has recorded"):
        MetricStore(tmp_path / "none.db", read_only=True)
    (tmp_path / "other.db").write_text("hello, this is not a database at all" * 100)
    with pytest.raises(StoreError, match="is not a metric store"):
        MetricStore(tmp_path / "other.db")
    sqlite3.connect(tmp_path / "empty.db").close()


def test_the_number_of_series_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.metricstore.store.MAX_SERIES", 3)
    store = MetricStore(tmp_path / "m.db")
    store.append(1, {f"m{index}": 1.0 for index in range(10)})
    assert len(store.series()) == 3
    store.append(2, {"m0": 1.0, "new": 1.0})
    assert len(store.series()) == 3
