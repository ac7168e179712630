"""The sentences that say what happened to a run; the live view and the report share them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

from controlplane.contract.documents import AckState
from controlplane.decide import ForecastView, Kind
from controlplane.digest import facts
from controlplane.digest.facts import Episode
from controlplane.record import Look, Record


@dataclass(frozen=True)
class Intervention:
    """A decision that a person wants to see, with what became of it."""

    look: Look
    what: str
    outcome: str
    helped: bool | None


def interventions(record: Record) -> list[Intervention]:
    """Everything decided that people want to see, verdicts joined to the action that they judge."""
    verdicts = {d.decision_id: d for d in (look.decision for look in record.actions) if d.kind is Kind.verdict}
    found = []
    for look in record.actions:
        decision = look.decision
        if decision.kind is Kind.verdict:
            continue
        what = decision.change.sentence() if decision.change else "tell a person"
        verdict = verdicts.get(decision.decision_id) if decision.decision_id else None
        helped = None
        if decision.kind is not Kind.act:
            outcome = "told" if decision.kind is Kind.page else f"not carried out: {decision.kind.value}"
        elif verdict:
            outcome, helped = verdict.reason, verdict.helped
        else:
            outcome = _answer(record, look)
        found.append(Intervention(look, what, outcome, helped))
    return found


def _answer(record: Record, look: Look) -> str:
    ack = record.observed.last_ack if record.observed else None
    if ack and ack.decision_id == look.decision.decision_id:
        if ack.state is AckState.applied:
            return f"applied at step {ack.at_step}; no verdict yet"
        return f"{ack.state.value}{': ' + ack.reason if ack.reason else ''}"
    if any(fork.branch > look.branch for fork in facts.forks(record)):
        return "applied; no verdict"
    return "no answer from the trainer yet"


def forecast_words(view: ForecastView | None) -> str:
    """Where the run will end, or why that is not known."""
    if view is None:
        return "not yet known: no forecast has been made"
    if view.refused:
        return f"not yet known: {_clause(view) or 'the forecaster refuses'}"
    low, middle, high = (view.quantiles.get(q, nan) for q in ("0.1", "0.5", "0.9"))
    text = f"ends at {ratio(middle)} ({ratio(low)} to {ratio(high)})"
    if view.target is not None and view.target_probability is not None:
        text += f", P(>= {ratio(view.target)}) = {ratio(view.target_probability)}"
    return text


def _clause(view: ForecastView) -> str:
    """The reason of a refusal as part of a sentence."""
    reason = view.reason.strip().rstrip(".")
    return reason[:1].lower() + reason[1:]


def forecast_sentence(record: Record, share: float) -> str:
    """What the forecast made at this share of the run said, and whether what came lies inside its 80 % band."""
    view = record.forecast_at(share)
    if view is None:
        return f"No forecast was made at or after {share:.0%} of the run."
    made = f"At step {view.step} of {facts.planned(record)}"
    if view.refused:
        text = f"{made} the forecaster refused to say where the run will end: {_clause(view) or 'no reason recorded'}."
        stood = next((v for v in record.forecasts if v.step >= view.step and not v.refused), None)
        return text if stood is None else f"{text} The first forecast that it stood by: {_checked(record, stood)}"
    return _checked(record, view)


def _checked(record: Record, view: ForecastView) -> str:
    check = facts.check_forecast(record, view)
    text = f"At step {view.step} the run was forecast to end at {ratio(check.middle)}, with an 80 % band from "
    text += f"{ratio(check.low)} to {ratio(check.high)}. "
    if check.final is None:
        text += "The end has not come yet"
    elif check.held:
        text += f"It ended at {ratio(check.final)}: inside the band"
    else:
        side = "above" if check.final > check.high else "below"
        text += f"It ended at {ratio(check.final)}: outside the band, {side} it"
    if check.later:
        text += f"; {check.inside} of the {check.later} evaluations since then lie inside it"
    changed = [fork.from_step for fork in facts.forks(record) if fork.from_step >= view.step]
    return text + (f" (the rollback at step {changed[0]} came in between)." if changed else ".")


def headline(record: Record) -> str:
    """What happened, in one sentence."""
    rows = facts.in_force(record, facts.heldout(record))
    step, plan = facts.step_now(record), facts.planned(record)
    if rows:
        first, last = facts.number(rows[0], "pass_ratio"), facts.number(rows[-1], "pass_ratio")
        text = f"Held-out pass rate {ratio(first)} → {ratio(last)}"
        text += f" in {step} steps" if facts.finished(record) else f" by step {rows[-1]['step']} of {plan}"
    elif record.steps:
        kept = [v for r in facts.in_force(record, record.steps) if isfinite(v := facts.number(r, "pass_ratio"))]
        text = f"Step {step} of {plan}, no held-out evaluation"
        text += f"; training pass rate {ratio(kept[0])} → {ratio(kept[-1])}" if kept else ""
    elif record.looks:
        text = f"Seen to step {step} of {plan} by the controller; this trainer wrote no record of its own"
    else:
        return "Nothing has been recorded yet."
    return "; ".join([text, *(episode_words(record, episode) for episode in facts.episodes(record))]) + "."


def episode_words(record: Record, episode: Episode) -> str:
    parts = []
    if episode.collapsed_at is not None:
        parts.append(f"collapsed at step {episode.collapsed_at}")
    fork = episode.fork
    if fork:
        parts.append(f"rolled back from step {fork.from_step} to step {fork.to_step}")
    if episode.recovered_at is not None and isfinite(episode.former):
        taken = episode.recovered_at - (fork.to_step if fork else episode.collapsed_at or 0)
        parts.append(f"was back at its former level of {ratio(episode.former)} after {taken} steps")
    elif isfinite(episode.former):
        yet = "did not come back to" if facts.ended(record) else "is not yet back at"
        parts.append(f"{yet} its former level of {ratio(episode.former)}")
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def status(record: Record, now: float) -> tuple[str, str, str]:
    """(judgement good | attention | bad | none, one word, one sentence): how the run stands right now."""
    if not record.steps and not record.looks:
        doing = next((e for e in reversed(record.events) if e.get("event") == "prepare"), None)
        return "none", *(("PREPARING", preparing(doing)) if doing else ("WAITING", "no step has been written yet"))
    last = next(reversed(facts.episodes(record)), None)
    # Without evaluations nobody can say that a run came back; a rollback is then taken at its word.
    open_trouble = last and last.recovered_at is None and (isfinite(last.former) or last.fork is None)
    if facts.ended(record):
        level = "bad" if open_trouble else "good" if facts.finished(record) else "attention"
        return level, "FINISHED" if facts.finished(record) else "STOPPED", headline(record)
    silent = now - facts.last_seen(record)
    if silent > max(20.0, 10 * facts.seconds_per_step(record)):
        return "bad", "SILENT", f"no step for {duration(silent)}"
    alarms = [n for n, f in (record.looks[-1].findings if record.looks else {}).items() if f.get("outcome") == "breach"]
    if alarms:
        return "bad", "ALARM", f"{' and '.join(alarms)} in alarm: {record.looks[-1].decision.reason}"
    if last and open_trouble and last.fork and (last.fork.branch == facts.branch_now(record)):
        fork = last.fork
        back = f"rolled back from step {fork.from_step} to step {fork.to_step}"
        return "attention", "RECOVERING", f"{back}; the held-out pass rate was {ratio(last.former)} before"
    if last and open_trouble:
        return "bad", "COLLAPSED", episode_words(record, last)
    return "good", "RUNNING", _running(record, last)


def preparing(event: Mapping[str, Any]) -> str:
    """How far the trainer's preparation is, made once and then cached."""
    return f"{event.get('what')} {event.get('done')} of {event.get('of')}"


