"""The sandbox: what unknown code can do, cannot do, and leaves behind. Each escape is really tried."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer.tasks.sandbox.pool import PROBE, ROOT, Job, Result, Sandbox, SandboxError, check
from trainer.tasks.sandbox.wire import decode, encode


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    box = Sandbox(2)
    yield box
    box.close()


def program(box: Sandbox, code: str, data: str = "", **limits: float) -> Result:
    return box.run(Job("stdin", textwrap.dedent(code), data, **limits))  # type: ignore[arg-type]


def asserts(box: Sandbox, code: str, *tests: str) -> str:
    return box.run(Job("asserts", textwrap.dedent(code), json.dumps(tests), cpu_s=1, wall_s=2)).outcome


def attempt(box: Sandbox, action: str) -> str:
    """What happens to one statement: the name of its exception, or `done`."""
    code = f"import os, sys\ntry:\n    {action}\n    print('done')\nexcept BaseException as e:\n    print(type(e).__name__)\n"
    return program(box, code).output.decode().strip()


# ---- what works -----------------------------------------------------------------------------------------------------


def test_a_program_reads_its_input_and_its_output_comes_back(sandbox: Sandbox) -> None:
    result = program(sandbox, "import sys\nfor line in sys.stdin: print(int(line) ** 2)", "3\n4\n")
    assert (result.outcome, result.output) == ("ok", b"9\n16\n")


def test_programs_may_use_the_standard_library_threads_and_deep_recursion(sandbox: Sandbox) -> None:
    code = """
    import atexit, collections, decimal, fractions, heapq, itertools, json, math, random, re, sys, threading
    sys.setrecursionlimit(10**6)
    threading.stack_size(1 << 26)
    def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
    def main(): print(depth(50_000), math.gcd(12, 18), open(0).read())
    atexit.register(lambda: sys.stdout.write("bye"))
    threading.Thread(target=main).start()
    """
    assert program(sandbox, code, "é").output.decode() == "50000 6 é\nbye"


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("raise SystemExit", "ok"),
        ("import sys; sys.exit(0)", "ok"),
        ("import sys; sys.exit('no')", "error"),
        ("1/0", "error"),
        ("syntax error", "error"),
        ("import os; os._exit(3)", "error"),
        ("import ctypes; ctypes.string_at(0)", "error"),
        ("\0", "error"),
    ],
)
def test_how_a_program_ends_is_how_it_is_reported(sandbox: Sandbox, code: str, outcome: str) -> None:
    assert program(sandbox, code).outcome == outcome


def test_the_same_program_prints_the_same_each_time(sandbox: Sandbox) -> None:
    assert len({program(sandbox, "print({'a', 'b', 'c', 'd'}, hash('x'))").output for _ in range(3)}) == 1


def test_a_function_may_use_the_usual_names_without_importing_them(sandbox: Sandbox) -> None:
    code = """
    class Solution:
        def best(self, nums: List[int]) -> Optional[int]:
            return heapq.nlargest(1, nums)[0] + gcd(4, 6) + pow(2, 3, 5) + len(defaultdict(int)) + sum(Counter("ab").values())
    """
    result = sandbox.run(Job("call", textwrap.dedent(code), json.dumps(["best", [[1, 5, 2]]])))
    assert (result.outcome, result.output) == ("ok", b"12")
    assert program(sandbox, "Counter('ab')").outcome == "error"


@pytest.mark.parametrize("mode", ["stdin", "call", "asserts"])
def test_code_is_a_module_that_can_be_found_by_name(sandbox: Sandbox, mode: Any) -> None:
    code = """
    from __future__ import annotations
    import dataclasses, typing
    @dataclasses.dataclass
    class Point:
        x: int
        y: typing.ClassVar[int] = 2
    def f(): return typing.get_type_hints(Point)["x"].__name__
    f()
    """
    data = {"stdin": "", "call": '["f", []]', "asserts": "[\"assert f() == 'int'\"]"}[mode]
    assert sandbox.run(Job(mode, textwrap.dedent(code), data)).outcome == "ok"


def test_nothing_is_left_of_one_program_for_the_next(sandbox: Sandbox) -> None:
    program(sandbox, "import builtins, json\nbuiltins.print = None\njson.dumps = None")
    for _ in range(3):
        assert program(sandbox, "import json\nprint(json.dumps(1))").output == b"1\n"


def test_jobs_from_several_threads_do_not_mix(sandbox: Sandbox) -> None:
    wrong = []

    def work(number: int) -> None:
        for turn in range(5):
            if program(sandbox, "print(input())", f"{number} {turn}").output != f"{number} {turn}\n".encode():
                wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_endless_programs_are_stopped_whether_they_work_or_sleep(sandbox: Sandbox) -> None:
    assert program(sandbox, "import time; time.sleep(1000)", wall_s=0.3).outcome == "time"
    assert program(sandbox, "import os, time; os.close(1); time.sleep(1000)", wall_s=0.3).outcome == "time"
    ignoring = "import signal\nfor n in range(1, 65):\n  try: signal.signal(n, signal.SIG_IGN)\n  except (OSError, ValueError): pass\n"
    assert program(sandbox, f"{ignoring}while True: pass", cpu_s=1, wall_s=20).outcome == "time"
    assert program(sandbox, "def f():\n  try:\n    while True: pass\n  finally: f()\nf()", wall_s=0.3).outcome == "time"


def test_memory_output_and_threads_are_limited(sandbox: Sandbox) -> None:
    assert program(sandbox, "x = bytearray(1 << 40)").outcome == "error"
    assert program(sandbox, "x = [0]\nwhile True: x += x", memory_mib=256).outcome == "error"
    assert program(sandbox, "while True: print('x' * 10**6)", output_bytes=1 << 16).outcome == "output"
    bomb = """
    import threading, time
    threading.stack_size(32768)
    for _ in range(20_000): threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    """
    # An ordinary user meets RLIMIT_NPROC first, which root is exempt from.
    assert program(sandbox, bomb, memory_mib=1 << 14).outcome in (
        ["threads"] if os.geteuid() == 0 else ["threads", "error"]
    )
    assert program(sandbox, "print('still here')").output == b"still here\n"


# ---- escapes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action",
    [
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', 80))",
        "import socket; socket.socketpair()",
        "os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import multiprocessing as m; m.Process(target=print).start()",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.execv('/bin/true', ['true'])",
        "os.setsid()",
        "os.kill(os.getppid(), 9)",
        "os.kill(-1, 9)",
        "os.killpg(0, 9)",
        "import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
        "import resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))",
        "os.sched_setaffinity(os.getppid(), [0])",
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "os.memfd_create('x')",
        "os.listdir('/')",
        "os.listdir('/tmp')",
        "os.listdir('.')",
        "open('/etc/passwd')",
        "open('/proc/self/environ')",
        "open('/proc/self/mem', 'rb')",
        "open('/proc/1/cmdline')",
        "open('/proc/sys/kernel/hostname', 'w')",
        "open('/dev/shm/x', 'w')",
        "open('x', 'w')",
        "os.mkdir('/tmp/made')",
        "os.symlink('/etc/passwd', '/tmp/link')",
        "os.link('/etc/passwd', '/tmp/link')",
        "os.mkfifo('/tmp/fifo')",
        "os.chmod('/tmp', 0o777)",
        "os.chdir('/')",
        "os.chroot('/')",
        "os.setuid(0)",
        "import tempfile; tempfile.mkstemp()",
        "raise ProcessLookupError if os.environ == {} else AssertionError",
    ],
)
def test_the_way_out_is_closed(sandbox: Sandbox, action: str) -> None:
    errors = {"PermissionError", "FileNotFoundError", "ProcessLookupError", "ValueError", "OSError", "BlockingIOError"}
    assert attempt(sandbox, action) in errors


def test_system_calls_made_by_hand_are_refused_too(sandbox: Sandbox) -> None:
    numbers = {
        "x86_64": (41, 56, 57, 59, 62, 101, 165, 272, 310, 425, 435),
        "aarch64": (198, 220, 221, 129, 117, 425, 435),
    }
    code = f"""
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    print([libc.syscall(number, 17, 0, 0, 0, 0) for number in {numbers[os.uname().machine]}])
    """
    assert set(json.loads(program(sandbox, code).output)) == {-1}


def test_a_secret_beside_the_run_cannot_be_read_by_name_link_or_descriptor(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the expected output")
    link = tmp_path / "link"
    link.symlink_to(secret)
    inherited = os.open(secret, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    box = Sandbox(1)  # its warden starts while the descriptor is open
    try:
        for name in (secret, link, f"/proc/self/root{secret}", f"/proc/{os.getpid()}/root{secret}"):
            assert attempt(box, f"open({str(name)!r}).read()") in ("PermissionError", "FileNotFoundError")
        code = "import os\nfor n in range(1024):\n  try: print(n, os.fstat(n) and '')\n  except OSError: pass"
        assert program(box, code).output.split() == [b"0", b"1", b"2"]
    finally:
        os.close(inherited)
        box.close()


def test_the_environment_of_the_trainer_does_not_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "t0ken")
    box = Sandbox(1)
    try:
        code = "import ctypes, os\nprint(os.environ, ctypes.CDLL(None).getenv(b'SECRET_TOKEN'), os.getenv('PATH'))"
        assert program(box, code).output == b"environ({}) 0 None\n"
    finally:
        box.close()


def test_nothing_is_written_anywhere(sandbox: Sandbox, tmp_path: Path) -> None:
    code = f"""
    import os
    for path in ("big", "/tmp/big", "/var/tmp/big", "/dev/shm/big", {str(tmp_path / "big")!r}):
        try:
            with open(path, "wb") as file: file.write(bytes(10 << 30))
        except (OSError, MemoryError) as error: print(type(error).__name__)
    """
    assert program(sandbox, code).output.split() == [b"PermissionError"] * 5
    assert list(tmp_path.iterdir()) == []


def test_a_program_does_not_outlive_its_job(sandbox: Sandbox) -> None:
    """It cannot fork; its threads end with it, also when it is stopped in the middle."""
    code = "import os, threading, time\nprint(os.getpid(), flush=True)\nthreading.Thread(target=time.sleep, args=(99,)).start()"
    assert program(sandbox, code, wall_s=0.3).outcome == "time"
    assert _children_of_wardens(sandbox) == []


def test_children_die_with_the_trainer() -> None:
    """A trainer that is killed while a program runs leaves neither warden nor program."""
    trainer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from trainer.tasks.sandbox.pool import *; Sandbox(1).run(Job('stdin', 'while 1: pass', ''))",
        ],
        cwd=ROOT,
    )
    found: list[int] = []
    while len(found) < 2:  # the warden, and the program
        time.sleep(0.02)
        found = [pid for one in _children(trainer.pid) for pid in (one, *_children(one))]
    trainer.kill()
    trainer.wait()
    give_up = time.monotonic() + 20
    while any(_alive(pid) for pid in found) and time.monotonic() < give_up:
        time.sleep(0.02)
    assert not any(_alive(pid) for pid in found)


def test_a_warden_that_is_killed_takes_its_program_with_it() -> None:
    others = set(_children(os.getpid()))  # of other tests
    box = Sandbox(1)
    results: list[Result] = []
    job = threading.Thread(target=lambda: results.append(program(box, "while True: pass", cpu_s=60, wall_s=60)))
    job.start()
    seen: set[int] = set()
    for _ in range(2):  # it is started once more, then given up
        while not (fresh := {(w, c) for w in _mine(others) for c in _children(w) if c not in seen}):
            time.sleep(0.02)
        warden, child = fresh.pop()
        seen.add(child)
        os.kill(warden, signal.SIGKILL)
    job.join()
    assert [result.outcome for result in results] == ["lost"]
    give_up = time.monotonic() + 20
    while any(_alive(pid) for pid in seen) and time.monotonic() < give_up:
        time.sleep(0.02)
    assert not any(_alive(pid) for pid in seen)


def test_a_warden_that_dies_is_replaced(sandbox: Sandbox) -> None:
    program(sandbox, "pass")
    for warden in list(sandbox._idle):
        os.kill(warden._process.pid, signal.SIGKILL)
        warden._process.wait()
    assert program(sandbox, "print(1)").output == b"1\n"


# ---- claiming success -----------------------------------------------------------------------------------------------


def test_asserts_pass_for_right_code_and_fail_for_wrong_code(sandbox: Sandbox) -> None:
    code = """
    class Counter:
        def __init__(self, start): self.n = start
        def add(self, k): self.n += k; return self
    class Solution:
        def square(self, x): return x * x
    def pair(x, *, y=0): return (x, {y: b"z"}, {1, 2})
    def sort(items): items.sort()
    def fail(): raise KeyError("k")
    LIMIT = 7
    """
    right = [
        "assert Solution().square(3) == 9",
        "assert pair(1, y=2) == (1, {2: b'z'}, {1, 2})",
        "items = [3, 1]\nsort(items)\nassert items == [1, 3]",
        "assert Counter(1).add(2).add(3).n == 6",
        "try:\n    fail()\nexcept KeyError: pass\nelse: assert False",
        "assert LIMIT == 7",
        "def check(candidate):\n    assert candidate(2)[0] == 2\ncheck(pair)",
    ]
    assert asserts(sandbox, code, *right) == "ok"
    for wrong in ("assert Solution().square(3) == 8", "sort(1)", "assert missing() == 1", "assert False"):
        assert asserts(sandbox, code, *right, wrong) == "error"


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "def f(x): raise SystemExit(0)",
        "def f(x):\n    import os; os._exit(0)",
        "print('true')\ndef f(x): print('true', flush=True)",
        "import builtins\nbuiltins.AssertionError = Exception\nbuiltins.exec = print\ndef f(x): pass",
        "class Always:\n    def __eq__(self, other): return True\n    __ne__ = __hash__ = None\ndef f(x): return Always()",
        "class Always(int):\n    def __eq__(self, other): return True\ndef f(x): return Always(1)",
        "def f(x):\n    import gc, sys\n    return next(o for o in gc.get_objects() if o == 86427)",
        "import os\nfor n in range(2, 64):\n    try: os.write(n, b'true\\n{}\\n')\n    except OSError: pass\ndef f(x): pass",
        'import os\ndef f(x): os.write(4, b\'{"value": {"object": 0}}\\n\'); os._exit(0)',
        "def f(x):\n    import sys\n    frame = sys._getframe()\n    while frame:\n        for v in frame.f_locals.values():\n"
        "            if str(86426 + 1) in repr(v): return 86426 + 1\n        frame = frame.f_back",
        "class f:\n    def __new__(cls, x): return object()",
        "def abs(x): return 0\ndef f(x): return 0",
        "def f(x): return " + "[" * 90 + "]" * 90,
        "def f(x):\n    while True: pass",
        "def f(x): return 'x' * (64 << 20)",
    ],
)
def test_success_cannot_be_claimed_without_the_right_value(sandbox: Sandbox, code: str) -> None:
    assert asserts(sandbox, code, "assert abs(f(7) - 86427) < 1e-6", "assert f(7) == 86427") in ("error", "time")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into a warden")
def test_nothing_that_a_job_carried_stays_in_the_memory_of_the_warden() -> None:
    """So a child, which starts as a copy of that memory, finds neither the asserts nor the programs of other jobs."""
    box = Sandbox(1)
    try:
        assert (
            asserts(box, "def f(x): return 'never-' + 'shown'", "assert f(1) == 'never-' 'shown'  # expected-needle")
            == "ok"
        )
        assert (
            program(box, "print(input())  # code-needle", "." * 500 + "input-needle", output_bytes=2000).outcome == "ok"
        )
        program(box, "pass")  # what the job before left is wiped by now
        (warden,) = box._idle
        memory = _memory(warden._process.pid)
        assert b"landlock_restrict_self" in memory  # what should be found is found
        assert [needle for needle in (b"expected-needle", b"code-needle", b"input-needle") if needle in memory] == []
    finally:
        box.close()


def test_values_come_back_as_they_went() -> None:
    value = [None, True, 1, -2.5, "é", (1, [2]), {1: {"a": (2,)}}, {3}, frozenset({4}), b"\xff", 1 + 2j]
    assert decode(json.loads(json.dumps(encode(value)))) == value
    assert type(encode(True)) is bool
    for wrong in ({"tuple": 1}, {"a": 1, "b": 2}, {"what": 1}, {"object": 0}, {"bytes": "zz"}):
        with pytest.raises(ValueError, match=r"."):
            decode(wrong)


# ---- whether it may be used at all ----------------------------------------------------------------------------------


def test_the_check_tries_to_get_out_and_names_what_is_in_force() -> None:
    guarantees = check()
    assert any("Landlock" in line for line in guarantees)
    assert any("seccomp" in line for line in guarantees)


def test_the_check_refuses_a_sandbox_that_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe run without confinement finds every door open, so its silence elsewhere means something."""
    monkeypatch.setattr("trainer.tasks.sandbox.pool.Sandbox.run", _unconfined)
    with pytest.raises(SandboxError, match=r"it could connect, fork, .*read, .*write, .*execute"):
        check.__wrapped__()


