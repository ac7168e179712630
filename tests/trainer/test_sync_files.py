"""Weights in a file: what was written is what is read, bit for bit, or nothing is."""

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from trainer.sync.files import WeightsFileError, read, write


def some() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        "head": torch.randn(5, 3, generator=random),
        "odd": torch.randn(7, generator=random).bfloat16(),
        "wide": torch.randn(2, 2, generator=random, dtype=torch.float64),
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "nothing": torch.empty(0, 4),
        "turned": torch.randn(4, 6, generator=random).t(),
    }


def test_what_is_read_is_what_was_written_and_other_tools_read_it_too(tmp_path: Path) -> None:
    tensors, path = some(), tmp_path / "weights"
    digest = write(path, tensors, reversed(tensors.items()))
    for found in (read(path, digest), safetensors.torch.load_file(path)):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
    assert [file.name for file in tmp_path.iterdir()] == ["weights"]
    assert path.stat().st_mode & 0o077 == 0


def test_values_take_the_format_of_the_layout(tmp_path: Path) -> None:
    layout = {"a": torch.empty(3, dtype=torch.bfloat16, device="meta")}
    values = torch.tensor([1.0, 2.5, 1 / 3])
    assert torch.equal(
        read(tmp_path / "w", write(tmp_path / "w", layout, [("a", values)]))["a"], values.to(torch.bfloat16)
    )


def test_tensors_are_taken_one_after_the_other_and_not_kept(tmp_path: Path) -> None:
    before: list[weakref.ref[Tensor]] = []

    def one_by_one() -> Iterator[tuple[str, Tensor]]:
        for name in some():
            assert all(ref() is None for ref in before[:-1])  # the loop still names the last one
            tensor = some()[name].clone()
            before.append(weakref.ref(tensor))
            yield name, tensor

    write(tmp_path / "w", some(), one_by_one())
    assert len(before) == len(some())


@pytest.mark.parametrize("at", [0, 8, 20, -1])
def test_one_changed_byte_is_found(tmp_path: Path, at: int) -> None:
    path = tmp_path / "w"
    digest = write(path, some(), some().items())
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsFileError, match="has digest"):
        read(path, digest)


@pytest.mark.parametrize("left", [0, 100])
def test_a_file_cut_short_or_gone_is_an_error_with_its_name(tmp_path: Path, left: int) -> None:
    path = tmp_path / "w"
    digest = write(path, some(), some().items())
    os.truncate(path, left)
    with pytest.raises(WeightsFileError, match=str(path)):
        read(path, digest)
    path.unlink()
    with pytest.raises(WeightsFileError, match=str(path)):
        read(path, digest)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t | {"more": torch.ones(1)}, "more is unknown"),
        (lambda t: {k: v for k, v in t.items() if k != "odd"}, "odd is missing"),
        (lambda t: t | {"head": torch.ones(3, 5)}, r"head has shape \[3, 5\]"),
    ],
)
def test_what_does_not_fit_the_layout_leaves_the_old_file(tmp_path: Path, change: Any, complaint: str) -> None:
    path = tmp_path / "w"
    digest = write(path, some(), some().items())
    with pytest.raises(WeightsFileError, match=complaint):
        write(path, some(), change(some()).items())
    assert torch.equal(read(path, digest)["head"], some()["head"])
    assert [file.name for file in tmp_path.iterdir()] == ["w"]


def test_a_reader_keeps_what_it_has_mapped_and_writes_into_nothing_but_its_own_view(tmp_path: Path) -> None:
    path = tmp_path / "w"
    digest = write(path, some(), some().items())
    held = read(path, digest)
    held["head"].zero_()
    assert torch.equal(read(path, digest)["head"], some()["head"])
    write(path, {"other": torch.ones(2)}, [("other", torch.ones(2))])
    assert torch.equal(held["odd"], some()["odd"])
