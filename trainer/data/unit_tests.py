"""Unit tests of code problems: whatever a data set calls them, brought into this project's three forms.

    {"input": "3\\n", "output": "9\\n"}                      through standard input and output
    {"function": "square", "arguments": [3], "output": 9}    a call; of `Solution().square` where the code has that class
    assert square(3) == 9                                    Python source

Nothing that comes in a file is executed here: packed tests are JSON, or a pickle that is a single string of JSON, which is
read opcode by opcode and never loaded.
"""

import base64
import binascii
import json
import pickletools
import zlib
from collections.abc import Mapping
from typing import Any

LARGEST = 512 << 20
"""Bytes that packed tests may grow to: a compressed bomb must not fill the memory."""


class DataError(ValueError):
    """A data file cannot be used. The message is one line that says where and why; commands exit with 2."""


def unit_tests(place: str, value: Any, function: str | None = None) -> tuple[str, ...]:
    """Whatever a data set calls tests, in this project's form: `{"input", "output"}` through standard input and output,
    `{"function", "arguments", "output"}` for a call, or Python source with asserts."""
    if isinstance(value, str):
        value = _unpacked(place, value) if value.lstrip()[:1] in ("[", "{") else [value]
    if isinstance(value, dict):
        value = _paired(place, value) if "inputs" in value else [value]
    if not isinstance(value, list):
        raise DataError(f"{place}: tests must be a list, not {type(value).__name__}")
    return tuple(_test(place, test, function) for test in value)


def _paired(place: str, value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """TACO and DeepCoder: `{"inputs": [...], "outputs": [...], "fn_name": ...}`."""
    inputs, outputs = value["inputs"], value.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise DataError(f"{place}: tests must have as many outputs as inputs")
    name = value.get("fn_name")
    return [{"fn_name": name, "input": given, "output": out} for given, out in zip(inputs, outputs, strict=True)]


def _test(place: str, test: Any, function: str | None) -> str:
    if isinstance(test, str):
        if test.lstrip()[:1] != "{":
            return test
        test = _unpacked(place, test)
    if not isinstance(test, dict) or "output" not in test or not test.keys() & {"input", "arguments"}:
        raise DataError(f"{place}: a test must be text or an object with input and output")
    metadata = test.get("metadata")
    inner = metadata.get("func_name") if isinstance(metadata, dict) else None
    name = test.get("function") or test.get("fn_name") or inner
    if name is None and test.get("testtype") == "functional":
        name = function
        if name is None:
            raise DataError(f"{place}: a functional test needs func_name in the column metadata")
    if name is None and "input" not in test:
        raise DataError(f"{place}: a test with arguments needs a function")
    if name is None:
        given, wanted = test["input"], test["output"]
        parts = ["\n".join(map(str, part)) if isinstance(part, list) else str(part) for part in (given, wanted)]
        return json.dumps({"input": parts[0], "output": parts[1]})
    if "arguments" in test:
        arguments, wanted = test["arguments"], test["output"]
    elif isinstance(test["input"], str):  # LiveCodeBench: one JSON value a line
        arguments = [_value(place, line) for line in test["input"].splitlines() if line.strip()]
        wanted = _value(place, test["output"]) if isinstance(test["output"], str) else test["output"]
    else:  # TACO: a list of arguments, and a list that holds the one result
        arguments, wanted = test["input"], test["output"]
        wanted = wanted[0] if isinstance(wanted, list) and len(wanted) == 1 else wanted
    if not isinstance(arguments, list):
        raise DataError(f"{place}: the arguments of a functional test must be a list")
    return json.dumps({"function": name, "arguments": arguments, "output": wanted})


def _value(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise DataError(f"{place}: a functional test has {text[:40]!r}, which is not JSON") from None


def public_and_private(place: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """LiveCodeBench keeps its tests in two columns and the function's name in a third."""
    metadata = row.get("metadata")
    if isinstance(metadata, str) and metadata.strip():
        metadata = _value(place, metadata)
    function = metadata.get("func_name") if isinstance(metadata, dict) else None
    parts = (row.get("public_test_cases"), row.get("private_test_cases"))
    columns = (_unpacked(place, part) if isinstance(part, str) else part for part in parts if part not in (None, ""))
    return tuple(test for column in columns for test in unit_tests(place, column, function))


def _unpacked(place: str, text: str) -> Any:
    """JSON, or base64 of zlib of JSON, or that of a pickle that holds nothing but a string of JSON."""
    if text.lstrip()[:1] not in ("[", "{"):
        try:
            data = base64.b64decode(text, validate=True)
            inflate = zlib.decompressobj()
            data = inflate.decompress(data, LARGEST)
        except (binascii.Error, ValueError, zlib.error):
            raise DataError(f"{place}: tests are neither JSON nor base64 of compressed JSON") from None
        if inflate.unconsumed_tail:
            raise DataError(f"{place}: tests are larger than {LARGEST >> 20} MiB")
        text = _pickled_string(place, data) if data[:1] == b"\x80" else data.decode(errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{place}: tests are not valid JSON") from None


def _pickled_string(place: str, data: bytes) -> str:
    """The string in a pickle that is only a string. Its opcodes are listed, never run: a pickle may hold any program."""
    texts: list[Any] = []
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"):
                texts.append(argument)
            elif opcode.name not in ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP"):
                texts.clear()
                break
    except ValueError:
        texts.clear()
    if len(texts) != 1:
        raise DataError(f"{place}: tests are a pickled object, which is never loaded; convert the column to JSON first")
    return str(texts[0])
