"""Files of prompts: one `Record` per row, whatever the file calls its columns.

    .jsonl .json .parquet, or a directory:                        guessed or given columns
    save_to_disk of `datasets`, snapshot of parquet and jsonl  -> rows ---------------------> Record

Reading is lazy and in file order. Nothing is ever downloaded and nothing in a file is ever executed. Every error is one
sentence that starts with `file:line:` (JSON lines) or `file:row:` (the rest). Parquet and Arrow need the extra `data`
(pyarrow).
"""

import importlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from trainer.data.unit_tests import DataError, public_and_private, unit_tests

COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "problem", "Problem", "question", "question_content"),
    "answer": ("answer", "Answer", "final_answer"),
    "tests": ("tests",),
    "id": ("id", "ID", "unique_id", "question_id"),
    "difficulty": ("difficulty", "level"),
    "solution": ("solution", "Solution"),
    "pass_rate": ("pass_rate",),
}
"""Column names tried for each field, in this order: Polaris-53K, AIME, MATH-500, LiveCodeBench, DeepCoder and our own."""

STDIN_NOTE = "Read the input from standard input and write the answer to standard output."
STARTER_NOTE = "Use this starter code:"

_SPLIT = re.compile(r"train|validation|valid|dev|test")
_PASSES = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class Record:
    """One prompt and what is known about it. A field the file does not have is None (or empty)."""

    prompt: str
    answer: str | None = None
    """Reference answer of a math problem."""
    tests: tuple[str, ...] = ()
    """Unit tests of a code problem, each a JSON object or assert statements (docs/tasks.md)."""
    id: str = ""
    """Unique name; `file:row` where the file has none."""
    difficulty: str | None = None
    solution: str | None = None
    pass_rate: float | None = None
    """Share of right completions of some model; Polaris-53K's difficulty `3/8` is 0.375."""


def read_records(
    path: str | Path, columns: Mapping[str, str] | None = None, split: str | None = None
) -> Iterator[Record]:
    """Records of a file or directory, in order. `columns` maps fields of `Record` to columns and overrides the guess;
    `split` picks among the splits of a directory that holds several.

    Raises:
        DataError: the path cannot be read, or a row is not a prompt.
    """
    given = dict(columns or {})
    unknown = given.keys() - COLUMNS.keys()
    if unknown:
        raise DataError(f"columns: {min(unknown)!r} is no field of a record; allowed are {', '.join(COLUMNS)}")
    for file in _files(Path(path), split):
        for place, row in _rows(file):
            yield _record(place, row, given)


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write all records to `.jsonl` or `.parquet` and return their number. The file appears whole or not at all.

    Raises:
        DataError: neither of the two formats.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise DataError(f"{path}: records are written to .jsonl or .parquet")
    if path.suffix == ".parquet":
        _pyarrow(path, "")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        count = (_write_parquet if path.suffix == ".parquet" else _write_lines)(Path(name), records)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
    return count


