import math
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from controlplane.agent.exposition import Store
from controlplane.contract.metrics import CONTROLLER, METRICS, Metric

COUNTER = Metric("x_total", "counter", "A counter.", labels={"kind": ("a", "b")})
OPEN = Metric("x_open_total", "counter", "An open counter.", labels={"name": (), "source": ("u", "v")})
GAUGE = Metric("x_gauge", "gauge", "A gauge.", labels={"kind": ("a", "b")})
HISTOGRAM = Metric("x_seconds", "histogram", "A histogram.", buckets=(1, 2, 5))
STATE = Metric("x_state", "state", "A state.", labels={"state": ("on", "off")})
INFO = Metric("x_info", "info", "An info.")


@pytest.fixture
def store() -> Store:
    return Store((COUNTER, OPEN, GAUGE, HISTOGRAM, STATE, INFO))


def samples(store: Store) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_text(store.text())
        for sample in family.samples
    }


def value(store: Store, name: str, /, **labels: str) -> float | None:
    return samples(store).get((name, frozenset(labels.items())))


@pytest.mark.parametrize(
    "metric", [m for m in METRICS if m.kind in ("counter", "histogram", "state")], ids=lambda m: m.name
)
def test_every_listed_combination_exists_at_zero_from_the_start(metric: Metric) -> None:
    text = Store((metric,)).text()
    found = [line for line in text.splitlines() if not line.startswith("#")]
    combinations = 0 if () in metric.labels.values() else math.prod(map(len, metric.labels.values()))
    series = {
        "counter": 1,
        "state": 1,
        "histogram": len(metric.buckets) + (3 if metric.buckets and metric.buckets[0] >= 0 else 1),
    }
    assert len(found) == combinations * series[metric.kind]
    assert all(line.rsplit(" ", 1)[1] == "0.0" for line in found)


def test_a_gauge_without_a_reading_is_absent_and_nan_is_a_reading(store: Store) -> None:
    assert value(store, "x_gauge", kind="a") is None
    store.set("x_gauge", math.nan, kind="a")
    assert math.isnan(value(store, "x_gauge", kind="a") or 0.0)
    assert value(store, "x_gauge", kind="b") is None


def test_no_created_samples_in_either_format(store: Store) -> None:
    store.observe_many("x_seconds", [1.0])
    with_created = [name for name, _ in samples(store) if name.endswith("_created")]
    assert with_created == []


def test_openmetrics_scrape_parses_and_has_no_created() -> None:
    store = Store(METRICS)
    port = store.serve()
    try:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
        )
        text = urllib.request.urlopen(request, timeout=10).read().decode()
    finally:
        store.close()
    assert text.endswith("# EOF\n")
    families = parse_openmetrics(text)  # type: ignore[no-untyped-call]
    names = {sample.name for family in families for sample in family.samples}
    assert "rl_trainer_steps_total" in names
    assert not [name for name in names if name.endswith("_created")]


def test_open_labels_appear_when_first_set(store: Store) -> None:
    assert value(store, "x_open_total", name="lr", source="u") is None
    store.inc("x_open_total", 0, name="lr", source="u")
    assert value(store, "x_open_total", name="lr", source="u") == 0.0
    store.inc("x_open_total", 2, name="lr", source="u")
    assert value(store, "x_open_total", name="lr", source="u") == 2.0


def test_histogram_counts_at_its_bounds_and_leaves_out_what_is_not_finite(store: Store) -> None:
    store.observe_many("x_seconds", [1, 2, 2.5, 9, math.nan, math.inf])
    assert [value(store, "x_seconds_bucket", le=le) for le in ("1.0", "2.0", "5.0", "+Inf")] == [1, 2, 3, 4]
    assert value(store, "x_seconds_count") == 4
    assert value(store, "x_seconds_sum") == 14.5


def test_state_is_one_for_exactly_one_value(store: Store) -> None:
    store.state("x_state", "on")
    store.state("x_state", "off")
    assert (value(store, "x_state", state="on"), value(store, "x_state", state="off")) == (0.0, 1.0)


def test_info_carries_its_facts(store: Store) -> None:
    store.info("x_info", name="n", version="1")
    assert value(store, "x_info", name="n", version="1") == 1.0


@pytest.mark.parametrize(
    "mistake",
    [
        lambda store: store.inc("y_total"),
        lambda store: store.inc("x_total"),
        lambda store: store.inc("x_total", kind="c"),
        lambda store: store.inc("x_total", kind="a", more="b"),
        lambda store: store.set("x_total", 1, kind="a"),
        lambda store: store.inc("x_total", -1, kind="a"),
        lambda store: store.inc("x_total", math.nan, kind="a"),
        lambda store: store.state("x_state", "broken"),
        lambda store: store.inc("x_open_total", name="lr", source="w"),
    ],
)
def test_unknown_metric_label_or_amount_raises_and_changes_nothing(store: Store, mistake) -> None:  # type: ignore[no-untyped-def]
    before = store.text()
    with pytest.raises((KeyError, TypeError, ValueError)):
        mistake(store)
    assert store.text() == before


def test_one_scrape_never_mixes_two_steps(store: Store) -> None:
    enough = threading.Event()

    def train() -> None:
        step = 0
        while not enough.is_set():
            step += 1
            with store.update():
                store.set("x_gauge", step, kind="a")
                time.sleep(0)  # gives the scraper every chance to come between
                store.inc("x_total", kind="a")
                store.set("x_gauge", step, kind="b")

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(300):
            now = {(s.name, *s.labels.values()): s.value for family in store.collect() for s in family.samples}
            assert now.get(("x_gauge", "a")) == now.get(("x_gauge", "b"))
            assert now.get(("x_gauge", "a"), 0) == now[("x_total", "a")]
    finally:
        enough.set()
        thread.join()
    assert now[("x_total", "a")] > 0


def test_server_is_on_loopback_and_its_port_is_free_after_close() -> None:
    store = Store(CONTROLLER)
    port = store.serve()
    assert b"rl_controller_mode" in urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read()
    store.close()
    again = Store(CONTROLLER)
    assert again.serve(port=port) == port
    again.close()


def test_multiprocess_directory_of_another_library_does_not_touch_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: Store
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    store.inc("x_total", kind="a")
    assert value(store, "x_total", kind="a") == 1.0
    assert list(tmp_path.iterdir()) == []
