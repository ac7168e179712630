"""YAML file -> pydantic model, or one line that says file, line, key, what is wrong and what is allowed.

Recipes and policies are written by tired people; a typo must never start a run. Keys given twice, unknown keys, wrong
types and impossible values are all refused before anything else happens.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

M = TypeVar("M", bound=BaseModel)
Location = tuple[str | int, ...]


LARGEST = 1024 * 1024
"""Characters; what a person writes has some thousand."""

DEEPEST = 40
_OPENING = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


class FileError(ValueError):
    """A file that a person wrote is wrong. The message is one line, meant for the terminal; commands exit with 2."""


class Misplaced(ValueError):
    """Raised in a model's validator for a value that is wrong only beside others: `at` says where in the file it stands."""

    def __init__(self, at: Location, message: str) -> None:
        super().__init__(message)
        self.at = at


def load(path: Path, model: type[M], overrides: Mapping[str, str] | None = None) -> M:
    """Read `path`, put `overrides` (dotted key -> YAML value) in place, and validate the whole against `model`.

    Raises:
        FileError: cannot be read, is not YAML, or does not fit the model.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
    return parse(text, model, str(path), overrides)


def read_text(path: Path) -> str:
    """The text of a file that a person wrote, of bounded size; FileError when it is none. OSError goes through."""
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise FileError(f"{path}: is larger than {LARGEST} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: is not text in UTF-8 (byte {error.start})") from None


def parse(text: str, model: type[M], name: str = "<text>", overrides: Mapping[str, str] | None = None) -> M:
    """As `load`, from a string; `name` stands where the file name would."""
    if len(text) > LARGEST:
        raise FileError(f"{name}: is larger than {LARGEST} characters")
    places: dict[Location, str] = {}
    data = _data(text, places, name)
    if not isinstance(data, dict):
        raise FileError(f"{name}:1: the file must hold keys and values, not {type(data).__name__}")
    for key, value in (overrides or {}).items():
        _override(data, key, value, places)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # A misspelt key also makes the right one missing; the misspelling is what the person has to see.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise FileError(_sentence(first, places, name, model)) from None


def _data(text: str, places: dict[Location, str], name: str) -> Any:
    """What the text holds, and where; FileError with a line for anything that is not plain YAML."""
    try:
        _check_shape(text, name)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _collect(node, (), places, name)
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise FileError(f"{name}:{line}: not valid YAML: {error.problem or error}") from None
    except yaml.YAMLError as error:
        raise FileError(f"{name}:1: not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise FileError(f"{name}:1: nested too deep") from None
    except FileError:
        raise
    except (ValueError, OverflowError) as error:  # a date or a number that only looks like one
        raise FileError(f"{name}:1: holds a value that cannot be read: {error}") from None


def _check_shape(text: str, name: str) -> None:
    """Refuse what a few lines could blow up into gigabytes or hours: aliases and deep nesting. Reads no further than that."""
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        line = token.start_mark.line + 1
        if isinstance(token, yaml.AliasToken):
            raise FileError(f"{name}:{line}: aliases (*{token.value}) are not read; write it out")
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if depth > DEEPEST:
            raise FileError(f"{name}:{line}: nested too deep; at most {DEEPEST} levels are read")


def _override(data: dict[str, Any], key: str, text: str, places: dict[Location, str]) -> None:
    """Put one value in its place, and say there that it does not come from the file."""
    *parents, last = key.split(".")
    at: Location = ()
    for parent in parents:
        at = (*at, parent)
        inner = data.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise FileError(f"--set {key}: {parent!r} is a single value and has no keys")
        places.setdefault(at, f"--set {key}={text}")
        data = inner
    try:
        data[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise FileError(f"--set {key}: {text!r} is not a YAML value") from None
    at = (*at, last)
    for inside in [place for place in places if place[: len(at)] == at]:
        del places[inside]
    places[at] = f"--set {key}={text}"


def _collect(node: yaml.Node, at: Location, places: dict[Location, str], name: str) -> None:
    places.setdefault(at, f"{name}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            if here in places:
                raise FileError(f"{name}:{key.start_mark.line + 1}: key {_dotted(here)!r} is given twice")
            places[here] = f"{name}:{key.start_mark.line + 1}"
            _collect(value, here, places, name)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _collect(value, (*at, index), places, name)


def _sentence(error: ErrorDetails, places: dict[Location, str], name: str, model: type[BaseModel]) -> str:
    cause = error.get("ctx", {}).get("error")
    where = (*error["loc"], *cause.at) if isinstance(cause, Misplaced) else error["loc"]
    # Discriminated unions put their tag into the location; the file has no such key, so keep what the file has.
    at: Location = ()
    for part in where:
        if (*at, part) in places or part is where[-1]:
            at = (*at, part)
    known = at
    while known and known not in places:
        known = known[:-1]
    place = places.get(known, f"{name}:1")
    what = _what(error, at, model)
    return f"{place}: {_dotted(at) or 'top level'}: {what}"


def _what(error: ErrorDetails, at: Location, model: type[BaseModel]) -> str:
    if error["type"] == "extra_forbidden":
        allowed = _fields(model, at[:-1])
        close = difflib.get_close_matches(str(at[-1]), allowed, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"unknown key{hint}" + (f" (allowed here: {', '.join(allowed)})" if allowed else "")
    if error["type"] == "missing":
        return "this key is required"
    message = error["msg"].removeprefix("Value error, ")
    given = error["input"]
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool | type(None)) else ""
    return message[0].lower() + message[1:] + shown


def _fields(model: type[BaseModel], at: Location) -> list[str]:
    """Keys that the model allows at a place in the file; empty where that cannot be told from the types alone."""
    current: Any = model
    for part in at:
        field = (
            current.model_fields.get(str(part))
            if isinstance(current, type) and issubclass(current, BaseModel)
            else None
        )
        current = field.annotation if field is not None else None
    if isinstance(current, type) and issubclass(current, BaseModel):
        return [f.alias or n for n, f in current.model_fields.items()]
    return []


def _dotted(at: Location) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at).lstrip(".")
