import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.rundir import append_line, read_lines, write_atomic


def test_a_file_is_replaced_whole_with_its_mode_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_atomic(path, "old")
    write_atomic(path, "new", mode=0o600, durable=True)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["b.json"]


def test_a_failed_replace_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.json"
    write_atomic(path, "old")

    def broken(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="no"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["b.json"]


@given(cut=st.integers(0, 60))
def test_a_torn_last_line_is_left_out_and_the_others_are_kept(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    records = [{"n": number, "text": "é\n"} for number in range(3)]
    for record in records:
        append_line(path, record)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - cut])
    found = list(read_lines(path))
    assert found == records[: len(found)]
    assert len(found) >= len(content[: len(content) - cut].split(b"\n")) - 1


def test_a_missing_file_is_empty_and_damage_inside_is_named(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "none.jsonl")) == []
    path = tmp_path / "x.jsonl"
    path.write_text('{"n":1}\n{"n":\n{"n":3}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl: damaged line"):
        list(read_lines(path))
