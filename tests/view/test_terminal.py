"""The live view fits its terminal, whatever the run looks like, and the plain form is plain."""

import io
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from controlplane.contract.documents import Phase
from controlplane.contract.rundir import RunDir, append_line
from controlplane.decide import Kind
from controlplane.digest import facts
from controlplane.record import Record
from controlplane.view.chart import Chart
from controlplane.view.plain import Told, news
from controlplane.view.terminal import gauge, render, watch
from tests.report.written import KINDS

Recorded = Callable[[str], Record]


def shown(record: Record, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(render(record, width, height, facts.last_seen(record) + 1))
    return capture.get().rstrip("\n").split("\n")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 50), (40, 12), (300, 20)])
def test_the_view_fits_its_terminal(record: Recorded, kind: str, width: int, height: int) -> None:
    lines = shown(record(kind), width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "nan" not in " ".join(lines)


def test_a_small_terminal_still_shows_verdict_forecast_and_newest_decision(record: Recorded) -> None:
    text = "\n".join(shown(record("recovering"), 80, 24))
    for wanted in (
        "RUNNING",
        "controller: act",
        "rollback at",
        "ends at 0.",
        "P(>= 0.90)",
        "pass_drop",
        "no rule holds",
        "act",
    ):
        assert wanted in text


def test_trouble_is_said_in_one_word(record: Recorded) -> None:
    run = record("observe")
    run.events = [event for event in run.events if event["event"] != "end"]
    assert run.observed is not None
    run.observed = run.observed.model_copy(update={"phase": Phase.training})
    run.looks = run.looks[:-1]
    assert "ALARM" in "\n".join(shown(run, 80, 24))
    run.looks = []
    assert "COLLAPSED" in "\n".join(shown(run, 80, 24))


def test_the_fault_is_not_in_the_live_view(record: Recorded) -> None:
    for kind in ("collapsed", "recovering", "act"):
        assert "fault" not in "\n".join(shown(record(kind), 160, 50))


@pytest.mark.parametrize("kind", KINDS)
def test_plain_lines_have_no_control_codes_and_are_told_once(record: Recorded, kind: str) -> None:
    run = record(kind)
    lines, told = news(run, Told())
    assert all(line.isprintable() for line in lines)
    assert news(run, told) == ([], told)


def test_plain_lines_told_piece_by_piece_are_the_same_lines(record: Recorded) -> None:
    run = record("act")
    whole, _ = news(run, Told())
    part = record("act")
    part.evals, part.looks, part.events = run.evals[:9], run.looks[:95], run.events[:10]
    first, told = news(part, Told())
    rest, _ = news(run, told)
    assert sorted(first + rest) == sorted(whole)
    assert sum("act" in line.split() for line in whole) == 1


def test_watch_writes_plain_lines_where_there_is_no_terminal_and_ends_with_the_run(runs: Callable[[str], Path]) -> None:
    out = io.StringIO()
    record = watch(runs("act"), threading.Event(), Console(file=out, force_terminal=False))
    assert facts.ended(record)
    assert "\x1b" not in out.getvalue()
    assert "roll back to step 100" in out.getvalue()


def test_watch_stops_when_it_is_told_to(runs: Callable[[str], Path]) -> None:
    stop = threading.Event()
    stop.set()
    assert not facts.ended(
        watch(runs("young"), stop, Console(file=io.StringIO(), force_terminal=True, width=80, height=24))
    )


class Script(threading.Event):
    """A stop that lets something happen to the run at each wait, and is set when nothing is left."""

    def __init__(self, *happenings: Callable[[], None]) -> None:
        super().__init__()
        self.left = list(happenings)

    def wait(self, timeout: float | None = None) -> bool:
        if not self.left:
            self.set()
            return True
        self.left.pop(0)()
        return False


def test_a_run_that_had_been_stopped_is_waited_for(runs: Callable[[str], Path], tmp_path: Path) -> None:
    root = tmp_path / "stopped"
    shutil.copytree(runs("young"), root)

    def happens(event: str) -> Callable[[], None]:
        return lambda: append_line(RunDir(root).events, {"event": event, "step": 64, "branch": 0, "time": 1.0})

    happens("stop")()
    stop, out = Script(lambda: None, happens("resume"), happens("stop"), lambda: None), io.StringIO()
    record = watch(root, stop, Console(file=out, force_terminal=False))
    assert facts.ended(record)
    assert len(stop.left) == 1, "ends by itself when the run stops again, and not before"


def test_a_controller_that_is_gone_is_said_to_be_gone(record: Recorded) -> None:
    run = record("recovering")
    console = Console(width=120, file=io.StringIO())
    with console.capture() as capture:
        console.print(render(run, 120, 30, run.looks[-1].at + 60))
    assert "controller: silent 1:00" in capture.get()
    run.controller_ended = True
    assert "controller: left" in "\n".join(shown(run, 120, 30))


def test_a_reason_with_control_codes_does_not_reach_the_terminal(record: Recorded) -> None:
    run = record("recovering")
    look = run.looks[-1]
    nasty = look.decision.model_copy(update={"reason": "a\x1b[2Jb\nc", "kind": Kind.page})
    run.looks.append(type(look)(look.seq + 1, look.at, look.step, look.branch, nasty, look.findings))
    assert "\x1b" not in "".join(shown(run, 80, 24))
    assert all(line.isprintable() for line in news(run, Told())[0])


@given(
    st.lists(st.tuples(st.floats(allow_nan=True, width=32), st.floats(allow_nan=True, width=32)), max_size=12),
    st.integers(1, 40),
    st.integers(1, 12),
)
def test_a_chart_has_its_size_whatever_is_drawn(points: list[tuple[float, float]], width: int, height: int) -> None:
    chart = Chart(width, height, (0.0, 100.0))
    chart.points(points, "", 1)
    chart.line([p for p in points if abs(p[0]) < 1e4 and abs(p[1]) < 1e2], "bold", 2)
    assert [row.cell_len for row in chart.rows()] == [width] * height


def test_the_more_important_layer_hides_the_lesser_one() -> None:
    chart = Chart(4, 2, (0.0, 1.0))
    chart.line([(0, 0.5), (1, 0.5)], "bold", 5)
    chart.band([(0, 0.0, 1.0), (1, 0.0, 1.0)], "dim", 1)
    styles = {span.style for row in chart.rows() for span in row.spans}
    assert styles == {"bold", "dim"}
    line_row = next(row for row in chart.rows() if any(span.style == "bold" for span in row.spans))
    assert all(span.style == "bold" for span in line_row.spans)


@pytest.mark.parametrize(
    ("outcome", "statistic", "threshold", "share", "level"),
    [
        ("ok", 4.0, 8.0, 0.5, "none"),
        ("ok", -1.0, 8.0, 0.0, "none"),
        ("ok", 7.0, 8.0, 0.875, "attention"),
        ("ok", 0.9, 0.45, 0.5, "none"),
        ("breach", 9.0, 8.0, 1.0, "bad"),
        ("inconclusive", float("nan"), 8.0, None, "none"),
        ("error", float("nan"), 8.0, None, "bad"),
    ],
)
def test_a_gauge_tells_how_near_the_threshold_is(
    outcome: str, statistic: float, threshold: float, share: float | None, level: str
) -> None:
    assert gauge({"outcome": outcome, "statistic": statistic, "threshold": threshold}) == (share, level)
