"""The HTML of the report: one file, no scripts, nothing fetched. Every text from a run passes through `html.escape`."""

import json
import shlex
from collections.abc import Callable, Sequence
from html import escape
from math import isfinite
from pathlib import Path

from matplotlib.figure import Figure

from controlplane.decide import Kind
from controlplane.digest import facts, words
from controlplane.record import Record
from controlplane.report import plots
from controlplane.report.theme import style

LONGEST_LIST = 60
"""Rows of a table past which the rest is only counted; the journal has them all."""


def page(records: Sequence[Record]) -> str:
    """The whole page. Several runs are compared first, then told one by one."""
    names = arms(records)
    title = ", ".join(names) or "no run"
    compare = _comparison(records, names) if len(records) > 1 else ""
    runs = "\n".join(_run(record, name) for record, name in zip(records, names, strict=True))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} – run report</title>\n<style>{style()}</style>\n</head>\n<body>\n"
        f"{compare}\n{runs}\n</body>\n</html>\n"
    )


def arms(records: Sequence[Record]) -> list[str]:
    """A name for each run, its directory added where names are alike."""
    names = [facts.name(record) for record in records]
    return [n if names.count(n) == 1 else f"{n} ({r.rundir.root.name})" for n, r in zip(names, records, strict=True)]


def _comparison(records: Sequence[Record], names: Sequence[str]) -> str:
    rows = [_arm(record, name) for record, name in zip(records, names, strict=True)]
    head = ("Run", "Controller", "Held-out at the end", "Before the trouble", "Rollbacks", "Recovered")
    return (
        f'<article>\n<h1>{len(records)} runs side by side</h1>\n<p class="headline">{escape(_verdict(records, names))}</p>\n'
        + _figure(lambda: plots.comparison(records, names), "Held-out pass rate of every run by step")
        + '<p class="note">Held-out pass rate by optimiser step. Faint: what was given up by a rollback.</p>\n'
        + _table(head, rows)
        + "</article>"
    )


def _arm(record: Record, name: str) -> tuple[str, ...]:
    found = facts.episodes(record)
    rows = facts.in_force(record, facts.heldout(record))
    end = words.ratio(facts.number(rows[-1], "pass_ratio")) if rows else "–"
    before = words.ratio(found[0].former) if found else "–"
    answer = recovered(record)
    shown = {True: _judged("yes", "good"), False: _judged("no", "bad"), None: "no trouble" if not found else "unknown"}
    who = record.autonomy or "none"
    return escape(name), escape(who), end, before, str(len(facts.forks(record))), shown[answer]


def recovered(record: Record) -> bool | None:
    """Whether the run came back from all its troubles; None where there was none, or nothing to tell it by."""
    found = [episode for episode in facts.episodes(record) if isfinite(episode.former)]
    return all(episode.recovered_at is not None for episode in found) if found else None


def _verdict(records: Sequence[Record], names: Sequence[str]) -> str:
    """Which runs came back and which did not, in one sentence."""
    groups = [
        ("met trouble and recovered", [n for r, n in zip(records, names, strict=True) if recovered(r) is True]),
        ("met trouble and did not recover", [n for r, n in zip(records, names, strict=True) if recovered(r) is False]),
        ("met no trouble", [n for r, n in zip(records, names, strict=True) if not facts.episodes(r)]),
    ]
    said = [f"{' and '.join(group)} {what}" for what, group in groups if group]
    return ("; ".join(said) or "Nothing can be said about these runs yet") + "."


def _run(record: Record, name: str) -> str:
    parts = [
        f'<article>\n<h1>{escape(name)}</h1>\n<p class="headline">{escape(words.headline(record))}</p>',
        _key_figures(record),
        _curves(record),
        _forecast(record),
        _vitals(record),
        _interventions(record),
        _decisions(record),
        _policy(record),
        _further(record),
        "</article>",
    ]
    return "\n".join(part for part in parts if part)


def _key_figures(record: Record) -> str:
    rows = facts.in_force(record, facts.heldout(record))
    first, last = (facts.number(rows[i], "pass_ratio") if rows else float("nan") for i in (0, -1))
    level, word, _ = words.status(record, facts.last_seen(record))
    info = record.info
    found = [
        ("State", _judged(word.lower(), level), f"step {facts.step_now(record)} of {facts.planned(record)}"),
        (
            "Held-out pass rate",
            words.ratio(last) if rows else "–",
            f"{words.ratio(first)} at the start" if rows else "not evaluated",
        ),
        ("Rollbacks", str(len(facts.forks(record))), f"now on branch {facts.branch_now(record)}"),
        (
            "Controller",
            escape(record.autonomy or "none"),
            escape(f"policy {record.policy}") if record.policy else "",
        ),
        ("Wall time", words.duration(facts.elapsed(record, facts.last_seen(record))), f"{_compute(record)}"),
        ("Model", escape(info.model) if info else "–", escape(f"{info.algorithm} on {info.framework}") if info else ""),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in found)
    return f'<dl class="figures">{cells}</dl>'


def _compute(record: Record) -> str:
    value = facts.vital(record, "compute")
    return f"{value:.0f} device-seconds behind the weights" if isfinite(value) else ""


