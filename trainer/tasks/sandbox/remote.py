"""Calls between tests and the code they test, which live in two processes: plain data by value, the rest by number.

Tests see a stand-in for each public name of the code. Results are plain data of built-in types, or stand-ins that are
equal to nothing else: an object that claims to equal everything stays where it was made.
"""

import builtins
import json
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from trainer.tasks.sandbox.wire import decode, encode

LONGEST = 16 << 20
"""Bytes of one message."""


class Lost(RuntimeError):
    """The process of the code has gone."""


# ---- on the side of the code ----------------------------------------------------------------------------------------


def answer_calls(names: dict[str, Any], asked: BinaryIO, answer: BinaryIO) -> None:
    """Say which names there are, then answer until nobody asks."""
    kept: list[Any] = []

    def keep(thing: Any) -> int:
        kept.append(thing)
        return len(kept) - 1

    def send(message: Any) -> None:
        answer.write(json.dumps(message).encode() + b"\n")
        answer.flush()

    send({name: encode(value, keep) for name, value in names.items() if not name.startswith("_")})
    while line := asked.readline():
        number, attribute, given, named = json.loads(line)
        try:
            if attribute is not None:
                send({"value": encode(getattr(kept[number], attribute), keep)})
                continue
            arguments = decode(given, kept.__getitem__)
            value = kept[number](*arguments, **decode(named, kept.__getitem__))
            send({"value": encode(value, keep), "arguments": encode(arguments, keep)})
        except Exception as error:
            send({"error": type(error).__name__, "text": str(error)[:1000]})


# ---- on the side of the tests ---------------------------------------------------------------------------------------


def run_tests(tests: list[str], ask: BinaryIO, answered: BinaryIO) -> None:
    """Run each test; returns if none of them fails, and raises what the first failure raises."""

    def receive() -> Any:
        line = answered.readline(LONGEST)
        if not line.endswith(b"\n"):
            raise Lost("the code has ended")
        return json.loads(line)

    def send(*message: Any) -> Any:
        ask.write(json.dumps(message).encode() + b"\n")
        ask.flush()
        reply = receive()
        if "error" in reply:
            raise _exception(reply["error"], str(reply["text"]))
        return reply

    def thing(number: int) -> _StandIn:
        return _StandIn(number, send, thing)

    taken = {*dir(builtins), *sys.stdlib_module_names}
    names = {name: value for name, value in receive().items() if name not in taken}
    for test in tests:
        scope: dict[str, Any] = {"__name__": "__main__"}
        scope |= {name: decode(value, thing) for name, value in names.items()}
        exec(compile(test, "<test>", "exec"), scope)  # noqa: S102


class _StandIn:
    """A function, class or object of the code: can be called, has attributes, equals only itself."""

    def __init__(self, number: int, send: Callable[..., Any], thing: Callable[[int], Any]) -> None:
        self.__number, self.__send, self.__thing = number, send, thing

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        reply = self.__send(self.__number, None, encode(list(arguments), _number), encode(named, _number))
        for mine, theirs in zip(arguments, decode(reply["arguments"], self.__thing), strict=False):
            _take_over(mine, theirs)
        return decode(reply["value"], self.__thing)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return decode(self.__send(self.__number, name, [], {})["value"], self.__thing)


def _number(thing: Any) -> int:
    if isinstance(thing, _StandIn):
        return int(vars(thing)["_StandIn__number"])
    raise TypeError(f"{type(thing).__name__} cannot be given to the code: it is not plain data")


def _take_over(mine: Any, theirs: Any) -> None:
    """A list, dict or set that the code has changed in place is changed here too."""
    if isinstance(mine, list) and isinstance(theirs, list):
        mine[:] = theirs
    elif isinstance(mine, (dict, set)) and isinstance(theirs, type(mine)):
        mine.clear()
        mine.update(theirs)


def _exception(name: str, text: str) -> Exception:
    """The built-in exception of that name; nothing that would end the tests as if they had passed."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError):
        return kind(text)
    return RuntimeError(f"{name}: {text}")
