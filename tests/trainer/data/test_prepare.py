"""The whole preparation, through the command."""

import json
import random
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.trainer.data.corpus import corpus, dirty, reworded, write
from trainer.data import files
from trainer.data.cli import app
from trainer.data.files import read_records
from trainer.data.prepare import run as room

DOCS = Path(__file__).parents[3] / "docs" / "data.md"
NAMES = ("train.jsonl", "validation.jsonl", "test.jsonl", "removed.jsonl", "report.json", "report.md")


def command(spec: Path) -> Any:
    return CliRunner().invoke(app, ["prepare", str(spec)])


def spec_file(folder: Path, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump({"inputs": [{"path": "in.jsonl"}], "output": "out", **more}))
    return path


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in NAMES}


def plant(folder: Path, order: int = 0) -> Path:
    """A file with one of everything, an evaluation set, and a spec."""
    clean, held = corpus(120, seed=21), corpus(40, seed=22)
    rng = random.Random(5)
    rows: list[dict[str, Any]] = [asdict(record) for record in clean]
    rows += [
        {**rows[0], "id": "copy", "prompt": rows[0]["prompt"] + "\r\n\n"},
        {**rows[1], "id": "near", "prompt": reworded(rows[1]["prompt"], rng)},
        {**rows[2], "id": "conflict", "answer": "-5"},
        {**rows[3], "id": "leak", "prompt": f"Solve this. {held[7].prompt}"},
        {**rows[4], "id": "unanswered", "prompt": "Is there an answer to this one?", "answer": " "},
        {**rows[4], "id": "also unanswered", "prompt": "And is there one to this other one?", "answer": None},
        {**rows[5], "id": "solved", "prompt": "How many legs do five ordinary dogs have together?", "pass_rate": 1.0},
        {**rows[6], "id": "endless", "prompt": "How long is a very long solution?", "solution": "so " * 12_001},
    ]
    spec = spec_file(
        folder,
        decontaminate={"against": {"MATH-500": {"path": "eval.jsonl"}}},
        trivial={"pass_rate": 1.0},
        split={"validation": 10, "test": 0.05, "seed": 4},
    )
    write(folder / "in.jsonl", random.Random(order).sample(rows, len(rows)) if order else rows)
    write(folder / "eval.jsonl", [asdict(record) for record in held])
    return spec


def test_what_was_planted_is_removed_for_its_reason_and_nothing_else_is(tmp_path: Path) -> None:
    result = command(plant(tmp_path))
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "out/removed.jsonl").read_text().splitlines()]
    ids = [f"made-21-{n:05d}" for n in range(3)]
    assert {(line["id"], line["stage"], line["of"]) for line in lines} == {
        ("unanswered", "format_standardization", ""),
        ("also unanswered", "format_standardization", ""),
        ("endless", "length_validation", ""),
        (ids[0], "duplicates", "copy"),
        ("conflict", "duplicates", ids[2]),
        (ids[2], "duplicates", "conflict"),
        ("near", "near_duplicates", ids[1]),
        ("leak", "decontamination", "MATH-500/made-22-00007"),
        ("solved", "trivial_prompts", ""),
    }
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["splits"]["validation"] == 10
    assert report["read"] == 128 == report["kept"] + len(lines)
    assert sum(report["splits"].values()) == report["kept"]
    assert sum(sum(counts.values()) for counts in report["strata"].values()) == report["kept"]


def test_what_is_kept_and_removed_is_what_was_read(tmp_path: Path) -> None:
    command(plant(tmp_path))
    kept = [record.id for name in NAMES[:3] for record in read_records(tmp_path / "out" / name)]
    gone = [json.loads(line)["id"] for line in (tmp_path / "out/removed.jsonl").read_text().splitlines()]
    assert sorted(kept + gone) == sorted(record.id for record in read_records(tmp_path / "in.jsonl"))


def test_the_same_input_gives_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    for folder in ("here", "elsewhere/deep"):
        assert command(plant(tmp_path / folder)).exit_code == 0
    assert outputs(tmp_path / "here/out") == outputs(tmp_path / "elsewhere/deep/out")


def test_the_order_of_rows_changes_nothing_but_the_digest_of_the_file(tmp_path: Path) -> None:
    for order in (0, 1):
        command(plant(tmp_path / str(order), order))
    one, other = (outputs(tmp_path / str(order) / "out") for order in (0, 1))
    assert {name for name in NAMES if one[name] != other[name]} == {"report.json", "report.md"}
    mine, theirs = (json.loads(text["report.json"])["files"][1]["sha256"].encode() for text in (one, other))
    assert one["report.json"].replace(mine, theirs) == other["report.json"]


def test_preparing_what_was_prepared_removes_nothing(tmp_path: Path) -> None:
    first = plant(tmp_path)
    command(first)
    again = yaml.safe_load(first.read_text()) | {
        "inputs": [{"path": f"out/{name}"} for name in NAMES[:3]],
        "output": "again",
    }
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(again))
    assert command(tmp_path / "again.yaml").exit_code == 0
    report = json.loads((tmp_path / "again/report.json").read_text())
    assert report["removed"] == 0
    assert (tmp_path / "again/train.jsonl").read_bytes() == (tmp_path / "out/train.jsonl").read_bytes()
    assert not report["stages"][0]["notes"], "nothing had to be rewritten"


