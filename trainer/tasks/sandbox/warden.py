"""The process between the trainer and unknown code: forks the children of one job after another and watches them.

It reads headers only. It ends when its standard input closes, so it never outlives the trainer; its children die with it.
Started by `pool.py` with an empty environment; standard library only.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from trainer.tasks.sandbox import children, confine
from trainer.tasks.sandbox.wire import JOB, MODES, OUTCOMES, REPLY, Outcome, read_exactly, write_all

MAX_THREADS = 64
TICK_MS = 10
"""How often threads are counted; the end of a child is seen at once."""


def main() -> None:
    """Entry of the process: say hello, then serve until the trainer is gone."""
    settings = json.loads(sys.argv[2])
    sys.path.remove(sys.argv[1])
    try:
        confinement, layers = _prepare(settings)
    except (OSError, ImportError) as error:
        _say({"error": getattr(error, "strerror", None) or str(error)})
        return
    _say({"layers": layers})
    sys.argv[:] = [""]
    os.environ.clear()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            header = JOB.unpack(read_exactly(0, JOB.size))
            _serve(confinement, children.Limits(*header))


def _say(hello: dict[str, Any]) -> None:
    os.write(1, json.dumps(hello).encode() + b"\n")


def _prepare(settings: dict[str, Any]) -> tuple[children.Confinement, list[str]]:
    """Everything that can be made once: namespaces, rules, filter, and the module of trusted checks."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # when memory runs out, the trainer is not the one to go
    check = None
    if settings["preload"]:
        sys.path[:] = settings["path"]
        module, _, name = settings["preload"].partition(":")
        check = getattr(import_module(module), name)
    names = confine.own_namespaces()
    confine.hide_memory()
    rules, program = None, None
    try:
        rules = fcntl.fcntl(confine.landlock_rules(settings["readable"]), fcntl.F_DUPFD_CLOEXEC, children.HIGH)
        program = confine.seccomp_program()
    except OSError:
        if settings["strict"]:
            raise
    layers = [f"namespaces of its own: {', '.join(names)}"] if names else []
    layers += [f"Landlock ABI {confine.landlock_abi()}"] if rules else []
    layers += ["seccomp, by a list of allowed calls"] if program else []
    processes = MAX_THREADS + 2 if names else None
    return children.Confinement(rules, program, processes, check, children.usual_names()), layers


def _serve(confinement: children.Confinement, limits: children.Limits) -> None:
    """One job and its reply. The output is wiped afterwards, or the next child could find it in its copy of the memory."""
    start = time.monotonic()
    out, out_end = os.pipe()
    opened, started = [out, out_end], []
    try:
        if MODES[limits.mode] == "asserts":
            asked, ask = os.pipe()
            answered, answer = os.pipe()
            opened += [asked, ask, answered, answer]
            started.append(_fork(lambda ready: children.solution(confinement, limits, ready, asked, answer)))
            started.append(_fork(lambda ready: children.tester(confinement, limits, ready, out_end, ask, answered)))
        else:
            started.append(_fork(lambda ready: children.single(confinement, limits, ready, out_end)))
        for descriptor in opened[1:]:
            os.close(descriptor)
        del opened[1:]
        buffer = memoryview(bytearray(limits.output_bytes + 1))
        outcome, length = _watch(started, out, start + limits.wall_ms / 1000, buffer)
    finally:
        for pid in started:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for descriptor in opened:
            os.close(descriptor)
    os.write(1, REPLY.pack(OUTCOMES.index(outcome), int((time.monotonic() - start) * 1000), length))
    write_all(1, buffer[:length])
    buffer[:] = bytes(len(buffer))


def _fork(work: Callable[[int], int]) -> int:
    """A child that has read its part of standard input.

    Raises:
        EOFError: it died before that, so what comes next on standard input is unknown.
    """
    ready, ready_end = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            confine.die_with_parent(parent)
            status = work(ready_end)
        finally:
            os._exit(status)
    os.close(ready_end)
    try:
        read_exactly(ready, 1)
    finally:
        os.close(ready)
    return pid


def _watch(pids: list[int], out: int, deadline: float, buffer: memoryview) -> tuple[Outcome, int]:
    """Until the last of `pids` has ended, or a limit is passed; says how long the output in `buffer` is."""
    os.set_blocking(out, False)
    poll = select.poll()
    ended = os.pidfd_open(pids[-1])
    try:
        poll.register(0, 0)  # only hang-up: the trainer is gone
        poll.register(out, select.POLLIN)
        poll.register(ended, select.POLLIN)
        length = 0
        while True:
            seen = dict(poll.poll(TICK_MS))
            if 0 in seen:
                raise EOFError
            if out in seen or ended in seen:
                while count := _available(out, buffer[length:]):
                    length += count
                if length == len(buffer):
                    return "output", 0
                if out in seen and not seen[out] & select.POLLIN:
                    poll.unregister(out)
            if ended in seen:
                return _ending(pids[-1]), length
            if time.monotonic() > deadline:
                return "time", 0
            if any(_threads(pid) > MAX_THREADS for pid in pids):
                return "threads", 0
    finally:
        os.close(ended)


def _ending(pid: int) -> Outcome:
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert status is not None
    if status.si_code == os.CLD_EXITED:
        return "error" if status.si_status else "ok"
    return "time" if status.si_status in (signal.SIGXCPU, signal.SIGKILL) else "error"


def _available(descriptor: int, room: memoryview) -> int:
    try:
        return os.readv(descriptor, [room]) if room else 0
    except BlockingIOError:
        return 0


def _threads(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink - 2
    except OSError:
        return 0
