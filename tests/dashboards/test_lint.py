"""The rules of Grafana's dashboard-linter, and ours: units, words, colours, variables."""

import re
from typing import Any

import pytest

from tests.dashboards.files import LOADED, NAMES, panels

PANELS = [pytest.param(p, id=f"{n}-{p['title']}") for n, board in LOADED.items() for p in panels(board)]
TOTALS = frozenset({"[$__rate_interval]", "[$__range]", "[15m]"})
"""Windows of rates: as Grafana chooses it; the whole time shown, for a total; a quarter of an hour for the time that is left."""


def variables(board: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {v["name"]: v for v in board["templating"]["list"]}


@pytest.mark.parametrize("name", NAMES)
def test_the_data_source_is_a_variable(name: str) -> None:
    source = variables(LOADED[name])["datasource"]
    assert (source["type"], source["query"], source["label"]) == ("datasource", "prometheus", "Data source")


@pytest.mark.parametrize("name", NAMES)
def test_job_and_run_are_variables_that_follow_the_time(name: str) -> None:
    found = variables(LOADED[name])
    run = found["runs"] if name in ("compare", "stages") else found["run"]
    assert run["multi"] == (name in ("compare", "stages"))
    assert (found["job"]["multi"], found["job"]["allValue"]) == (True, ".+")
    curve = [found["curve"]] if name in ("overview", "controller", "compare") else []
    assert ("curve" in found) == bool(curve)
    for variable in (found["job"], run, *curve):
        assert variable["refresh"] == 2
        assert variable["datasource"]["uid"] == "${datasource}"
    assert "sort_desc" in run["query"]["query"]
    assert re.search(run["regex"].strip("/"), '{run="a-run"} 1.7e9 1764000000000')[1] == "a-run"  # type: ignore[index]


@pytest.mark.parametrize("name", NAMES)
def test_dashboards_are_told_apart_and_joined(name: str) -> None:
    board = LOADED[name]
    assert board["uid"] == f"scalerl-{name}"
    assert board["title"]
    assert board["description"]
    link = board["links"][0]
    assert (link["tags"], link["includeVars"], link["keepTime"]) == (["scalerl"], True, True)
    assert "scalerl" in board["tags"]
    assert (board["graphTooltip"], board["timezone"], board["editable"]) == (1, "browser", False)


@pytest.mark.parametrize("name", NAMES)
def test_actions_alerts_and_restarts_are_marked_from_prometheus(name: str) -> None:
    marks = {a["name"]: a for a in LOADED[name]["annotations"]["list"]}
    assert "rl_controller_decisions_total" in marks["Controller"]["expr"]
    assert 'ALERTS{alertstate="firing"' in marks["Alerts"]["expr"]
    assert "rl_trainer_start_timestamp_seconds" in marks["Restarts"]["expr"]
    assert all(marks[n]["datasource"]["uid"] == "${datasource}" for n in ("Controller", "Alerts", "Restarts"))
    assert "scalerl" in marks["Reasons"]["target"]["tags"]


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_says_what_it_means_and_from_which_metric(panel: dict[str, Any]) -> None:
    assert panel["title"]
    meaning, _, metrics = panel["description"].rpartition("\n\n")
    assert len(meaning.split()) >= 4
    assert re.fullmatch(r"Metrics?: (`[\w:]+`(, )?)+", metrics), metrics


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_asks_the_chosen_source_for_the_chosen_run(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    refs = [target["refId"] for target in panel["targets"]]
    assert len(set(refs)) == len(refs)
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"
        for selector in re.findall(r"rl_\w+\{([^}]*(?:\}[^,}]*)?)", target["expr"]):
            assert 'job=~"$job"' in selector
            assert re.search(r'run=~"\$\{?(run|runs|stage\d)\b', selector), selector


@pytest.mark.parametrize("panel", PANELS)
def test_counters_are_read_as_rates_over_a_window_that_fits_the_scrapes(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        for match in re.finditer(r"rl_\w+_(?:total|bucket|sum|count)\{[^[]*?\}(\[[^]]*\])?", target["expr"]):
            before = target["expr"][: match.start()]
            assert before.endswith(("rate(", "increase(")), f"{match[0]} is not in a rate"
            assert match[1] in TOTALS


@pytest.mark.parametrize("panel", PANELS)
def test_numbers_have_units_and_no_data_has_words(panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    known = {"percentunit", "s", "bytes", "short", "none", "sci", "watt", "celsius"}
    assert defaults["unit"] in known or defaults["unit"].startswith("suffix: ")
    assert defaults["noValue"]
    if panel["type"] != "heatmap":
        special = [m for m in defaults["mappings"] if m["type"] == "special"]
        assert special[0]["options"]["match"] == "nan"


@pytest.mark.parametrize("panel", PANELS)
def test_names_of_lines_use_labels_that_the_query_keeps(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        kept = {label.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(",")}
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept


@pytest.mark.parametrize("panel", PANELS)
def test_divisions_by_nothing_have_no_value(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        for divisor in re.findall(r"/ (?:on \([\w, ]*\) )?(\S+)", target["expr"]):
            assert divisor.startswith("("), f"{divisor}: a divisor that may be zero"
        assert target["expr"].count(" / ") <= target["expr"].count("> 0)")


@pytest.mark.parametrize("panel", PANELS)
def test_colour_judges_or_tells_lines_apart(panel: dict[str, Any]) -> None:
    """Grafana's own default, green and red at 80, says nothing about a pass rate."""
    defaults = panel["fieldConfig"]["defaults"]
    steps = defaults.get("thresholds", {}).get("steps", [])
    assert 80 not in [step["value"] for step in steps]
    assert "green" not in [step["color"] for step in steps]
    if panel["type"] == "stat":
        judged = len(steps) > 1 or any(m["type"] == "value" for m in defaults["mappings"])
        assert panel["options"]["colorMode"] == ("value" if judged else "none")
    if len(steps) > 1 and panel["type"] == "timeseries":
        assert defaults["custom"]["thresholdsStyle"]["mode"] == "dashed"


def test_the_controllers_limits_come_from_the_policy_in_force() -> None:
    exprs = [t["expr"] for p in panels(LOADED["controller"]) for t in p["targets"]]
    assert any("rl_policy_threshold" in expr for expr in exprs)


def test_the_stages_are_the_plan_that_was_asked_for() -> None:
    table = next(p for p in panels(LOADED["stages"]) if p["title"] == "Stages")
    targets = re.findall(r"vector\(([\d.]+)\)", table["targets"][0]["expr"])
    assert [float(t) for t in targets] == [0.60, 0.75, 0.85, 0.90]
    headings = list(table["transformations"][-1]["options"]["renameByName"].values())
    assert headings == ["Stage", "Activity", "Metric", "Target", "Current", "Gap"]
