"""The three commands from end to end, on files."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controlplane.cli import app
from controlplane.contract.yamlfile import FileError
from controlplane.fitting import compared as comparing
from controlplane.policy.models import PriorOf
from tests.fitting.curves import law, points, write_csv, write_results
from tests.study import pretender
from tests.study.quick import QUICK


def run(*words: object) -> str:
    found = CliRunner().invoke(app, [str(word) for word in words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code in (0, 1)
    return found.output


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "log.csv", ["step", "eval_pass_rate"], points(41, 1000.0))


def test_fit_says_parameters_forecast_verdict_and_draws_it(log: Path) -> None:
    said = run("fit", log, "--upto", 500, "--target", 0.65, "--per-hour", 10, "--price", 2)
    assert "21 evaluations up to 500.0 steps" in said
    assert "budget: 1000, where the curve ends" in said
    assert "; came 0." in said
    assert "Go on: pass rate 0.65 at compute 1000" in said
    assert "The compute left costs 1,000." in said
    assert "stage 60%" in said
    assert any("\u2800" < character < "\u28ff" for character in said)  # braille: the chart


def test_fit_as_json_has_the_same_numbers(log: Path, tmp_path: Path) -> None:
    (found,) = json.loads(run("fit", log, "--upto", 500, "--json", "--out", tmp_path / "out", "--target", 0.69))
    assert found["points"] == 21
    low, _, high = found["parameters"]["A"]
    assert low < 0.7 < high
    (end,) = found["forecast"]
    assert end["came"] == pytest.approx(law(1000.0), abs=0.02)
    assert end["interval95"][0] < end["interval80"][0] < end["came"] < end["interval80"][1] < end["interval95"][1]
    assert [stage["target"] for stage in found["economics"]["stages"]] == [0.6, 0.75, 0.85, 0.9]
    assert (tmp_path / "out" / "forecast.png").stat().st_size > 10_000
    assert "<svg" in (tmp_path / "out" / "forecast.svg").read_text()


def test_fit_takes_finished_runs_as_a_prior_and_point_fits_for_comparison(log: Path, tmp_path: Path) -> None:
    finished = [
        write_csv(tmp_path / f"r{i}.csv", ["step", "eval_pass_rate"], points(41, 1000.0, seed=i)) for i in (1, 2)
    ]
    early = ("fit", log, "--upto", 150, "--json")
    (alone,) = json.loads(run(*early))
    (helped,) = json.loads(run(*early, "--prior", finished[0], "--prior", finished[1]))

    def width(found: dict[str, list[dict[str, list[float]]]]) -> float:
        low, high = found["forecast"][0]["interval80"]
        return high - low

    assert width(helped) < 0.5 * width(alone)
    assert alone["prior"] is None
    assert PriorOf.model_validate(helped["prior"]).A[0] == pytest.approx(0.7, abs=0.02)
    (plain,) = json.loads(run("fit", log, "--method", "curve_fit", "--json"))
    assert plain["economics"] is None
    assert plain["parameters"]["A"][1] == pytest.approx(0.7, abs=0.02)


def test_fit_refuses_what_it_cannot_answer(log: Path) -> None:
    hours = write_csv(log.parent / "hours.csv", ["gpu_hours", "eval_pass_rate"], points())
    for words, says in (
        (("fit",), "nothing to fit"),
        (("fit", log, "--method", "magic"), "--method: must be one of posterior"),
        (("fit", log, "--bounds", "1"), "give LOW,HIGH"),
        (("fit", log, "--at", "10"), "before the last observed"),
        (("fit", log, "--prometheus", "http://127.0.0.1:1"), "belong together"),
        (("fit", log, "--target", "1.5"), "target 1.5"),
        (("fit", log, "--upto", "-1"), "no point at or before compute -1"),
        (("fit", log, "--prior", hours), "steps|GPU-hours; finished runs need the unit"),
        (("fit", log.parent / "none.csv"), "none.csv: cannot be read"),
    ):
        with pytest.raises(FileError, match=says):
            run(*words)


def test_compare_reads_results_and_files_and_writes_table_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "RELATIVE", replace(QUICK, a_step=0.02, c_mid=(0.2, 0.6, 15)))
    results = write_results(tmp_path / "results.json", {"ours": 0.70, "twin": 0.705})
    worse = write_csv(tmp_path / "worse.csv", ["step", "eval_pass_rate"], points(a=0.55, seed=5))
    out = tmp_path / "out"
    said = run("compare", results, f"bad={worse}", "--reference", "ours", "--out", out)
    rows = {line.split("|")[1].strip(): line for line in said.splitlines() if line.startswith("| ")}
    assert "reference" in rows["**ours**"]
    assert "equal" in rows["twin"]
    assert "lower" in rows["bad"]
    found = json.loads((out / "compare.json").read_text())
    by_name = {row["name"]: row for row in found["rows"]}
    assert by_name["twin"]["B_common"] is not None
    assert by_name["bad"]["B_common"] is None
    assert by_name["ours"]["runs"] == 2
    assert by_name["ours"]["A_interval"]["low"] < 0.7 < by_name["ours"]["A_interval"]["high"]
    for picture in ("compare", "curves", "linear"):
        assert (out / f"{picture}.png").stat().st_size > 5_000
    assert "[" in rows["twin"]  # intervals, not bare numbers


def test_compare_needs_two_arms_and_a_start(tmp_path: Path) -> None:
    one = write_csv(tmp_path / "one.csv", ["step", "eval_pass_rate"], points())
    late = write_csv(tmp_path / "late.csv", ["step", "eval_pass_rate"], points()[1:])
    with pytest.raises(FileError, match="only one arm"):
        run("compare", one)
    with pytest.raises(FileError, match="evaluation at compute 0"):
        run("compare", one, late)
    with pytest.raises(FileError, match="--axis"):
        run("compare", one, late, "--axis", "watts")


def test_backtest_scores_every_method_on_a_folder_with_and_without_an_index(tmp_path: Path) -> None:
    entries = []
    for i, family in enumerate(("a", "a", "b")):
        name = f"{family}__{i}"
        write_csv(tmp_path / f"{name}.csv", ["step", "score"], [(c, 2 * y - 1) for c, y in points(40, 1000.0, seed=i)])
        entries.append({"name": name, "family": family, "metric": "score", "lo": -1, "hi": 1})
    bare = run("backtest", tmp_path, "--fraction", 0.5, "--horizon", 2)
    (tmp_path / "index.json").write_text(json.dumps(entries))
    said = run("backtest", tmp_path, "--families")
    ours = next(line for line in said.splitlines() if line.startswith("| ours "))
    cells = [cell.strip() for cell in ours.split("|")]
    assert cells[2:4] == ["9", "2"]  # the first 10 % has too few points
    assert float(cells[4]) < 0.12
    assert "Family b:" in said
    assert "| last value" in bare
    rows = json.loads(run("backtest", tmp_path, "--json"))
    assert {row["method"] for row in rows} >= {"ours", "ScaleRL protocol", "curve_fit", "power law", "last value"}
    assert all(math.isfinite(row["middle"]) for row in rows)


def test_a_curve_that_cannot_be_used_is_named_and_the_others_are_scored(tmp_path: Path) -> None:
    write_csv(tmp_path / "good.csv", ["step", "eval_pass_rate"], points(60, 1000.0))
    (tmp_path / "bad.csv").write_text("nothing\nhere\n")
    found = CliRunner().invoke(app, ["backtest", str(tmp_path), "--fraction", "0.5"])
    assert found.exit_code == 1
    assert "bad.csv" in found.output
    assert "| ours" in found.output
    with pytest.raises(FileError, match="not a folder"):
        run("backtest", tmp_path / "none")


def test_run_directories_are_fitted_and_compared_on_the_axis_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "RELATIVE", replace(QUICK, a_step=0.02, c_mid=(0.1, 0.6, 15)))
    for name, a in (("good", 0.9), ("poor", 0.6)):
        settings = {"name": name, "seed": "1", "A": str(a), "steps": "60"}
        command = [sys.executable, pretender.__file__, str(tmp_path / name), json.dumps(settings)]
        subprocess.run(command, check=True)
    (found,) = json.loads(run("fit", tmp_path / "good", "--json"))
    assert found["unit"] == "device-seconds"
    assert found["points"] == 13
    assert found["parameters"]["R0"][1] == pytest.approx(0.12, abs=0.02)
    said = run("compare", tmp_path / "good", tmp_path / "poor", "--axis", "steps", "--json")
    rows = {row["name"]: row for row in json.loads(said)["rows"]}
    assert rows["poor"]["verdict"] == "lower"
    assert rows["good"]["C_mid"] == pytest.approx(15.0, rel=0.2)
    assert rows["good"]["device_seconds"] == 30.0
    mixed = write_csv(
        tmp_path / "tokens.csv", ["step", "num_tokens", "eval_pass_rate"], [(c, c, y) for c, y in points()]
    )
    with pytest.raises(FileError, match="compute is in device-seconds and in tokens"):
        run("compare", tmp_path / "good", mixed)
