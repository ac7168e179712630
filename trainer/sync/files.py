"""All weights in one file that other processes map: /dev/shm on one machine, else a file system that all of them see.

    write(path, layout, tensors)   one tensor after the other -> path, complete from the moment it has its name; SHA-256
    read(path, digest)             maps the file, compares the digest, name -> tensor without a copy

The format is that of safetensors, so that any tool of the field reads the file. Names, shapes and formats are written
first, so they are asked for apart from the values: the shards of a large model are gathered parameter by parameter, and
there is never more than one whole parameter in memory. A file is never written to again, and a reader that has mapped
one may go on reading after it was deleted or replaced. Nothing here is made to survive a crash of the machine.
"""

import hashlib
import json
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a place for memory that processes share, not for files that stay
"""Where the processes of one machine hand each other a file; Linux alone has it."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Formats that are written, by their names in the file."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Bytes, of the first value; the widest formats come first, so every tensor lies on a multiple of its own width.
_ALIGNMENT = 8
_LENGTH = 8  # bytes that give the length of the header


class WeightsFileError(RuntimeError):
    """The file is not there, not whole or not the one that was meant, or cannot be written as asked. One sentence."""


def write(path: Path, layout: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Write every tensor of `layout` and return the SHA-256 of the file, in hexadecimal.

    Args:
        layout: shape and format of each tensor; only these are read, so meta tensors and sharded ones will do.
        tensors: the values in any order, on any device; they are converted to the format of the layout.

    Raises:
        WeightsFileError: a tensor is missing, unknown, there twice or has another shape.
        OSError: no room, or no such directory.
    """
    places, header = _header(layout)
    left = set(layout)
    with _new_file(path) as file:
        file.write(header)
        for name, tensor in tensors:
            if name not in left:
                raise WeightsFileError(
                    f"{path.name}: tensor {name} {'comes twice' if name in layout else 'is unknown'}"
                )
            if tensor.shape != layout[name].shape:
                raise WeightsFileError(
                    f"{path.name}: tensor {name} has shape {list(tensor.shape)}, announced was {list(layout[name].shape)}"
                )
            left.remove(name)
            file.seek(len(header) + places[name])
            file.write(_bytes(tensor.detach().to("cpu", layout[name].dtype)))
        if left:
            raise WeightsFileError(f"{path.name}: tensor {min(left)} is missing, and {len(left) - 1} more")
        file.flush()
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(file.name, path)
    return digest


def read(path: Path, digest: str) -> Mapping[str, Tensor]:
    """The tensors of a file, mapped into memory. Writing into one changes nothing but the caller's own view.

    Raises:
        WeightsFileError: no such file, or its content is not that of `digest`.
    """
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise WeightsFileError(f"weights file {path} cannot be read: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise WeightsFileError(f"weights file {path} has digest {found[:12]}, expected was {digest[:12]}")
    start = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    entries = json.loads(content[_LENGTH:start])
    return {name: _mapped(content, start, entry) for name, entry in entries.items() if name != "__metadata__"}


def _header(layout: Mapping[str, Tensor]) -> tuple[dict[str, int], bytes]:
    """Where each tensor begins, counted from the end of the header, and the header."""
    places, entries, end = {}, {}, 0
    for name in sorted(layout, key=lambda name: (-layout[name].element_size(), name)):
        tensor = layout[name]
        if tensor.dtype not in NAMES:
            raise WeightsFileError(f"tensor {name} has format {tensor.dtype}; written are {', '.join(map(str, NAMES))}")
        places[name], end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [places[name], end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return places, len(text).to_bytes(_LENGTH, "little") + text


@contextmanager
def _new_file(path: Path) -> Iterator[Any]:
    """A file beside `path` that is gone afterwards unless it was renamed. Readable for the owner alone."""
    with tempfile.NamedTemporaryFile("w+b", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        try:
            yield file
        finally:
            Path(file.name).unlink(missing_ok=True)


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.contiguous().reshape(-1)
    raw: Any = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return memoryview(raw)


def _mapped(content: mmap.mmap, start: int, entry: Mapping[str, Any]) -> Tensor:
    dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
    if begin == end:
        return torch.empty(entry["shape"], dtype=dtype)
    flat = torch.frombuffer(content, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=start + begin)
    return flat.view(entry["shape"])
