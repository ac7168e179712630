"""Every value has the type, and every word is one of the words, that Grafana's own types allow."""

import copy
import enum
import typing
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.models.dashboard import Dashboard, DataTransformerConfig

from tests.dashboards.files import LOADED, NAMES, panels

plugins.register_default_plugins()


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation of the SDK asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (typing.Any, object):
        return True
    if origin is typing.Union:
        return any(fits(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(fits(element, arguments[0]) for element in value)
    if origin is typing.Literal:
        return value in arguments
    if hint is DataTransformerConfig and isinstance(value, dict):  # the SDK leaves these as they are
        return {"id", "options"} <= value.keys() <= {"id", "options", "disabled", "filter", "topic"}
    if not isinstance(hint, type):
        return origin is not dict or isinstance(value, dict)
    if issubclass(hint, enum.Enum):
        return isinstance(value, hint) or value in [member.value for member in hint]
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, hint)


def misfits(node: Any, at: str = "") -> list[str]:
    """Places whose value does not fit."""
    if isinstance(node, list):
        return [found for index, element in enumerate(node) for found in misfits(element, f"{at}[{index}]")]
    if isinstance(node, dict):
        return [found for key, element in node.items() for found in misfits(element, f"{at}.{key}")]
    if not type(node).__module__.startswith("grafana_foundation_sdk") or isinstance(node, enum.Enum):
        return []
    found = []
    for name, hint in typing.get_type_hints(type(node)).items():
        value = getattr(node, name)
        if value is None:
            continue
        if not fits(value, hint):
            found.append(f"{at}.{name}: {value!r} is no {hint}")
        found += misfits(value, f"{at}.{name}")
    return found


def read(board: dict[str, Any]) -> Dashboard:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return Dashboard.from_json(copy.deepcopy(board))


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_one_that_grafana_knows(name: str) -> None:
    assert misfits(read(LOADED[name])) == []


@pytest.mark.parametrize(
    ("part", "key", "wrong"),
    [
        (lambda p: p["fieldConfig"]["defaults"]["custom"], "drawStyle", "lne"),
        (lambda p: p["fieldConfig"]["defaults"]["custom"], "lineWidth", "2"),
        (lambda p: p["options"]["legend"], "placement", "botom"),
        (lambda p: p["gridPos"], "w", "12"),
    ],
)
def test_a_wrong_type_or_word_would_be_found(part: Callable[[Any], dict[str, Any]], key: str, wrong: str) -> None:
    board = copy.deepcopy(LOADED["overview"])
    part(next(p for p in panels(board) if p["type"] == "timeseries"))[key] = wrong
    assert misfits(read(board)) != []
