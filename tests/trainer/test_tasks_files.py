"""Data files in the shapes people have; every file here is made by the test in the shape of the real one."""

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from trainer.data.files import Record, read_records, write_records
from trainer.data.unit_tests import DataError

TESTS = [{"input": "3\n", "output": "9\n", "testtype": "stdin"}]
STDIN = json.dumps({"input": "3\n", "output": "9\n"})
CALL = json.dumps({"function": "add", "arguments": [1, [2]], "output": [3]})
RECORDS = [
    Record("What is 1+1?", answer="2", id="a", difficulty="easy", solution="Two.", pass_rate=0.5),
    Record("Square it.", tests=(STDIN, "assert f(2) == 4"), id="b"),
]


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def only(path: Path, **how: Any) -> Record:
    (record,) = read_records(path, **how)
    return record


@pytest.mark.parametrize("name", ["records.jsonl", "records.parquet"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / "deep" / name
    assert write_records(path, iter(RECORDS)) == 2
    assert list(read_records(path)) == RECORDS
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> Any:
        yield RECORDS[0]
        raise RuntimeError("no more")

    path = tmp_path / "records.jsonl"
    with pytest.raises(RuntimeError):
        write_records(path, broken())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("row", "record"),
    [
        pytest.param(
            {"problem": "Find x.", "answer": "5", "difficulty": "3/8"},
            {"prompt": "Find x.", "answer": "5", "difficulty": "3/8", "pass_rate": 0.375},
            id="polaris",
        ),
        pytest.param(
            {"ID": "2024-I-1", "Problem": "Find x.", "Solution": "So.", "Answer": 204},
            {"prompt": "Find x.", "answer": "204", "id": "2024-I-1", "solution": "So."},
            id="aime24",
        ),
        pytest.param({"problem": "Find x.", "answer": "070", "id": "0"}, {"answer": "070", "id": "0"}, id="aime25"),
        pytest.param(
            {
                "problem": "p",
                "solution": "s",
                "answer": "\\frac12",
                "subject": "Algebra",
                "level": 5,
                "unique_id": "t/1.json",
            },
            {"prompt": "p", "answer": "\\frac12", "solution": "s", "difficulty": "5", "id": "t/1.json"},
            id="math500",
        ),
        pytest.param(
            {"prompt": "p", "tests": TESTS, "id": 7, "difficulty": "easy"},
            {"prompt": "p", "tests": (STDIN,), "id": "7", "difficulty": "easy"},
            id="own-objects",
        ),
        pytest.param(
            {"prompt": "p", "tests": ["assert f(2) == 4"]}, {"tests": ("assert f(2) == 4",)}, id="own-asserts"
        ),
        pytest.param(
            {"problem": "p", "tests": json.dumps({"inputs": [[1, [2]]], "outputs": [[[3]]], "fn_name": "add"})},
            {"tests": (CALL,)},
            id="deepcoder-taco-call",
        ),
        pytest.param(
            {"problem": "p", "tests": json.dumps({"inputs": ["3\n"], "outputs": ["9\n"]})},
            {"tests": (STDIN,)},
            id="deepcoder-taco",
        ),
        pytest.param(
            {
                "problem": "p",
                "tests": json.dumps([{"type": "function_call", "fn_name": "add", "input": [1, [2]], "output": [[3]]}]),
            },
            {"tests": (CALL,)},
            id="deepcoder-primeintellect",
        ),
    ],
)
def test_known_shapes_are_understood(tmp_path: Path, row: dict[str, Any], record: dict[str, Any]) -> None:
    read = only(lines(tmp_path / "data.jsonl", row))
    assert {name: getattr(read, name) for name in record} == record


def packed(value: Any, pickled: bool) -> str:
    data = pickle.dumps(json.dumps(value)) if pickled else json.dumps(value).encode()
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize("private", [json.dumps(TESTS), packed(TESTS, False), packed(TESTS, True), ""])
def test_livecodebench_tests_are_read_packed_or_not(tmp_path: Path, private: str) -> None:
    row = {
        "question_content": "Square the number.",
        "platform": "atcoder",
        "question_id": "abc301_a",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(TESTS),
        "private_test_cases": private,
        "metadata": "{}",
    }
    record = only(lines(tmp_path / "test6.jsonl", row))
    assert record.tests == ((STDIN, STDIN) if private else (STDIN,))
    assert (record.id, record.difficulty) == ("abc301_a", "easy")
    assert "standard input" in record.prompt


def test_livecodebench_calls_take_their_function_from_the_metadata(tmp_path: Path) -> None:
    row = {
        "question_content": "Add.",
        "question_id": "1",
        "starter_code": "class Solution:\n    def add(self, a, b):",
        "public_test_cases": json.dumps([{"input": "1\n[2]", "output": "[3]", "testtype": "functional"}]),
        "metadata": json.dumps({"func_name": "add"}),
    }
    record = only(lines(tmp_path / "test.jsonl", row))
    assert record.tests == (CALL,)
    assert row["starter_code"] in record.prompt
    with pytest.raises(DataError, match=r"func_name"):
        only(lines(tmp_path / "test.jsonl", row | {"metadata": "{}"}))


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    for payload in (Attack(), [json.dumps(TESTS)], {"a": 1}):
        text = base64.b64encode(zlib.compress(pickle.dumps(payload))).decode()
        path = lines(tmp_path / "data.jsonl", {"question_content": "p", "private_test_cases": text})
        with pytest.raises(DataError, match=r"data.jsonl:1: tests are a pickled object, which is never loaded"):
            only(path)
    assert not (tmp_path / "ran").exists()


def test_a_compressed_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.unit_tests.LARGEST", 1 << 16)
    path = lines(tmp_path / "data.jsonl", {"prompt": "p", "private_test_cases": packed(["x" * (1 << 20)], False)})
    with pytest.raises(DataError, match=r"larger than"):
        only(path)


def test_columns_can_be_named_and_the_names_are_checked(tmp_path: Path) -> None:
    path = lines(tmp_path / "data.jsonl", {"problem": "not this", "text": "this", "gold": 3})
    assert only(path, columns={"prompt": "text", "answer": "gold"}).prompt == "this"
    assert only(path, columns={"prompt": "text", "answer": "gold"}).answer == "3"
    with pytest.raises(
        DataError, match=r"data.jsonl:1: no column 'golden' for answer; the row has problem, text, gold"
    ):
        only(path, columns={"answer": "golden"})
    with pytest.raises(DataError, match=r"'reply' is no field of a record"):
        only(path, columns={"reply": "gold"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "p"}\n{"prompt"', r"data.jsonl:2: not valid JSON"),
        ('{"prompt": "p"}\n\n[1]\n', r"data.jsonl:3: must be a JSON object, not list"),
        ('{"answer": "5"}\n', r"data.jsonl:1: no prompt: none of the columns prompt, problem"),
        ('{"prompt": ["p"]}\n', r"data.jsonl:1: prompt must be text or a number, not list"),
        ('{"prompt": "p", "tests": 3}\n', r"data.jsonl:1: tests must be a list, not int"),
        (
            '{"prompt": "p", "tests": [{"input": "1"}]}\n',
            r"data.jsonl:1: a test must be text or an object with input and",
        ),
        ('{"prompt": "p", "tests": {"inputs": [1], "outputs": []}}\n', r"as many outputs as inputs"),
        ('{"prompt": "p", "pass_rate": 7}\n', r"data.jsonl:1: pass_rate must be a number from 0 to 1"),
        ('{"prompt": "p", "private_test_cases": "!!"}\n', r"data.jsonl:1: tests are neither JSON nor base64"),
        ("[" * 100_000, r"data.jsonl:1: not valid JSON"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_records(path))


def test_a_row_without_a_name_is_called_after_its_place(tmp_path: Path) -> None:
    path = lines(tmp_path / "data.jsonl", {"prompt": "p"}, {"prompt": "q"})
    assert [record.id for record in read_records(path)] == [f"{path}:1", f"{path}:2"]


def test_a_json_array_is_read_like_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"prompt": "p"}, {"prompt": "q"}], indent=1))
    assert [record.prompt for record in read_records(path)] == ["p", "q"]
    assert [record.prompt for record in read_records(lines(path, {"prompt": "r"}))] == ["r"]


