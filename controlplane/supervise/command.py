"""`scalerl supervise -- <any launch command>`."""

import fcntl
import logging
import os
import shlex
import signal
import time
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from controlplane.agent import restart
from controlplane.contract.documents import Observed, Resume
from controlplane.contract.rundir import RunDir, append_line
from controlplane.contract.yamlfile import FileError
from controlplane.supervise.plan import Again, End, Exit, History, Limits, after
from controlplane.supervise.process import Supervised

log = logging.getLogger("supervise")


def supervise(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="How the trainer is started.")],
    run: Annotated[
        Path | None,
        typer.Option(help="Run directory of the trainer's agent; without it, only crashes are looked after."),
    ] = None,
    resume_with: Annotated[
        str,
        typer.Option(
            metavar="ARGS",
            help="The trainer's own resume flag, added for a rollback: '--resume_from_checkpoint={checkpoint}'. "
            "{checkpoint} and {step} are filled in.",
        ),
    ] = "",
    restart_with: Annotated[
        str, typer.Option(metavar="ARGS", help="Added after a crash, for a trainer that does not go on by itself.")
    ] = "",
    max_crashes: Annotated[int, typer.Option(min=0, help="Crashes in a row without a new step.")] = 5,
    max_rollbacks: Annotated[int, typer.Option(min=0, help="Rollbacks in all.")] = 3,
    first_wait: Annotated[
        float, typer.Option(min=0, help="Seconds before the first restart; doubles each time.")
    ] = 1.0,
) -> None:
    """Start a trainer, and start it again after a crash, or from a checkpoint when a rollback needs it.

    For a rollback the trainer's agent writes control/resume.json and the trainer ends with exit code 85. Signals are passed
    on; one that ends the supervision is not followed by a restart. The exit code is that of the trainer.
    """
    rundir = RunDir(run) if run else None
    _check(resume_with, restart_with)
    lock = _lock(rundir) if rundir else -1
    keeper = _Keeper(command, rundir, resume_with, restart_with, Limits(max_crashes, max_rollbacks, first_wait))
    try:
        raise typer.Exit(keeper.go())
    finally:
        if lock >= 0:
            os.close(lock)


class _Keeper:
    """Carries out what the plan says."""

    def __init__(
        self, command: list[str], rundir: RunDir | None, resume_with: str, restart_with: str, limits: Limits
    ) -> None:
        self._command, self._rundir, self._limits = command, rundir, limits
        self._resume_with, self._restart_with = resume_with, restart_with
        self._supervised, self._history = Supervised(), History()
        self._best = self._step()
        self._moved = False

    def go(self) -> int:
        resume = self._asked()  # left by a trainer whose supervisor was killed
        crashed = False
        if resume is not None:
            self._history = History(rollbacks=1, answered=frozenset({resume.decision_id}), resume=resume)
        with self._supervised.signals():
            while not self._supervised.stopping.is_set():
                code, seconds = self._once(self._arguments(resume, crashed))
                crashed = code != restart.RESUME_EXIT
                stopping = self._supervised.stopping.is_set()
                left = None if crashed else self._asked()
                exit = Exit(code, seconds, self._moved, left, stopping)
                step, self._history = after(exit, self._history, self._limits)
                self._tell("decided", **_line(step), code=code, seconds=round(seconds, 1))
                if isinstance(step, End):
                    log.log(logging.INFO if code == 0 or stopping else logging.ERROR, "%s", step.reason)
                    return step.code
                log.warning("%s; starts again in %g s", step.reason, step.wait)
                self._supervised.stopping.wait(step.wait)
                resume = step.resume
        return 128 + signal.SIGTERM

    def _once(self, command: list[str]) -> tuple[int, float]:
        self._tell("started", command=command)
        log.info("starts: %s", shlex.join(command))
        started, self._moved = time.monotonic(), False
        try:
            code = self._supervised.run(command, self._look)
        except OSError as error:
            raise FileError(f"{command[0]}: cannot be started ({error.strerror or error})") from None
        self._look()
        return code, time.monotonic() - started

    def _arguments(self, resume: Resume | None, crashed: bool) -> list[str]:
        """The command, with the trainer's own words for where to go on. After a crash its own newest checkpoint counts."""
        if crashed and self._restart_with:
            return [*self._command, *shlex.split(self._restart_with)]
        if resume is None:
            return self._command
        fields = {"checkpoint": resume.checkpoint, "step": str(resume.target.step)}
        return [*self._command, *(word.format(**fields) for word in shlex.split(self._resume_with))]

    def _look(self) -> None:
        if (step := self._step()) > self._best:
            self._best, self._moved = step, True

    def _step(self) -> tuple[int, int]:
        """(branch, step) that the trainer has reached: after a rollback a smaller step is progress too."""
        if self._rundir is None:
            return (0, -1)
        try:
            observed = Observed.model_validate_json(self._rundir.observed.read_bytes())
        except (OSError, ValidationError):
            return (0, -1)
        return observed.branch, observed.step

    def _asked(self) -> Resume | None:
        return restart.read(self._rundir) if self._rundir is not None else None

    def _tell(self, event: str, **fields: object) -> None:
        if self._rundir is not None:
            append_line(self._rundir.supervised, {"event": event, "time": time.time(), **fields})


def _line(step: Again | End) -> dict[str, object]:
    """A decision as its line in `supervise.jsonl`."""
    if isinstance(step, End):
        return {"then": "end", "reason": step.reason}
    target = step.resume.target.step if step.resume else None
    return {"then": "again", "wait": step.wait, "reason": step.reason, "from_step": target}


def _check(resume_with: str, restart_with: str) -> None:
    for option, text in {"--resume-with": resume_with, "--restart-with": restart_with}.items():
        try:
            [word.format(checkpoint="", step="") for word in shlex.split(text)]
        except (ValueError, KeyError, IndexError):
            raise FileError(f"{option}: {text!r} must be arguments with {{checkpoint}} and {{step}} at most") from None


def _lock(rundir: RunDir) -> int:
    rundir.root.mkdir(parents=True, exist_ok=True)
    handle = os.open(rundir.supervised, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise FileError(f"{rundir.root}: another supervisor looks after this run") from None
    return handle
