"""The answer of `scalerl replay` in lines for a terminal. Pure."""

from controlplane.hindsight.rehearse import Hindsight, Said
from controlplane.recorded import Table
from controlplane.view.chart import Chart

_VERBS = {
    "act": "would act",
    "advise": "would advise",
    "observe": "would note",
    "page": "would page a person",
}
_WIDTH, _HEIGHT = 72, 6


def lines(table: Table, hindsight: Hindsight, notes: list[str]) -> list[str]:
    """Headline, a small chart, what was said, which detectors were in alarm, and what was guessed."""
    out = [headline(table, hindsight), ""]
    out += chart(table, hindsight)
    for each in hindsight.said:
        out.append(f"  step {each.step:>6}  {_VERBS.get(each.verb, each.verb)}: {_sentence(each)}")
    if hindsight.alarms:
        out.append("")
        out.append("  detectors in alarm")
        for name, stretches in sorted(hindsight.alarms.items(), key=lambda item: item[1][0]):
            when = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in stretches[:4])
            more = f" and {len(stretches) - 4} times more" if len(stretches) > 4 else ""
            out.append(f"    {name:<14} steps {when}{more}")
    out.append("")
    out.append("  what was understood")
    out += [f"    {note}" for note in (*table.notes, *notes)]
    return out


def headline(table: Table, hindsight: Hindsight) -> str:
    """One sentence: what the policy would have made of the run."""
    span = f"{table.name}: {len(table)} rows, steps {table.step.min():g} to {table.step.max():g}"
    policy = f"policy {hindsight.policy.name}"
    if not hindsight.said:
        return f"{span}. Under {policy} nothing would have been said."
    first = hindsight.said[0]
    text = (
        f"{span}. Under {policy} people would first have heard at step {first.step} ({first.rule or 'the controller'})"
    )
    if hindsight.acts:
        act = hindsight.acts[0]
        return f"{text}; the first action would have come at step {act.step}: {_done(act)}."
    return f"{text}; the run would not have been touched."


def chart(table: Table, hindsight: Hindsight) -> list[str]:
    """The pass rate over the steps, with a mark at everything that was said; empty without a pass rate."""
    steps, _, values = table.points("pass_rate")
    if len(values) < 2:
        return []
    top = max(float(values.max()), 1e-9)
    picture = Chart(_WIDTH, _HEIGHT, (float(steps.min()), float(steps.max())), (0.0, top))
    picture.line([(float(x), float(y)) for x, y in zip(steps, values, strict=True)], "", 1)
    for each in hindsight.said:
        picture.mark(each.step, "", 0, "┃" if each.verb == "act" else "┊")
    rows = [row.plain for row in picture.rows()]
    labels = [f"{top:>6.2f} ", *["       "] * (len(rows) - 2), "     0 "]
    return [f"  {label}{row}".rstrip() for label, row in zip(labels, rows, strict=True)] + [""]


def _sentence(said: Said) -> str:
    # The verb before it says "would" already; pages carry their evidence and advice the name of its rule.
    return said.reason.removeprefix("would ")


def _done(said: Said) -> str:
    return said.change.sentence() if said.change is not None else said.reason
