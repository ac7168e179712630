"""The summary of the comparison compares at equal cost, whatever a method has spent in all."""

import json
import sys
from math import isnan
from pathlib import Path
from typing import Any

import pytest

from bench.tuning import compare
from bench.tuning.compare import at, compute_to, ends, harm, interval, summary
from bench.tuning.lab import STEP
from bench.tuning.targets import advantages, gap, report

BUDGET = 160 * STEP


def row(arm: str, seed: int, final: float, spare: float = 0.0) -> dict[str, object]:
    """A straight line from 0.1; `spare` completions for each of its own."""
    points = [(share * BUDGET, (1 + spare) * share * BUDGET, 0, 0.1 + share * (final - 0.1)) for share in (0, 0.5, 1)]
    return {"start": "tuned", "arm": arm, "seed": seed, "steps": 160, "curve": points, "cpu_seconds": 1.0}


def test_at_equal_total_compute_a_population_is_read_where_it_has_spent_what_the_others_have() -> None:
    population = row("pbt", 0, 0.9, spare=3.0)["curve"]
    assert at(population, 0, BUDGET) == pytest.approx(0.9)  # type: ignore[arg-type]
    assert at(population, 1, BUDGET) == pytest.approx(0.3)  # type: ignore[arg-type]
    assert isnan(at(row("none", 0, 0.8)["curve"], 0, 2 * BUDGET)), "nobody knows where it was not run"  # type: ignore[arg-type]
    assert compute_to(population, 0, 0.5) == pytest.approx(BUDGET / 2)  # type: ignore[arg-type]
    assert compute_to(population, 0, 0.7) == pytest.approx(0.75 * BUDGET), "between two evaluations"  # type: ignore[arg-type]
    assert compute_to(population, 1, 0.5) == pytest.approx(2 * BUDGET)  # type: ignore[arg-type]
    assert compute_to(row("none", 0, 0.8)["curve"], 0, 0.85) == float("inf")  # type: ignore[arg-type]


def test_harm_is_counted_against_the_same_seed_without_a_controller() -> None:
    rows = [row("none", s, 0.8) for s in (0, 1, 2)]
    rows += [row("inline", 0, 0.795), row("inline", 1, 0.78), row("inline", 7, 0.1)]
    line = next(line for line in summary(rows).splitlines() if "| inline |" in line)
    assert "| 1 of 2 |" in line


def test_an_interval_holds_the_mean_and_grows_with_the_spread_of_the_seeds() -> None:
    mean, low, high = interval([0.6, 0.7, 0.8, 0.9])
    assert low < mean < high
    assert high - low > interval([0.74, 0.75, 0.75, 0.76])[2] - interval([0.74, 0.75, 0.75, 0.76])[1]


def of(start: str, arm: str, seed: int, final: float, share: float = 1.0) -> dict[str, object]:
    """A run at one start that ends so, and spends this share of the budget on its own device."""
    points = [(part * share * BUDGET, part * BUDGET, 0, part * final) for part in (0, 1)]
    return {"start": start, "arm": arm, "seed": seed, "steps": 160, "curve": points, "cpu_seconds": 1.0}


def test_the_targets_are_judged_seed_by_seed_and_only_where_both_sides_were_run() -> None:
    rows = [of("tuned", "none", s, 0.8) for s in (0, 1)] + [of("lr6low", "none", s, 0.4) for s in (0, 1)]
    rows += [of("lr6low", "inline", 0, 0.6), of("lr6low", "inline", 7, 0.1)]
    rows += [of("tuned", "auto", 0, 0.8), of("tuned", "auto", 1, 0.7)]
    rows += [of("lr6low", rival, 0, rate, share=0.25) for rival, rate in (("pbt", 0.5), ("pb2", 0.7))]
    at_wall, at_compute = ends(rows, 0), ends(rows, 1)
    assert gap(at_wall, "inline") == pytest.approx([0.5])
    assert harm(at_wall, "tuned", "auto") == (1, 2)
    assert ("lr6low", "pbt") not in at_wall, "it was not run so far"
    table = advantages(at_compute, "inline")
    assert {rival: pytest.approx(d) for rival, d in table["lr6low"].items()} == {"pbt": [0.1], "pb2": [-0.1]}
    assert table.keys() == {"lr6low"}
    assert "rivals, inline: better than both at 0 of 1 starts" in report(rows)


def test_a_population_that_took_a_share_of_the_steps_does_not_stand_for_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[tuple[str, float]] = []

    def row_(start: str, arm: str, seed: int, steps: int, keep: Any, share: float) -> dict[str, object]:
        shares.append((arm, share))
        return {**of(start, arm, seed, 0.5, share), "share": share}

    monkeypatch.setattr(compare, "row", row_)
    out = tmp_path / "rows.jsonl"
    for share in ("0.25", "0.25", "1.0"):
        words = f"compare run --out {out} --starts tuned --arms none,pbt --seeds 0 --share {share}"
        monkeypatch.setattr(sys, "argv", words.split())
        compare.main()
    assert shares == [("none", 1.0), ("pbt", 0.25), ("pbt", 1.0)]
    assert [json.loads(line)["share"] for line in out.read_text().splitlines()] == [1.0, 0.25, 1.0]