def _curves(record: Record) -> str:
    if not record.steps and not record.evals:
        return '<p class="soft">The trainer wrote no steps and no evaluations; what follows is from the controller\'s journal.</p>'
    note = "Marks: faults that the trainer wrote down, rollbacks, and actions. The controller is told of no fault."
    return (
        f"<h2>Pass rate</h2>\n{_figure(lambda: plots.overview(record), 'Pass rate by step')}<p class='note'>{note}</p>"
    )


def _forecast(record: Record) -> str:
    if not record.forecasts:
        return "<h2>Forecast</h2>\n<p>No forecast was made" + (
            ": no controller was attached.</p>" if not record.looks else ".</p>"
        )
    view = record.forecast_at(0.25)
    title = "Forecast made at a quarter of the run, and what came"
    if view is None:
        view, title = record.forecasts[-1], "The newest forecast"
        sentence = f"At step {view.step} of {facts.planned(record)}: {words.forecast_words(view)}."
    else:
        sentence = words.forecast_sentence(record, 0.25)
    views = [view]
    if view.refused:
        views += [v for v in record.forecasts if v.step >= view.step and not v.refused][:1]
    held = facts.check_forecast(record, views[-1]).held if not views[-1].refused else None
    answer = {True: _judged("Inside the band.", "good"), False: _judged("Outside the band.", "bad"), None: ""}[held]
    answer = _judged("Refused.", "attention") if view.refused else answer
    picture = _figure(lambda: plots.forecast(record, views), "Forecast band and what came")
    return f"<h2>{title}</h2>\n<p><b>{answer}</b> {escape(sentence)}</p>\n{picture}"


def _vitals(record: Record) -> str:
    if not record.steps:
        return ""
    note = "By optimiser step; reddish: the abandoned branch. Gradient norm, entropy and learning rate on a log scale."
    return f"<h2>Vital signs</h2>\n{_figure(lambda: plots.vitals(record), 'Vital signs by step')}<p class='note'>{note}</p>"


def _interventions(record: Record) -> str:
    found = words.interventions(record)
    if not found:
        return "<h2>Interventions</h2>\n<p>None: no rule of the policy held.</p>" if record.looks else ""
    rows = []
    for item in found[:LONGEST_LIST]:
        decision = item.look.decision
        level = {True: "good", False: "bad", None: ""}[item.helped]
        step = "–" if decision.step is None else str(decision.step)
        what = f"<b>{escape(decision.kind.value)}</b>: {escape(item.what)}"
        why = decision.reason.removeprefix("would ").removeprefix(f"{item.what}: ")
        rows.append((step, escape(decision.rule or "–"), what, escape(why), _judged(escape(item.outcome), level)))
    table = _table(("Step", "Rule", "What", "Why", "Outcome"), rows)
    more = (
        f'<p class="note">{len(found) - LONGEST_LIST} more are in the journal.</p>' if len(found) > LONGEST_LIST else ""
    )
    return f"<h2>Interventions</h2>\n{table}{more}"


_MEANING = {
    Kind.nothing: "all is well",
    Kind.hold: "something was missing or in the way",
    Kind.observe: "a rule held; the policy only lets the controller watch",
    Kind.advise: "a rule held; a person was advised",
    Kind.waiting: "a person was asked to approve",
    Kind.dropped: "denied, not answered, or not possible",
    Kind.act: "sent to the trainer",
    Kind.page: "a person was called",
    Kind.verdict: "what an earlier action was worth",
}


def _decisions(record: Record) -> str:
    if not record.looks:
        return ""
    rows = [(escape(kind), str(n), _MEANING[Kind(kind)]) for kind, n in facts.counts(record.looks)]
    starts = f"{record.controller_starts} controller start{'s' if record.controller_starts != 1 else ''}"
    return f"<h2>Decisions</h2>\n<p>{len(record.looks)} looks at the run, {starts}.</p>\n{_table(('Kind', 'Times', 'Meaning'), rows)}"


def _policy(record: Record) -> str:
    if not record.policy_text:
        return ""
    return f"<details><summary>Policy in force: {escape(record.policy)}</summary>\n<pre>{escape(record.policy_text)}</pre></details>"


def _further(record: Record) -> str:
    root = record.rundir.root
    path = shlex.quote(str(root))
    lines = [f"scalerl watch {path}", f"scalerl report {path}"]
    rows = [
        ("The trainer's metrics", _address(record.rundir.target)),
        ("The controller's metrics", _address(record.rundir.controller_target)),
        ("Every look and decision", str(record.rundir.journal) if record.rundir.journal.exists() else ""),
        ("The trainer's own lines", str(record.rundir.steps) if record.steps else ""),
        ("Logs", ", ".join(str(p) for p in (record.rundir.trainer_log, record.rundir.controller_log) if p.exists())),
    ]
    listed = [(name, f"<code>{escape(value)}</code>") for name, value in rows if value]
    commands = escape("\n".join(lines))
    return f"<h2>To look further</h2>\n<pre>{commands}</pre>\n{_table(('', ''), listed) if listed else ''}"


def _address(target: Path) -> str:
    """host:port/metrics of an exporter while it is there."""
    try:
        entries = json.loads(target.read_text())
        return f"{entries[0]['targets'][0]}/metrics (while it runs)"
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _figure(draw: Callable[[], Figure], label: str) -> str:
    return f"<figure>{plots.svg(draw, escape(label))}</figure>\n"


def _judged(html: str, level: str) -> str:
    return f'<span class="{level}">{html}</span>' if level in ("good", "attention", "bad") else html


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    top = "<thead><tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr></thead>" if any(head) else ""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>\n'
