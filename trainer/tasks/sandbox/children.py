"""What runs in a forked child of the warden: read the payload, give everything up, do the work.

    single    stdin: a program, its output on the pipe         call: one function, its encoded result on the pipe
              trusted: the preloaded check, its answer on the pipe
    solution  asserts: the unknown code, answering calls        tester  asserts: the tests, with stand-ins for its names

Each returns its exit status; the warden's `_fork` ends the process with it.
"""

import atexit
import builtins
import fcntl
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from trainer.tasks.sandbox import confine
from trainer.tasks.sandbox.remote import answer_calls, run_tests
from trainer.tasks.sandbox.wire import MODES, encode, read_exactly, write_all

USUAL = (
    "string",
    "re",
    "copy",
    "random",
    "operator",
    "bisect",
    "heapq",
    "math",
    "itertools",
    "functools",
    "collections",
    "typing",
)
"""Modules that functions may use without importing them, with all their names: judges of such problems provide them."""

HIGH = 200
"""Descriptors from here on are the confinement's own; they are closed last."""


class Limits(NamedTuple):
    """Header of a job."""

    mode: int
    code_bytes: int
    data_bytes: int
    cpu_s: int
    wall_ms: int
    output_bytes: int
    memory_bytes: int


@dataclass(frozen=True)
class Confinement:
    """What the warden has made ready."""

    rules: int | None
    program: bytes | None
    processes: int | None
    check: Callable[..., Any] | None
    names: dict[str, Any]
    """What functions may use without importing it."""


def single(confinement: Confinement, limits: Limits, ready: int, out: int) -> int:
    """A program, a call, or a trusted check."""
    code, data = read_exactly(0, limits.code_bytes), read_exactly(0, limits.data_bytes)
    os.write(ready, b"1")
    mode = MODES[limits.mode]
    if mode == "stdin":
        _give_up(confinement, limits, data, {1: out})
        return _program(code)
    _give_up(confinement, limits, b"", {3: out})
    if mode == "trusted":
        assert confinement.check is not None
        result = confinement.check(*json.loads(data))
    else:
        result = _call(code, json.loads(data), confinement.names)
    write_all(3, json.dumps(encode(result)).encode())
    return 0


def solution(confinement: Confinement, limits: Limits, ready: int, asked: int, answer: int) -> int:
    """The unknown code of a job with asserts; it never sees them."""
    code = read_exactly(0, limits.code_bytes)
    os.write(ready, b"1")
    _give_up(confinement, limits, b"", {3: asked, 4: answer})
    names = _namespace("solution")
    exec(compile(code, "<solution>", "exec"), names)  # noqa: S102
    answer_calls(names, open(3, "rb"), open(4, "wb"))  # noqa: SIM115
    return 0


def tester(confinement: Confinement, limits: Limits, ready: int, out: int, ask: int, answered: int) -> int:
    """The tests of a job with asserts; they never run in the process of the unknown code."""
    data = read_exactly(0, limits.data_bytes)
    os.write(ready, b"1")
    _give_up(confinement, limits, b"", {3: out, 4: ask, 5: answered})
    run_tests(json.loads(data), open(4, "wb"), open(5, "rb"))  # noqa: SIM115
    write_all(3, b"true")
    return 0


def _give_up(confinement: Confinement, limits: Limits, stdin: bytes, descriptors: dict[int, int]) -> None:
    """Standard input from memory, the named descriptors, nothing else; then the limits and the locks."""
    memory = os.memfd_create("stdin")
    write_all(memory, stdin)
    os.lseek(memory, 0, os.SEEK_SET)
    null = os.open(os.devnull, os.O_WRONLY)
    wanted = {0: memory, 1: null, 2: null} | descriptors
    moved = {place: fcntl.fcntl(source, fcntl.F_DUPFD, 100) for place, source in wanted.items()}
    for place, source in moved.items():
        os.dup2(source, place)
    os.closerange(max(wanted) + 1, HIGH)
    confine.limit(limits.cpu_s, limits.memory_bytes, confinement.processes)
    confine.drop_privileges()
    confine.enter(confinement.rules, confinement.program)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = open(number, "w" if number else "r", closefd=False, encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def usual_names() -> dict[str, Any]:
    """`USUAL` and what is in them; no builtin is hidden. Asked for in the warden, so that a child need not import."""
    modules = {name: import_module(name) for name in USUAL}
    names: dict[str, Any] = {}
    for module in modules.values():
        public = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
        names |= {name: getattr(module, name) for name in public if not hasattr(builtins, name)}
    return names | modules


def _namespace(name: str) -> dict[str, Any]:
    """Of a module that can be found by its name, as dataclasses and others do."""
    module = sys.modules[name] = ModuleType(name)
    return vars(module)


def _program(code: bytes) -> int:
    """Run to the end as the interpreter would: threads are waited for, exit functions called, output flushed."""
    status = 0
    try:
        exec(compile(code, "<solution>", "exec"), _namespace("__main__"))  # noqa: S102
    except SystemExit as end:
        status = 0 if end.code in (None, 0) else 1
    except BaseException:
        status = 1
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None:
            stream.flush()
    return status


def _call(code: bytes, data: Any, usual: dict[str, Any]) -> Any:
    """`function(*arguments)`, of an instance of `Solution` where the code has one."""
    function, arguments = data
    names = _namespace("solution")
    names.update(usual)
    exec(compile(code, "<solution>", "exec"), names)  # noqa: S102
    owner = names.get("Solution")
    target = getattr(owner(), function) if owner is not None and hasattr(owner, function) else names[function]
    return target(*arguments)
