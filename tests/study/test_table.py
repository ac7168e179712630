"""The words and figures of the tables."""

from controlplane.study.compare import Comparison, Row
from controlplane.study.fits import PAPER, RELATIVE, Interval
from controlplane.study.repeat import Spread, spread
from controlplane.study.table import comparison, comparison_notes, grid_words, margin_words, markdown, number

FOUND = Comparison(
    reference="ref",
    margin=0.02,
    common_A=0.905,
    rows=(
        Row(
            "ref", "ScaleRL", 1, A=0.91, B=1.94, C_mid=19.8, A_interval=Interval(0.88, 0.91, 0.95),
            B_interval=Interval(1.6, 1.9, 2.4), verdict="reference", difference=0.0, B_common=2.01, C_mid_common=19.4,
            B_common_interval=Interval(1.8, 2.0, 2.3), final=0.88, final_error=0.01, steps=150, completions=19_200,
            device_seconds=81.4, minutes=1.62, paper={"A": 0.61, "B": 1.92, "B_common": 2.01, "C_mid": 2542.0},
        ),
        Row(
            "low", "DAPO loss", 1, A=0.8, B=1.5, C_mid=2012.0, edges=("A",), verdict="lower", difference=-0.11,
            p_equal=0.034, final=0.75, final_error=0.012, steps=150, completions=19_200, device_seconds=90.0, minutes=2.0,
        ),
        Row("gone", "sample average", 0, problems=("gone-seed1 failed: out of memory",)),
    ),
)  # fmt: skip

GOLDEN = """
| variant        | B at A = 0.905 | C_mid at A = 0.905 | B | C_mid | A | A by the ±0.02 rule | P(equal) | held-out, end | completions | device-s | minutes | paper: B | paper: A |
| **ScaleRL** | 2.01 [1.80, 2.30] | 19.4 | 1.94 [1.60, 2.40] | 19.8 | 0.910 [0.880, 0.950] | reference | - | 0.880 ± 0.010 | 19,200 | 81 | 1.6 | 2.01 | 0.610 |
| DAPO loss | - | - | 1.50 | 2,012 | 0.800* | lower (-0.110) | 3% | 0.750 ± 0.012 | 19,200 | 90 | 2.0 | - | - |
| sample average | - | - | - | - | - | no run | - | - | - | - | - | - | - |
""".strip()


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_is_as_written_down_here() -> None:
    assert cells(comparison(FOUND)) == cells(GOLDEN)


def test_columns_line_up_and_the_rule_is_valid_markdown() -> None:
    lines = markdown(["a", "b"], [["x", "1"], ["long", "12.5"]]).splitlines()
    assert lines == ["| a    |    b |", "| ---- | ---: |", "| x    |    1 |", "| long | 12.5 |"]
    assert markdown(["a", "b"], [["x", "1"]]).splitlines()[1] == "| --- | --: |"


def test_the_notes_say_what_the_table_cannot() -> None:
    notes = " ".join(comparison_notes(FOUND, "completions", RELATIVE, [0.118, 0.118]))
    assert "Compute is completions; R_0 = 0.118" in notes
    assert "no evaluation dropped" in notes
    assert "* at the edge of the grid" in notes
    assert "One run per variant" in notes
    assert "sample average: gone-seed1 failed: out of memory" in notes


def test_overlapping_intervals_leave_the_order_unsettled() -> None:
    other = Row("b", "b", 2, A=0.9, B=1.9, C_mid=20.0, B_common=1.9, B_common_interval=Interval(1.7, 1.9, 1.85))
    apart = Row("b", "b", 2, A=0.9, B=1.0, C_mid=20.0, B_common=1.0, B_common_interval=Interval(0.9, 1.0, 1.2))
    for row, settled in ((other, False), (apart, True)):
        found = Comparison("ref", 0.02, 0.905, (FOUND.rows[0], row))
        notes = " ".join(comparison_notes(found, "steps", RELATIVE, [0.1]))
        assert ("the order is not settled" in notes) is not settled


def test_the_grid_and_its_cut_are_named() -> None:
    assert "dropped" in grid_words(PAPER)
    assert "40,000" in grid_words(PAPER)


def test_the_margin_to_use_is_rounded_up() -> None:
    assert "--margin 0.035" in margin_words(Spread(0.9, 0.0312, 0.02))
    assert "--margin" not in margin_words(Spread(0.9, 0.015, 0.01))


def test_a_spread_is_around_the_mean() -> None:
    found = spread([0.6, 0.61, 0.59])
    assert round(found.mean, 6) == 0.6
    assert round(found.deviation, 6) == 0.01
    assert round(found.sd, 6) == 0.01


def test_a_compute_is_written_as_suits_its_size() -> None:
    assert [number(value, 4) for value in (2542.0, 25.37, 0.0712)] == ["2,542", "25.4", "0.071"]
    assert number(None, 2) == "-"