def test_the_columns_of_polaris_are_read_and_rows_without_ids_get_lasting_ones(tmp_path: Path) -> None:
    rows = dirty(corpus(100, seed=31), seed=32)
    for name, order in (("a", rows), ("b", rows[::-1])):
        write((spec := spec_file(tmp_path / name)).parent / "in.jsonl", order)
        assert command(spec).exit_code == 0
    assert (tmp_path / "a/out/train.jsonl").read_bytes() == (tmp_path / "b/out/train.jsonl").read_bytes()
    strata = json.loads((tmp_path / "a/out/report.json").read_text())["strata"]
    assert list(strata) == [f"{k}/8" for k in range(8)]
    assert str(tmp_path) not in (tmp_path / "a/out/train.jsonl").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"splitt": {}}, r"spec\.yaml:\d+: splitt: unknown key; did you mean 'split'\?"),
        ({"near_duplicates": {"threshold": 2}}, r"near_duplicates\.threshold: .*less than or equal to 1"),
        ({"split": {"validation": 1.0}}, r"split\.validation: must be a share"),
        ({"split": {"validation": 0.5, "test": 0.5}}, r"split\.test: validation and test take everything"),
        ({"split": {"edges": [2, 1]}}, r"split\.edges: must be growing"),
        ({"split": {"validation": 500}}, r"split\.validation: 500 for validation"),
        ({"length": {"tokenizer": "nowhere"}}, r"length\.tokenizer: .*nowhere is no tokenizer\.json"),
        ({"toxicity": {"module": "x", "threshold": 1}}, r"toxicity\.module: "),
        ({"toxicity": {"module": "no_such_package:f", "threshold": 1}}, r"toxicity\.module: no_such_package:f cannot"),
        ({"decontaminate": {"against": {}}}, r"decontaminate\.against: "),
        ({"decontaminate": {"against": {"AIME": {"path": "gone.jsonl"}}}}, r"gone\.jsonl: no such file"),
        ({"inputs": [{"path": "in.jsonl", "columns": {"quest": "q"}}]}, r"inputs\[0\]\.columns: 'quest' is no field"),
        ({"inputs": [{"path": "in.jsonl", "columns": {"prompt": "q"}}]}, r"in\.jsonl:1: no column 'q'"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place_and_nothing_is_written(
    tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    spec = spec_file(tmp_path, **more)
    write(tmp_path / "in.jsonl", [asdict(record) for record in corpus(30, seed=1)])
    result = command(spec)
    assert result.exit_code == 2
    last = result.output.strip().splitlines()[-1]
    assert re.search(message, last), last
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "spec.yaml"]


def test_a_byte_that_is_no_text_is_named_with_file_and_line(tmp_path: Path) -> None:
    spec = spec_file(tmp_path)
    (tmp_path / "in.jsonl").write_bytes(b'{"prompt": "a", "answer": "1"}\n{"prompt": "\xff", "answer": "1"}\n')
    result = command(spec)
    assert result.exit_code == 2
    assert "in.jsonl:2: " in result.output


def test_a_directory_that_is_there_is_never_written_to(tmp_path: Path) -> None:
    spec = plant(tmp_path)
    (tmp_path / "out").mkdir()
    result = command(spec)
    assert result.exit_code == 2
    assert "is there already" in result.output
    assert not list((tmp_path / "out").iterdir())


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = plant(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(report: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "markdown", full)
    result = command(spec)
    assert result.exit_code == 2
    assert "No space left" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_tokens_of_a_tokenizer_are_counted_where_one_is_named(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    spec = spec_file(tmp_path, length={"tokenizer": ".", "prompt_tokens": 12}, split={"validation": 0, "test": 0})
    write(tmp_path / "in.jsonl", [{"prompt": "x" * n, "answer": "1", "id": str(n)} for n in (12, 13)])
    assert command(spec).exit_code == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["stages"][1]["removed"] == 1
    assert any(file["role"] == "tokenizer" for file in report["files"])


def test_the_report_stays_readable_whatever_the_prompts_hold(tmp_path: Path) -> None:
    spec = spec_file(tmp_path, split={"validation": 0, "test": 0})
    nasty = "a | b\n# heading <script>\n```"
    write(tmp_path / "in.jsonl", [{"prompt": nasty, "answer": "1", "id": f"{n}", "difficulty": "x|y"} for n in (1, 2)])
    assert command(spec).exit_code == 0
    text = (tmp_path / "out/report.md").read_text()
    assert "\n# heading" not in text
    assert "<script>" not in text
    assert "x\\|y" in text


def test_the_sample_spec_of_the_documentation_runs(tmp_path: Path) -> None:
    sample = re.search(r"```yaml\n(inputs:.*?)```", DOCS.read_text(), re.DOTALL)
    assert sample
    (tmp_path / "spec.yaml").write_text(sample.group(1))
    spec = yaml.safe_load(sample.group(1))
    sources = [*spec["inputs"], *spec["decontaminate"]["against"].values()]
    for seed, source in enumerate(sources):
        made = corpus(1500 if seed == 0 else 20, seed=seed + 40)
        columns = {field: source.get("columns", {}).get(field, field) for field in files.COLUMNS}
        rows = [{columns[k]: v for k, v in asdict(record).items() if v is not None} for record in made]
        if source.get("kind") == "code":
            rows = [{**row, "tests": [{"input": "1\n", "output": "2\n"}]} for row in rows]
        (tmp_path / source["path"]).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / source["path"], rows)
    result = command(tmp_path / "spec.yaml")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / spec["output"] / "report.json").read_text())
    assert report["splits"]["validation"] == spec["split"]["validation"]