def test_a_snapshot_directory_is_read_split_by_split(tmp_path: Path) -> None:
    lines(tmp_path / "test.jsonl", {"prompt": "1"})
    lines(tmp_path / "test2.jsonl", {"prompt": "2"})
    (tmp_path / ".cache").mkdir()
    lines(tmp_path / ".cache" / "old.jsonl", {"prompt": "never"})
    (tmp_path / "README.md").write_text("words")
    assert [record.prompt for record in read_records(tmp_path)] == ["1", "2"]
    lines(tmp_path / "train-00000-of-00001.jsonl", {"prompt": "3"})
    with pytest.raises(DataError, match=r"holds the splits test, train; name the one to read"):
        list(read_records(tmp_path))
    assert [record.prompt for record in read_records(tmp_path, split="train")] == ["3"]
    with pytest.raises(DataError, match=r"'dev' is none of them"):
        list(read_records(tmp_path, split="dev"))


def test_paths_that_are_no_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("words")
    for path, message in (
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path, "holds no .parquet or .jsonl"),
        (tmp_path / "words.txt", "unknown format"),
    ):
        with pytest.raises(DataError, match=message):
            list(read_records(path))
    with pytest.raises(DataError, match=r"records are written to"):
        write_records(tmp_path / "x.csv", [])


def test_parquet_and_saved_datasets_are_read(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet, ipc = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow.ipc")
    rows = [{"problem": "p", "answer": "1", "difficulty": "0/8"}, {"problem": "q", "answer": "2", "difficulty": "8/8"}]
    table = arrow.Table.from_pylist(rows)
    (tmp_path / "snapshot" / "data").mkdir(parents=True)
    parquet.write_table(table, tmp_path / "snapshot" / "data" / "train-00000-of-00001.parquet")
    saved = tmp_path / "saved" / "train"
    saved.mkdir(parents=True)
    for number in range(2):
        name = f"data-0000{number}-of-00002.arrow"
        with ipc.new_stream(saved / name, table.schema) as stream:
            stream.write_table(table.slice(number, 1))
    (saved / "dataset_info.json").write_text("{}")
    names = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
    (saved / "state.json").write_text(json.dumps({"_data_files": names}))
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    for path in (tmp_path / "snapshot", saved, tmp_path / "saved"):
        assert [(r.prompt, r.answer, r.pass_rate) for r in read_records(path)] == [("p", "1", 0.0), ("q", "2", 1.0)]
    (saved / names[0]["filename"]).write_bytes(b"not arrow")
    with pytest.raises(DataError, match=r"not a readable Arrow stream"):
        list(read_records(saved))
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"not a readable Parquet file"):
        list(read_records(bad))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    (tmp_path / "x.parquet").touch()
    with pytest.raises(DataError, match=r"x.parquet: needs pyarrow: pip install 'scalerl\[data\]'"):
        list(read_records(tmp_path / "x.parquet"))
    with pytest.raises(DataError, match=r"y.parquet: needs pyarrow"):
        write_records(tmp_path / "y.parquet", [])
