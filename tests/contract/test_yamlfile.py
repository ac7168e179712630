from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from controlplane.contract.yamlfile import FileError, load, parse


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = Field(default=1, gt=0)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    inner: Inner = Inner()
    many: list[Inner] = []


def test_a_good_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: x\ninner:\n  size: 3\nmany:\n  - size: 4\n")
    assert load(path, Outer) == Outer(name="x", inner=Inner(size=3), many=[Inner(size=4)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ninner:\n  sise: 3\n", "f:3: inner.sise: unknown key; did you mean 'size'? (allowed here: size)"),
        ("name: x\ninner:\n  size: 0\n", "f:3: inner.size: input should be greater than 0, not 0"),
        ("name: x\nmany:\n- size: 1\n- size: many\n", "f:4: many[1].size: "),
        ("name: x\nname: y\n", "f:2: key 'name' is given twice"),
        ("inner:\n  size: 3\n", "f:1: name: this key is required"),
        ("- a\n", "f:1: the file must hold keys and values, not list"),
        ("", "f:1: the file must hold keys and values, not NoneType"),
        ("name: [x\n", "f:2: not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(text: str, message: str) -> None:
    with pytest.raises(FileError) as error:
        parse(text, Outer, name="f")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read"):
        load(tmp_path / "none.yaml", Outer)