def _unconfined(_: Sandbox, job: Job) -> Result:
    ended = subprocess.run([sys.executable, "-c", job.code], capture_output=True, cwd="/tmp", check=False)
    Path("/tmp/written").unlink(missing_ok=True)
    assert PROBE in job.code
    return Result("ok", ended.stdout)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="changing the user needs root and setpriv")
def test_it_holds_for_an_ordinary_user_too(tmp_path: Path) -> None:
    python = shutil.which("python3", path="/usr/bin:/bin")
    probe = "import sys; assert sys.version_info >= (3, 11)"
    if not python or subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode:
        pytest.skip("no system Python of version 3.11 that an ordinary user can read")
    code = "from trainer.tasks.sandbox.pool import check; print(*check(), sep='\\n')"
    ordinary = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c", code]
    ended = subprocess.run(ordinary, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Landlock" in ended.stdout


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return []


def _mine(others: set[int]) -> list[int]:
    """Children of this process that were not there before."""
    return [pid for pid in _children(os.getpid()) if pid not in others]


def _children_of_wardens(box: Sandbox) -> list[int]:
    return [child for warden in box._idle for child in _children(warden._process.pid)]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _memory(pid: int) -> bytes:
    parts = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights = line.split()[:2]
            begin, end = (int(number, 16) for number in span.split("-"))
            if rights.startswith("rw"):
                memory.seek(begin)
                parts.append(memory.read(end - begin))
    return b"".join(parts)
