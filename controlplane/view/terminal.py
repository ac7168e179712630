"""The live view of one run: how it stands, where it will end, what the controller decided and why.

`render` is pure: a record in, lines for exactly this terminal out. Colour carries judgement only (green, yellow, red);
everything else is plain, bold or dim, so it reads on any background. Where there is no terminal, `watch` writes one line
per event instead.
"""

import textwrap
import threading
import time
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from controlplane.decide import Kind
from controlplane.digest import facts, words
from controlplane.record import Look, Record
from controlplane.view.chart import Chart
from controlplane.view.plain import Told, news
from controlplane.view.vitals import Vital, vitals

JUDGEMENT = {"good": "green", "attention": "yellow", "bad": "red", "none": ""}
CONTROLLER_SILENT_SECONDS = 30.0
"""A controller looks every few seconds; without a look for this long it is taken to be gone."""
_GUTTER = 5  # columns left of the chart, for the labels of its axis
_LABEL = 11  # columns of the labels of the lines below it


def watch(root: Path, stop: threading.Event, console: Console | None = None, per_second: float = 2.0) -> Record:
    """Show the run in `root` until it ends or `stop` is set; the record as last seen. Reads only.

    A run that had been stopped before its end may go on: it is waited for.
    """
    console = console or Console()
    record = Record.of(root)
    opened = len(record.events)

    def over() -> bool:
        return facts.finished(record) or (facts.ended(record) and len(record.events) > opened)

    if not console.is_terminal:
        told = Told()
        while True:
            record.update()
            lines, told = news(record, told)
            console.file.writelines(line + "\n" for line in lines)
            console.file.flush()
            if over() or stop.wait(1 / per_second):
                return record
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            record.update()
            live.update(render(record, console.width, console.height, time.time()), refresh=True)
            if over() or stop.wait(1 / per_second):
                break
    record.update()
    console.print(
        render(record, console.width, 24, time.time())
    )  # the last picture stays when the screen is given back
    return record


def render(record: Record, width: int, height: int, now: float) -> RenderableType:
    """The view in at most `height` lines of at most `width` characters. `now` is unix seconds."""
    width, height = max(40, width), max(12, height)
    roomy = height >= 24
    top = [_header(record, now, width), *_status(record, now, width, 2 if roomy else 1)]
    below = [*_flow([_vital(v) for v in vitals(record)], width), *_forecast(record, width, 2 if roomy else 1)]
    below += _detectors(record, width)
    # The chart keeps eight lines even where that leaves no room for more than the newest decision.
    log = _decisions(record, width, max(1, height - len(top) - len(below) - 10))
    lines = [*top, *_chart(record, width, max(4, height - len(top) - len(below) - len(log))), *below, *log][:height]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Text("\n", no_wrap=True, overflow="crop").join(lines)


def _header(record: Record, now: float, width: int) -> Text:
    over = facts.ended(record)
    who, level = _controller(record, now)
    parts = [f"step {facts.step_now(record)}/{facts.planned(record)}", who]
    elapsed = words.duration(facts.elapsed(record, facts.last_seen(record) if over else now))
    left = "" if over else f", {words.duration(facts.seconds_left(record))} left"
    extra = [f"{elapsed} elapsed{left}", f"branch {facts.branch_now(record)}"]
    extra += [record.observed.phase.value.replace("_", " ")] if record.observed and not over else []
    for part in extra:  # as many as fit beside twelve characters of the name
        if 12 + sum(3 + len(p) for p in (*parts, part)) <= width:
            parts.append(part)
    name = Text(facts.name(record), style="bold")
    name.truncate(width - sum(3 + len(p) for p in parts), overflow="ellipsis")
    line = Text.assemble(name, "   ", "   ".join(parts))
    if JUDGEMENT[level]:
        line.highlight_words([who], JUDGEMENT[level])
    return line


def _controller(record: Record, now: float) -> tuple[str, str]:
    """(what it may do, or that it is gone; judgement). A run without its controller goes on as it is."""
    if not record.controller_starts:
        return "no controller", "none"
    if facts.ended(record):
        return f"controller: {record.autonomy}", "none"
    if record.controller_ended:
        return "controller: left", "attention"
    silent = now - record.looks[-1].at if record.looks else 0.0
    if silent > CONTROLLER_SILENT_SECONDS:
        return f"controller: silent {words.duration(silent)}", "attention"
    return f"controller: {record.autonomy}", "none"


