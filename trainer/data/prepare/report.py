"""The account of a preparation: `report.json` for programs, `report.md` for people, both from the same facts.

Nothing in it depends on when or where it was made.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import yaml

from trainer.data.prepare.entry import Entry, Removed
from trainer.data.prepare.pipeline import Done
from trainer.data.prepare.spec import Spec
from trainer.data.prepare.split import NAMES, UNKNOWN, stratum

EXAMPLES = 3


@dataclass(frozen=True)
class UsedFile:
    """A file that took part."""

    role: str
    """input, evaluation set NAME, or tokenizer."""
    name: str
    """Path as the spec has it."""
    sha256: str
    """Of the file; of a directory, of its files' names and digests."""
    records: int = 0


def account(
    spec: Spec, files: Sequence[UsedFile], done: Sequence[Done], splits: Mapping[str, Sequence[Entry]]
) -> dict[str, Any]:
    """Everything that is to be told, as it stands in `report.json`."""
    strata: dict[str, Counter[str]] = defaultdict(Counter)
    for name in NAMES:
        for entry in splits[name]:
            strata[stratum(entry, spec.split.edges)][name] += 1
    return {
        "read": done[0].read,
        "kept": len(done[-1].sifted.kept),
        "removed": sum(len(each.sifted.removed) for each in done),
        "seed": spec.split.seed,
        "splits": {name: len(splits[name]) for name in NAMES},
        "strata": {key: {name: strata[key][name] for name in NAMES} for key in sorted(strata, key=_by_value)},
        "stages": [_stage(each) for each in done],
        "remarks": _remarks(spec, done, strata),
        "files": [asdict(file) for file in files],
        "spec": spec.model_dump(mode="json", exclude={"output"}),
    }


def _stage(done: Done) -> dict[str, Any]:
    rules: dict[str, list[Removed]] = defaultdict(list)
    for removed in sorted(done.sifted.removed, key=lambda removed: (removed.rule, removed.entry.record.id)):
        rules[removed.rule].append(removed)
    return {
        "stage": done.stage.name,
        "setting": done.stage.setting,
        "read": done.read,
        "removed": len(done.sifted.removed),
        "kept": len(done.sifted.kept),
        "rules": {rule: len(every) for rule, every in rules.items()},
        "notes": {name: count for name, count in done.sifted.notes.items() if count},
        "examples": [removed.line(done.stage.name) for every in rules.values() for removed in every[:EXAMPLES]],
    }


def _remarks(spec: Spec, done: Sequence[Done], strata: Mapping[str, Any]) -> list[str]:
    remarks = []
    if spec.decontaminate is None:
        remarks.append("No evaluation set was named: nothing was checked for contamination.")
    if spec.length.tokenizer is None:
        remarks.append("No tokenizer was named: lengths were counted in words between white space, fewer than tokens.")
    if list(strata) == [UNKNOWN]:
        remarks.append("No record has a difficulty or a pass rate: the split is not stratified.")
    unjudged = next(each.sifted.notes for each in done if each.stage.name == "trivial_prompts").get(
        "without a pass rate, not judged by it", 0
    )
    if unjudged:
        remarks.append(f"{unjudged:,} records have no pass rate and were not judged by it.")
    return remarks


def _by_value(name: str) -> tuple[bool, Fraction, str]:
    """Numeric difficulties in the order of their values, the rest behind by name."""
    try:
        return False, Fraction(name), name
    except (ValueError, ZeroDivisionError):
        return True, Fraction(0), name


def removed_lines(done: Sequence[Done]) -> list[dict[str, str]]:
    """`removed.jsonl`: by stage, then by id and what the line says."""
    return [
        line
        for each in done
        for line in sorted(
            (r.line(each.stage.name) for r in each.sifted.removed), key=lambda line: tuple(line.values())
        )
    ]


def markdown(report: Mapping[str, Any]) -> str:
    """`report.md`."""
    sizes = report["splits"]
    share = report["removed"] / report["read"] if report["read"] else 0.0
    head = (
        f"{report['read']:,} prompts read, {report['kept']:,} kept, {report['removed']:,} removed ({share:.1%}): "
        + ", ".join(f"{sizes[name]:,} {name}" for name in NAMES)
        + f". Seed {report['seed']}."
    )
    parts = ["# What was prepared", head]
    if report["remarks"]:
        parts.append("\n".join(f"- **{remark}**" for remark in report["remarks"]))
    stages = report["stages"]
    parts += [
        "## Stages",
        _table(
            ("stage", "setting", "read", "removed", "kept"),
            [tuple(stage[key] for key in ("stage", "setting", "read", "removed", "kept")) for stage in stages],
        ),
    ]
    parts += ["## What was removed, and why", _rules(stages)] if report["removed"] else []
    notes = [(name, count) for stage in stages for name, count in stage["notes"].items()]
    parts += ["## Also", _table(("what", "number"), notes)] if notes else []
    parts += ["## Splits by difficulty", _strata(report["strata"], sizes)]
    examples = [_example(line) for stage in stages for line in stage["examples"]]
    parts += ["## Examples", f"At most {EXAMPLES} of each kind; all are in `removed.jsonl`."] if examples else []
    parts += ["\n".join(examples)] if examples else []
    parts += [
        "## Files",
        _table(
            ("role", "file", "records", "SHA-256"),
            [(f["role"], f["name"], f["records"] or "", f"`{f['sha256']}`") for f in report["files"]],
        ),
        "## Spec, with every default",
        f"```yaml\n{yaml.safe_dump(report['spec'], sort_keys=False, allow_unicode=True)}```",
    ]
    return "\n\n".join(parts) + "\n"


def _rules(stages: Sequence[Mapping[str, Any]]) -> str:
    rows = [(stage["stage"], rule, count) for stage in stages for rule, count in stage["rules"].items()]
    return _table(("stage", "rule", "removed"), rows)


def _strata(strata: Mapping[str, Mapping[str, int]], sizes: Mapping[str, int]) -> str:
    every = sum(sizes.values())
    rows: list[tuple[Any, ...]] = []
    for name, counts in (*strata.items(), ("all", sizes)):
        total = sum(counts.values())
        shares = [f"{counts[split]:,} ({counts[split] / total:.1%})" if total else "0" for split in NAMES]
        rows.append((name, total, f"{total / every:.1%}" if every else "", *shares))
    return _table(("difficulty", "prompts", "share of all", *NAMES), rows)


def _example(line: Mapping[str, str]) -> str:
    of = f", of `{line['of']}`" if line["of"] else ""
    text = " ".join(line["prompt"].split())
    shown = text if len(text) <= 100 else text[:100] + "..."
    quoted = f": “{_safe(shown)}”" if shown else ""
    return f"- {line['rule']}: `{line['id']}` ({_safe(line['reason'])}){of}{quoted}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    numeric = [bool(rows) and all(isinstance(row[i], int) or row[i] == "" for row in rows) for i in range(len(head))]
    lines = [
        head,
        ["---:" if right else "---" for right in numeric],
        *([_cell(value) for value in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else _safe(str(value))


def _safe(text: str) -> str:
    """Text that breaks neither a table nor a list."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