def _running(record: Record, last: Episode | None) -> str:
    rows = facts.in_force(record, facts.heldout(record))
    if not rows:
        return "no held-out evaluation yet"
    text = f"held-out pass rate {ratio(facts.number(rows[-1], 'pass_ratio'))} at step {rows[-1]['step']}"
    text += f", {ratio(facts.number(rows[0], 'pass_ratio'))} at the start" if len(rows) > 1 else ""
    return f"{text}; {episode_words(record, last)}" if last else text


def summary(record: Record) -> list[str]:
    """The run in a few lines, for the terminal at its end."""
    made = record.forecast_at(0.25) or (record.forecasts[-1] if record.forecasts else None)
    acts = [i for i in interventions(record) if i.look.decision.kind is Kind.act]
    who = f"policy {record.policy}, {record.autonomy}" if record.controller_starts else "none attached"
    steps = f"{facts.step_now(record)} of {facts.planned(record)} steps on branch {facts.branch_now(record)}"
    lines = [
        headline(record),
        f"{steps} in {duration(facts.elapsed(record, facts.last_seen(record)))}",
        f"Controller: {who}; {len(record.looks)} looks, {len(acts)} {'action' if len(acts) == 1 else 'actions'}",
    ]
    for item in acts[:3]:
        lines.append(f"Step {item.look.step}, {item.look.decision.rule}: {item.what}; {item.outcome}")
    if made is not None:
        lines.append(forecast_sentence(record, 0.25) if record.forecast_at(0.25) else forecast_words(made))
    return lines


def ratio(value: float) -> str:
    return f"{value:.2f}" if isfinite(value) else "unknown"


def duration(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    if not isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
