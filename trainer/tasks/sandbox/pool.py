"""The trainer's side: a few wardens, taken and given back by the threads that verify."""

import contextlib
import functools
import json
import os
import select
import subprocess
import sys
import sysconfig
import tempfile
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from trainer.tasks.sandbox.wire import JOB, MODES, OUTCOMES, REPLY, Outcome, write_all

GRACE_S = 10.0
"""Beyond the wall limit that the warden itself watches."""
ROOT = Path(__file__).parents[3]
BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from trainer.tasks.sandbox.warden import main; main()"


class SandboxError(RuntimeError):
    """Code cannot be run safely here. The message says what is missing."""


@dataclass(frozen=True)
class Job:
    """One thing to run. `code` is unknown; `data` is its input (stdin), `[function, arguments]` (call), a list of test
    sources (asserts) or arguments of the preloaded check (trusted), the last three as JSON."""

    mode: Literal["stdin", "call", "asserts", "trusted"]
    code: str
    data: str
    cpu_s: int = 6
    wall_s: float = 12.0
    memory_mib: int = 1024
    output_bytes: int = 1 << 20


@dataclass(frozen=True)
class Result:
    """How it ended. `lost`: twice the warden itself was gone."""

    outcome: Outcome
    output: bytes = b""
    seconds: float = 0.0


class Sandbox:
    """Runs jobs in at most `workers` wardens; `run` may be called from any thread. Wardens start when first needed.

    `preload` names a trusted check, `module:function`; such a sandbox may do without Landlock and seccomp where the kernel
    has none, because it runs no unknown code.
    """

    def __init__(self, workers: int, preload: str = "") -> None:
        self._preload = preload
        self._free = threading.Semaphore(workers)
        self._idle: list[_Warden] = []
        self._lock = threading.Lock()
        self.layers: list[str] = []
        weakref.finalize(self, _stop_all, self._idle)

    def run(self, job: Job) -> Result:
        """Blocks until the job has ended or passed a limit.

        Raises:
            SandboxError: no warden can be started.
        """
        with self._free:
            for first in (True, False):
                with self._lock:
                    warden = self._idle.pop() if first and self._idle else None
                warden = warden or _Warden(self._preload)
                self.layers = warden.layers
                result = warden.run(job)
                if result is not None:
                    with self._lock:
                        self._idle.append(warden)
                    return result
        return Result("lost")

    def close(self) -> None:
        """End the wardens that are idle."""
        with self._lock:
            _stop_all(self._idle)


class _Warden:
    """One warden process. `run` returns None when it is gone, and has then made sure that it is."""

    def __init__(self, preload: str) -> None:
        if sys.platform != "linux":
            raise SandboxError(f"the sandbox needs Linux; this is {sys.platform}")
        paths = sysconfig.get_paths()
        libraries = [paths["stdlib"], paths["platstdlib"], f"{sys.base_prefix}/lib", "/lib", "/lib64", "/usr/lib"]
        settings = {
            "strict": not preload,
            "preload": preload,
            "path": [str(ROOT), *filter(None, sys.path)] if preload else [],
            "readable": [*libraries, "/usr/lib64", "/etc/ld.so.cache", *(sys.path if preload else ())],
        }
        # Fixed hash seed: the same program prints a set in the same order each time it is verified.
        environment = {
            "PYTHONHASHSEED": "0",
            "PYTHONUTF8": "1",
            "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
        }
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-s", "-S", "-P", "-c", BOOT, str(ROOT), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env={name: value for name, value in environment.items() if value},
            start_new_session=True,
        )
        hello = self._hello()
        if "error" in hello:
            self.stop()
            raise SandboxError(f"unknown code cannot be run safely here: {hello['error']}")
        self.layers: list[str] = hello["layers"]

    def run(self, job: Job) -> Result | None:
        code, data = job.code.encode(errors="replace"), job.data.encode(errors="replace")
        numbers = (len(code), len(data), job.cpu_s, int(job.wall_s * 1000), job.output_bytes, job.memory_mib << 20)
        try:
            write_all(self._pipe("stdin").fileno(), JOB.pack(MODES.index(job.mode), *numbers) + code + data)
            outcome, milliseconds, length = REPLY.unpack(self._read(REPLY.size, job.wall_s + GRACE_S))
            return Result(OUTCOMES[outcome], self._read(length, GRACE_S), milliseconds / 1000)
        except (OSError, EOFError):
            self.stop()
            return None

    def stop(self) -> None:
        """Kill; its children die with it."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def _hello(self) -> dict[str, Any]:
        line = b""
        try:
            while not line.endswith(b"\n"):
                line += self._read(1, 60.0)
        except (OSError, EOFError):
            return {"error": "the process that watches it ended while starting"}
        hello: dict[str, Any] = json.loads(line)
        return hello

    def _read(self, count: int, patience: float) -> bytes:
        pipe, parts, waiting = self._pipe("stdout"), [], select.poll()
        waiting.register(pipe, select.POLLIN)
        while count:
            if not waiting.poll(patience * 1000):
                raise TimeoutError
            part = pipe.read(count)
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _pipe(self, name: str) -> IO[bytes]:
        pipe: IO[bytes] = getattr(self._process, name)
        return pipe


def _stop_all(wardens: list[_Warden]) -> None:
    while wardens:
        wardens.pop().stop()


PROBE = """
import os, socket, subprocess
def connect(): socket.socket()
def fork():
    if os.fork() == 0: os._exit(0)
def execute(): os.execv("/bin/echo", ["echo", "execute"])
def signal(): os.kill(os.getppid() or 1, 0)
def read(): open(SECRET).read()
def processes(): open("/proc/self/environ").read()
def listing(): os.listdir("/")
def write(): open("written", "w").write("x")
def elsewhere(): open(SECRET, "a").write("x")
def change(): os.chmod(SECRET, 0o777)
def environment():
    if not os.environ: raise OSError
for attempt in (connect, fork, signal, read, processes, listing, write, elsewhere, change, environment, execute):
    try: attempt()
    except OSError: continue
    print(attempt.__name__, flush=True)
"""


@functools.cache
def check() -> tuple[str, ...]:
    """What is in force here, after trying to get out.

    Raises:
        SandboxError: something is missing, or an attempt succeeded; then no unknown code may be run.
    """
    sandbox = Sandbox(1)
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".secret") as secret:
            secret.write("secret")
            secret.flush()
            result = sandbox.run(Job("stdin", f"SECRET = {secret.name!r}\n{PROBE}", ""))
    finally:
        sandbox.close()
    if result.outcome != "ok" or result.output:
        held = result.output.decode(errors="replace").split()
        raise SandboxError(f"unknown code cannot be run safely here: it could {', '.join(held) or 'not be watched'}")
    return (
        *sandbox.layers,
        "no new process, program, socket or signal",
        "no file but the standard library can be opened, none written",
        "empty environment, no capability, no new privileges",
        "processor time, wall time, memory, threads, descriptors and output limited",
    )