def _write_lines(path: Path, records: Iterable[Record]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            count += 1
            row = {key: value for key, value in asdict(record).items() if value not in (None, ())}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def _write_parquet(path: Path, records: Iterable[Record]) -> int:
    arrow, parquet = _pyarrow(path, ""), _pyarrow(path, ".parquet")
    kinds = {"tests": arrow.list_(arrow.string()), "pass_rate": arrow.float64()}
    schema = arrow.schema([(field.name, kinds.get(field.name, arrow.string())) for field in fields(Record)])
    count, rows = 0, iter(records)
    with parquet.ParquetWriter(path, schema) as writer:
        while chunk := [asdict(record) for record in itertools.islice(rows, 4096)]:
            writer.write_table(arrow.Table.from_pylist(chunk, schema=schema))
            count += len(chunk)
    return count


# ---- files ----------------------------------------------------------------------------------------------------------


def _files(path: Path, split: str | None) -> list[Path]:
    """The files to read. A directory that `save_to_disk` made is described by its `state.json`."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or directory")
    if (path / "dataset_dict.json").is_file():
        splits = sorted(inner.name for inner in path.iterdir() if (inner / "dataset_info.json").is_file())
        return _files(path / _only(path, splits, split), None)
    if (path / "dataset_info.json").is_file() and any(path.glob("*.arrow")):
        return _saved(path)
    found = [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix in (".parquet", ".jsonl")
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not found:
        raise DataError(f"{path}: holds no .parquet or .jsonl file, and is no dataset made by save_to_disk")
    groups: dict[str, list[Path]] = {}
    for file in found:
        match = _SPLIT.match(file.stem)
        groups.setdefault(match.group() if match else file.stem, []).append(file)
    return groups[_only(path, sorted(groups), split)]


def _saved(path: Path) -> list[Path]:
    try:
        state = json.loads((path / "state.json").read_text())
        names = [entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path / 'state.json'}: does not list the files of a saved dataset") from None
    return [path / Path(name).name for name in names]


def _only(path: Path, splits: list[str], split: str | None) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split in splits:
        return str(split)
    wanted = "name the one to read" if split is None else f"{split!r} is none of them"
    raise DataError(f"{path}: holds the splits {', '.join(splits)}; {wanted}")


# ---- rows -----------------------------------------------------------------------------------------------------------


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) pairs."""
    try:
        if file.suffix == ".parquet":
            yield from _numbered(file, _parquet(file))
        elif file.suffix == ".arrow":
            yield from _numbered(file, _arrow(file))
        elif file.suffix in (".jsonl", ".json"):
            yield from _json(file)
        else:
            raise DataError(f"{file}: unknown format; known are .jsonl, .json, .parquet and .arrow")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from None


def _numbered(file: Path, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((f"{file}:{number}", row) for number, row in enumerate(rows, 1))


def _json(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """JSON lines, or a file that is one JSON array."""
    with file.open("rb") as lines:
        if file.suffix == ".json" and lines.read(4096).lstrip()[:1] == b"[":
            lines.seek(0)
            parts: Iterable[tuple[int, Any]] = enumerate(_parsed(file, 1, lines.read()), 1)
        else:
            lines.seek(0)
            parts = ((number, _parsed(file, number, line)) for number, line in enumerate(lines, 1) if line.strip())
        for number, row in parts:
            if not isinstance(row, dict):
                raise DataError(f"{file}:{number}: must be a JSON object, not {type(row).__name__}")
            yield f"{file}:{number}", row


def _parsed(file: Path, number: int, text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}:{number}: not valid JSON ({error})") from None


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    arrow, parquet = _pyarrow(file, ""), _pyarrow(file, ".parquet")
    try:
        with parquet.ParquetFile(file) as source:
            for batch in source.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except arrow.ArrowException as error:
        raise DataError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _arrow(file: Path) -> Iterator[dict[str, Any]]:
    arrow, ipc = _pyarrow(file, ""), _pyarrow(file, ".ipc")
    try:
        with file.open("rb") as source:
            for batch in ipc.open_stream(source):
                yield from batch.to_pylist()
    except arrow.ArrowException as error:
        raise DataError(f"{file}: not a readable Arrow stream ({str(error).splitlines()[0]})") from None


def _pyarrow(file: Path, module: str) -> Any:
    try:
        return importlib.import_module(f"pyarrow{module}")
    except ImportError:
        raise DataError(f"{file}: needs pyarrow: pip install 'scalerl[data]'") from None


# ---- columns --------------------------------------------------------------------------------------------------------


def _record(place: str, row: Mapping[str, Any], given: Mapping[str, str]) -> Record:
    for field, column in given.items():
        if column not in row:
            raise DataError(f"{place}: no column {column!r} for {field}; the row has {', '.join(map(str, row))}")
    cells = {field: _cell(row, given.get(field), names) for field, names in COLUMNS.items()}
    if cells["prompt"] is None:
        raise DataError(f"{place}: no prompt: none of the columns {', '.join(COLUMNS['prompt'])} has text")
    prompt = _text(place, "prompt", cells["prompt"])
    starter = row.get("starter_code")
    if starter is not None and "prompt" not in given:
        prompt += _format_note(_text(place, "starter_code", starter) or "")
    tests = unit_tests(place, cells["tests"]) if cells["tests"] is not None else public_and_private(place, row)
    difficulty = _text(place, "difficulty", cells["difficulty"])
    return Record(
        prompt=prompt or "",
        answer=_text(place, "answer", cells["answer"]),
        tests=tests,
        id=_text(place, "id", cells["id"]) or place,
        difficulty=difficulty,
        solution=_text(place, "solution", cells["solution"]),
        pass_rate=_pass_rate(place, cells["pass_rate"], difficulty),
    )


def _cell(row: Mapping[str, Any], given: str | None, names: Iterable[str]) -> Any:
    """The first column that has something in it."""
    for name in (given,) if given else names:
        if row.get(name) not in (None, ""):
            return row[name]
    return None


def _text(place: str, field: str, value: Any) -> Any:
    """Text as it is, numbers as text, None as None."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(int(value)) if float(value).is_integer() else str(value)
    raise DataError(f"{place}: {field} must be text or a number, not {type(value).__name__}")


def _format_note(starter: str) -> str:
    if not starter.strip():
        return f"\n\n{STDIN_NOTE}"
    return f"\n\n{STARTER_NOTE}\n```python\n{starter}\n```"


def _pass_rate(place: str, value: Any, difficulty: str | None) -> float | None:
    if value is None and (match := _PASSES.fullmatch(difficulty or "")) and int(match[2]):
        value = int(match[1]) / int(match[2])
    if value is None:
        return None
    if isinstance(value, (int, float)) and 0 <= value <= 1:
        return float(value)
    raise DataError(f"{place}: pass_rate must be a number from 0 to 1, not {value!r}")