def _status(record: Record, now: float, width: int, most: int) -> list[Text]:
    level, word, sentence = words.status(record, now)
    chip = f" {word} "
    first, *rest = _wrap(sentence, width - len(chip) - 1, most)
    style = JUDGEMENT[level]
    lines = [Text.assemble((chip, f"bold reverse {style}"), " ", (first, style))]
    return lines + [Text.assemble(" " * (len(chip) + 1), (line, style)) for line in rest]


def _chart(record: Record, width: int, height: int) -> list[Text]:
    """Legend, chart and axis: `height` lines in all."""
    plan = max(facts.planned(record), facts.step_now(record), 1)
    chart = Chart(width - _GUTTER - 1, height - 2, x=(0, plan))
    held = facts.heldout(record)
    view = record.forecasts[-1] if record.forecasts and not facts.ended(record) else None
    if view is not None:
        chart.band([(step, low, high) for step, low, _, high in facts.band_by_step(record, view)], "dim", rank=1)
    chart.points(_curve(record.steps), "", rank=2)
    for stretch in facts.abandoned(record, held):
        chart.line(_curve(stretch), "", rank=3)
    rollbacks = [fork.from_step for fork in facts.forks(record)]
    for step in rollbacks:
        chart.mark(step, "yellow", rank=4)
    chart.line(_curve(facts.in_force(record, held)), "bold", rank=5)
    rows = chart.rows()
    labels = {0: "1.0", len(rows) // 2: "0.5", len(rows) - 1: "0.0"}
    lines = [Text.assemble((f"{labels.get(i, ''):>4}│", "dim"), row) for i, row in enumerate(rows)]
    legend = Text.assemble(("pass rate   ", ""), ("⠒⠒⠒ held-out", "bold"), "   ⠂⠐⠠ training")
    if view is not None:
        legend.append("   ⢕⢕⢕ forecast" + (", only a bound yet" if view.refused else ", 80 % band"), style="dim")
    return [legend, *lines, _axis(chart, plan, rollbacks)]


def _axis(chart: Chart, plan: int, rollbacks: list[int]) -> Text:
    """Step labels, with rollbacks named where they happened; what does not fit is left out."""
    cells = [" "] * chart.width
    styles: list[tuple[str, int, int]] = []

    def put(text: str, at: int, style: str) -> None:
        at = min(max(at, 0), chart.width - len(text))
        if at >= 0 and not "".join(cells[max(0, at - 1) : at + len(text) + 1]).strip():
            cells[at : at + len(text)] = text
            styles.append((style, _GUTTER + at, _GUTTER + at + len(text)))

    put("0", 0, "dim")
    put(str(plan), chart.width, "dim")
    for step in rollbacks:
        put(f"▲ rollback at {step}", chart.position(step), "yellow")
    for share in (2, 1, 3):
        put(str(plan * share // 4), chart.position(plan * share / 4), "dim")
    line = Text(" " * _GUTTER + "".join(cells))
    for style, start, end in styles:
        line.stylize(style, start, end)
    return line


def _curve(rows: Iterable[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(float(row["step"]), facts.number(row, "pass_ratio")) for row in rows]


def _vital(vital: Vital) -> Text:
    limit = f" {vital.limit}" if vital.limit else ""
    return Text.assemble((f"{vital.name} ", "dim"), (vital.text, JUDGEMENT[vital.level]), (limit, "dim"))


def _forecast(record: Record, width: int, most: int) -> list[Text]:
    if not record.controller_starts:
        return _labelled("forecast", "no controller is attached, so none is made", "dim", width, 1)
    if facts.ended(record) and record.forecast_at(0.25):
        return _labelled("forecast", words.forecast_sentence(record, 0.25), "", width, most)
    return _labelled(
        "forecast", words.forecast_words(record.forecasts[-1] if record.forecasts else None), "", width, most
    )


def _detectors(record: Record, width: int) -> list[Text]:
    """One gauge per detector: how far its statistic is on the way to its threshold."""
    if not record.looks:
        return []
    policy = facts.policy_of(record)
    findings = record.looks[-1].findings
    order = [name for name in (policy.detectors if policy else findings) if name in findings]
    return _flow([_gauge(name, findings[name], width >= 100) for name in order], width, "detectors")


def _gauge(name: str, finding: Any, roomy: bool) -> Text:
    share, level = gauge(finding)
    if share is None:
        word = "learning" if finding.get("outcome") == "inconclusive" else "no value"
        return Text.assemble((f"{name} ", "dim"), (word, JUDGEMENT[level] or "dim"))
    cells = 8 if roomy else 4
    filled = round(cells * share)
    text = Text.assemble((f"{name} ", "dim"), ("▰" * filled, JUDGEMENT[level]), ("▱" * (cells - filled), "dim"))
    if roomy or share >= 0.5:
        text.append(f" {finding['statistic']:.2g}/{finding['threshold']:.2g}", style=JUDGEMENT[level])
    return text


def gauge(finding: Any) -> tuple[float | None, str]:
    """(share of the way to the threshold in [0, 1], judgement); None where the detector cannot judge."""
    statistic, threshold = finding.get("statistic"), finding.get("threshold")
    if finding.get("outcome") == "breach" and statistic is not None and isfinite(statistic):
        return 1.0, "bad"
    if finding.get("outcome") != "ok" or not threshold or statistic is None or not isfinite(statistic):
        return None, "bad" if finding.get("outcome") in ("error", "breach") else "none"
    # A finding that is well although it is over its threshold is one that must not fall below it.
    share = max(0.0, min(statistic, threshold)) / max(statistic, threshold)
    return share, "attention" if share >= 0.75 else "none"


def _decisions(record: Record, width: int, room: int) -> list[Text]:
    """What the controller says now, and below it what it decided before, newest first."""
    if not record.looks:
        return []
    now = record.looks[-1]
    told = [look for look in reversed(facts.said(record)) if look.seq != now.seq][:6]
    for most in (3, 2, 1):  # whole sentences where there is room: many decisions say more than long ones
        entries = [_decision(now, "now", width, most)]
        entries += [
            _decision(look, "start" if look.step is None else f"step {look.step}", width, most) for look in told
        ]
        if sum(map(len, entries)) <= room:
            break
    return [line for entry in entries for line in entry][:room]


def _decision(look: Look, when: str, width: int, most: int) -> list[Text]:
    decision = look.decision
    told = (Kind.act, Kind.advise, Kind.observe, Kind.waiting, Kind.dropped)
    level = "bad" if decision.kind is Kind.page else "attention" if decision.kind in told else "none"
    if decision.kind is Kind.verdict:
        level = "good" if decision.helped else "bad"
    quiet = "dim" if decision.kind in (Kind.nothing, Kind.hold) else ""
    first, *rest = _wrap(decision.reason, width - _LABEL - 9, most)
    lines = [
        Text.assemble(
            (f"{when:<{_LABEL}}", "dim"), (f"{decision.kind.value:<9}", JUDGEMENT[level] or quiet), (first, quiet)
        )
    ]
    return lines + [Text.assemble(" " * (_LABEL + 9), (line, quiet)) for line in rest]


def _labelled(label: str, text: str, style: str, width: int, most: int) -> list[Text]:
    lines = _wrap(text, width - _LABEL, most)
    return [
        Text.assemble((f"{label if i == 0 else '':<{_LABEL}}", "dim"), (line, style)) for i, line in enumerate(lines)
    ]


def _wrap(text: str, width: int, most: int) -> list[str]:
    """At most `most` lines; at least one, and an ellipsis where something is left out."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return textwrap.wrap(clean, width, max_lines=most, placeholder=" …") or [""]


def _flow(parts: list[Text], width: int, label: str = "") -> list[Text]:
    """Parts side by side, in as many lines as they need."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + 2 + part.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], "  ", part)
        else:
            lines.append(Text.assemble((f"{'' if lines else label:<{_LABEL if label else 0}}", "dim"), part))
    return lines
