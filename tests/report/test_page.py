"""The report is one file that fetches nothing, escapes everything and shows no NaN."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from controlplane.record import Record
from controlplane.report import write
from controlplane.report.page import page
from controlplane.report.plots import overview_png
from controlplane.report.theme import COLOURS
from tests.report.written import KINDS, PLANNED, Trainer

Recorded = Callable[[str], Record]
NASTY = "<script>alert(1)</script>&\"'"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Outline(HTMLParser):
    """Text and tags of a page; fails where tags do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.texts.append(data)


@pytest.mark.parametrize("kind", KINDS)
def test_every_run_gives_a_whole_page_that_fetches_nothing_and_shows_no_nan(record: Recorded, kind: str) -> None:
    html = page([record(kind)])
    outline = Outline(html)
    assert not {"script", "link", "img", "iframe", "object"} & set(outline.tags)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html)
    assert not re.search(r"\b(nan|inf|NaN|Infinity)\b", " ".join(outline.texts))
    assert not re.search(r'd="[^"]*\b(nan|inf)\b', html)


def test_every_text_of_a_run_is_escaped(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / NASTY.replace("/", "!"), name=NASTY)
    trainer.attach()
    trainer.write(130)
    run = Record.of(trainer.dir.root)
    run.policy = run.policy_text = NASTY
    assert run.info is not None
    run.info = run.info.model_copy(update=dict.fromkeys(("model", "algorithm", "framework"), NASTY))
    for index, look in enumerate(run.looks):
        change = {"reason": NASTY, "rule": NASTY}
        run.looks[index] = type(look)(
            look.seq, look.at, look.step, look.branch, look.decision.model_copy(update=change), look.findings
        )
    run.forecasts = [v.model_copy(update={"refused": True, "reason": NASTY}) for v in run.forecasts]
    html = page([run, run])
    assert "<script" not in html
    assert "alert(1)" in html
    assert "script" not in Outline(html).tags


def test_the_colours_of_the_pictures_follow_the_scheme_of_the_reader(record: Recorded) -> None:
    html = page([record("act")])
    body = html[html.index("<body") :]
    assert not [day for day, _ in COLOURS.values() if day in body]
    used = set(re.findall(r"var\(--(\w+)\)", html))
    assert used <= set(COLOURS)


def test_the_report_says_whether_the_end_lay_inside_the_band(record: Recorded) -> None:
    assert "Inside the band." in page([record("act")])
    assert "Outside the band." in page([record("observe")])
    assert "Refused." in page([record("broken")])


def test_a_comparison_says_who_recovered(record: Recorded) -> None:
    html = page([record("act"), record("observe"), record("undisturbed")])
    assert "demo-act met trouble and recovered; demo-observe met trouble and did not recover" in html
    assert html.count("<article>") == 4


def test_runs_of_one_name_can_be_told_apart(record: Recorded) -> None:
    run, other = record("act"), record("alone")
    assert run.info is not None
    other.info = run.info
    assert "demo-act (alone)" in page([run, other])


def test_the_same_record_gives_the_same_page(record: Recorded) -> None:
    assert page([record("collapsed")]) == page([record("collapsed")])


def test_the_report_is_one_file(record: Recorded, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write([record("act").rundir.root], out)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert out.stat().st_size < 400_000


@pytest.mark.parametrize("kind", ["act", "empty", "foreign"])
def test_the_overview_is_1200_pixels_wide(record: Recorded, tmp_path: Path, kind: str) -> None:
    overview_png(record(kind), tmp_path / "overview.png")
    with Image.open(tmp_path / "overview.png") as picture:
        assert picture.width == 1200


def test_a_run_whose_every_value_is_missing_is_still_reported(record: Recorded) -> None:
    run = record("act")
    run.steps = [{"step": row["step"], "branch": row["branch"]} for row in run.steps]
    run.evals = [{"step": row["step"], "dataset": "heldout", "pass_ratio": None} for row in run.evals]
    assert f"step {PLANNED} of {PLANNED}" in page([run])
