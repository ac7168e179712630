"""`prepare`: the one place of this package that touches files. The output directory appears whole or not at all."""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from controlplane.contract.yamlfile import FileError
from trainer.data.files import Record, read_records, write_records
from trainer.data.prepare.contamination import Item
from trainer.data.prepare.entry import Entry
from trainer.data.prepare.lengths import Count, white_space_words
from trainer.data.prepare.pipeline import Done, sift, stages
from trainer.data.prepare.report import UsedFile, account, markdown, removed_lines
from trainer.data.prepare.spec import Source, Spec, load_spec
from trainer.data.prepare.split import NAMES, split
from trainer.data.prepare.toxicity import find_score

Say = Callable[[str], None]
T = TypeVar("T")
SECONDS = 5.0
"""Between two lines about the same work."""


def prepare(path: Path, say: Say) -> Path:
    """Do what the spec at `path` says and return the directory that was made.

    Raises:
        FileError: the spec, or what it names, is wrong; nothing was written.
        DataError: a file of prompts is wrong; nothing was written.
    """
    spec = load_spec(path)
    base = path.parent
    output = base / spec.output
    if os.path.lexists(output):
        raise FileError(f"{output}: is there already; name a new directory in `output`, or remove this one")
    count, files = _counter(base, spec)
    score = find_score(spec.toxicity.module) if spec.toxicity else None
    items: list[Item] = []
    for name, source in (spec.decontaminate.against if spec.decontaminate else {}).items():
        records, file = _read(base, source, f"evaluation set {name}", say)
        files.append(file)
        items += [Item(name, record.id or str(row), record.prompt) for row, record in enumerate(records, 1)]
    entries: list[Entry] = []
    for given in spec.inputs:
        records, file = _read(base, given, "input", say)
        files.append(file)
        entries += [Entry(record, given.path, given.kind) for record in records]
    rooms = stages(spec, count, items, score, lambda every: _watched(every, "toxicity_filtering", say))
    kept, done = sift(entries, rooms, say)
    splits = split(kept, spec.split, spec.similarity)
    say("split: " + ", ".join(f"{len(splits[name]):,} {name}" for name in NAMES))
    _write(output, splits, done, account(spec, files, done, splits))
    return output


def _counter(base: Path, spec: Spec) -> tuple[Count, list[UsedFile]]:
    if spec.length.tokenizer is None:
        return white_space_words, []
    path = base / spec.length.tokenizer
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise FileError(f"length.tokenizer: {path} is no tokenizer.json and no directory that holds one")
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
    except ImportError:
        raise FileError("length.tokenizer: needs the package tokenizers: pip install 'scalerl[trainer]'") from None
    except Exception as error:  # the library raises nothing narrower
        raise FileError(f"length.tokenizer: {file} cannot be used ({error})") from None
    used = UsedFile("tokenizer", spec.length.tokenizer, _sha256(file))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), [used]


def _read(base: Path, source: Source, role: str, say: Say) -> tuple[list[Record], UsedFile]:
    """Records of a source. An id that the reader made from the place in the file is taken out again: it would change
    with the order of the rows and the name of the directory."""
    path = base / source.path
    place = re.compile(re.escape(str(path)) + r".*:\d+", re.DOTALL)
    rows = read_records(path, source.columns or None, source.split)
    records = [
        replace(record, id="") if place.fullmatch(record.id) else record
        for record in _watched(rows, f"reading {source.path}", say)
    ]
    say(f"{role}: {source.path}, {len(records):,} records")
    return records, UsedFile(role, source.path, _sha256(path), len(records))


def _sha256(path: Path) -> str:
    if path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if file.is_file()]
        listing = "".join(f"{file.relative_to(path).as_posix()}\0{_sha256(file)}\n" for file in inside)
        return hashlib.sha256(listing.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _watched(items: Iterable[T], what: str, say: Say) -> Iterator[T]:
    """The items; says now and then how many have passed."""
    told = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - told > SECONDS:
            say(f"{what}: {number:,}")
            told = time.monotonic()
        yield item


def _write(
    output: Path, splits: Mapping[str, Sequence[Entry]], done: Sequence[Done], report: Mapping[str, Any]
) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        for name in NAMES:
            write_records(work / f"{name}.jsonl", (entry.record for entry in splits[name]))
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in removed_lines(done))
        _text(work / "removed.jsonl", "".join(lines))
        _text(work / "report.json", json.dumps(report, ensure_ascii=False, indent=2) + "\n")
        _text(work / "report.md", markdown(report))
        work.chmod(0o755)
        work.rename(output)
    except OSError as error:
        raise FileError(f"{output}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
