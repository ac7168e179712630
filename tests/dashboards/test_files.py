"""The files are what the generator makes, in a shape that Grafana reads, with nothing in them that it would not know."""

import copy
import json
import warnings
from itertools import combinations
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from controlplane.alerts.__main__ import POLICY
from controlplane.alerts.limits import limits
from controlplane.policy import load
from dashboards.build import FOLDER, SHIPPED, build, differences, write
from tests.dashboards.files import LOADED, NAMES, panels

plugins.register_default_plugins()


def lost(wanted: Any, got: Any, at: str = "") -> list[str]:
    """Paths of what is in `wanted` and not, or not so, in `got`."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        return [
            p for key in wanted for p in (lost(wanted[key], got[key], f"{at}.{key}") if key in got else [f"{at}.{key}"])
        ]
    if isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
        return [p for i, (a, b) in enumerate(zip(wanted, got, strict=True)) for p in lost(a, b, f"{at}[{i}]")]
    return [] if wanted == got else [at]


def round_trip(board: dict[str, Any]) -> list[str]:
    """What Grafana's own types do not know."""
    with warnings.catch_warnings():
        # It would rather have the format of Grafana 13, which cannot be provisioned from files.
        warnings.simplefilter("ignore", DeprecationWarning)
        read = Dashboard.from_json(copy.deepcopy(board))
        return lost(board, json.loads(JSONEncoder(sort_keys=True).encode(read)))


def test_the_files_are_what_the_generator_makes() -> None:
    assert differences() == []
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(NAMES)


def test_a_changed_missing_or_foreign_file_is_found(tmp_path: Any) -> None:
    write(tmp_path)
    assert differences(tmp_path) == []
    (tmp_path / "overview.json").write_text("{}")
    (tmp_path / "learning.json").unlink()
    (tmp_path / "old.json").write_text("{}")
    found = "\n".join(differences(tmp_path))
    assert "overview.json: differs" in found
    assert "learning.json: is missing" in found
    assert "old.json: no dashboard" in found


@pytest.mark.parametrize("name", NAMES)
def test_grafanas_own_types_know_every_option(name: str) -> None:
    assert round_trip(LOADED[name]) == []


@pytest.mark.parametrize(
    ("place", "typo"),
    [
        (lambda b: b, "timzone"),
        (lambda b: next(panels(b)), "descripton"),
        (lambda b: next(p for p in panels(b) if p["type"] == "timeseries")["fieldConfig"]["defaults"]["custom"], "lineWdth"),
        (lambda b: next(p for p in panels(b) if p["type"] == "timeseries")["options"], "spanNulls"),
        (lambda b: next(p for p in panels(b) if p["type"] == "stat")["options"], "grapMode"),
        (lambda b: next(panels(b))["targets"][0], "legendFormt"),
    ],
)  # fmt: skip
def test_a_misspelt_or_misplaced_option_would_be_found(place: Any, typo: str) -> None:
    board = copy.deepcopy(LOADED["overview"])
    place(board)[typo] = True
    assert round_trip(board) != []


@pytest.mark.parametrize("name", NAMES)
def test_panels_have_their_own_place_and_number(name: str) -> None:
    board = LOADED[name]
    flat = [p for panel in board["panels"] for p in (panel, *panel.get("panels", ()))]
    ids = [p["id"] for p in flat]
    assert len(set(ids)) == len(ids)
    shown = [p["gridPos"] for p in board["panels"]]
    assert all(g["x"] >= 0 and g["x"] + g["w"] <= 24 for g in shown)
    for a, b in combinations(shown, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]


def test_tiles_are_large_enough_for_their_curve() -> None:
    """Below 4 columns, or under 4 rows, Grafana leaves the curve of a tile out."""
    tiles = [
        p
        for board in LOADED.values()
        for p in panels(board)
        if p["type"] == "stat" and p["options"]["graphMode"] == "area"
    ]
    assert tiles
    assert all(p["gridPos"]["w"] >= 4 or p["gridPos"]["h"] >= 5 for p in tiles)


def test_nothing_needs_a_grafana_newer_than_10_4() -> None:
    """Panel types and options of 10.4; `schemaVersion` 39 is what it writes."""
    known = {"timeseries", "stat", "table", "state-timeline", "heatmap"}
    for board in LOADED.values():
        assert board["schemaVersion"] == 39
        assert {p["type"] for p in panels(board)} <= known


def test_a_policy_moves_its_lines(tmp_path: Any) -> None:
    policy = tmp_path / "mine.yaml"
    policy.write_text(
        "policy: v1\nname: mine\ndetectors:\n"
        "  cut: {kind: level, signal: truncation, above: 0.33}\n  idle: {kind: level, signal: utilization, below: 0.44}\n"
    )
    made = build(str(policy))
    cut = next(p for p in panels(made["rollouts.json"]) if p["title"] == "Cut off by the length limit")
    assert [s["value"] for s in cut["fieldConfig"]["defaults"]["thresholds"]["steps"]] == [None, 0.33]
    assert cut["fieldConfig"]["defaults"]["custom"]["thresholdsStyle"]["mode"] == "dashed"
    used = next(p for p in panels(made["overview.json"]) if p["title"] == "Devices in use")
    low, high = used["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert (low["color"], high["value"]) == ("semi-dark-red", 0.44)
    norm = next(p for p in panels(made["learning.json"]) if p["title"] == "Gradient norm")
    assert norm["fieldConfig"]["defaults"]["custom"]["thresholdsStyle"]["mode"] == "off"


def test_a_line_and_its_alert_have_one_number() -> None:
    drawn = limits(load(SHIPPED))
    lines = {"Pass rate": drawn.pass_rate, "Length of a completion": drawn.gen_length, "Entropy": drawn.entropy}
    for title, number in lines.items():
        panel = next(p for board in LOADED.values() for p in panels(board) if p["title"] == title)
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"] == number
    assert POLICY == SHIPPED


def test_mounting_the_folder_provisions_source_and_dashboards() -> None:
    root = FOLDER.parent.parent
    provider = yaml.safe_load((root / "dashboards" / "scalerl.yaml").read_text())["providers"][0]
    assert provider["options"]["path"] == f"/etc/grafana/provisioning/{FOLDER.relative_to(root)}"
    assert provider["type"] == "file"
    source = yaml.safe_load((root / "datasources" / "prometheus.yaml").read_text())["datasources"][0]
    assert source["type"] == "prometheus"
    # Grafana reads every YAML file of these two folders, and none below them.
    assert not [p for p in FOLDER.rglob("*") if p.suffix in (".yaml", ".yml")]
