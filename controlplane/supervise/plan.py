"""What to do when a trainer has ended: start it again, from where, after how long - or leave it. Pure.

0, wrong arguments      done
told to stop by us      done
RESUME_EXIT             again, from the checkpoint that its agent named, unless that was asked for before or too often
anything else           a crash: again after 1, 2, 4, ... seconds; after too many in a row without progress, done
"""

from dataclasses import dataclass, replace

from controlplane.agent.restart import RESUME_EXIT
from controlplane.contract.documents import Resume

FINAL = frozenset({0, 2})
"""Exit codes after which starting again would do the same: the end of the run, and a mistake in the command or recipe."""


@dataclass(frozen=True)
class Limits:
    """How much a supervisor tries before a person has to look."""

    crashes: int = 5
    """In a row, without a new step between them."""
    rollbacks: int = 3
    first_wait: float = 1.0
    longest_wait: float = 60.0
    stable_seconds: float = 600.0
    """A process that lived so long has made progress, where steps cannot be seen."""


@dataclass(frozen=True)
class History:
    """What has happened so far."""

    crashes: int = 0
    rollbacks: int = 0
    answered: frozenset[str] = frozenset()
    """Decisions for which the trainer was started again."""
    resume: Resume | None = None
    """The last rollback: what a crash after it goes back to, if the trainer does not know better."""


@dataclass(frozen=True)
class Exit:
    """How a process ended."""

    code: int
    """Exit code, or minus the number of the signal that killed it."""
    seconds: float
    """How long it lived."""
    progressed: bool
    """A step beyond all earlier ones was seen."""
    asked: Resume | None = None
    """The message that its agent left."""
    stopping: bool = False
    """The supervisor was told to end, and told the process."""


@dataclass(frozen=True)
class Again:
    """Start the trainer again."""

    wait: float
    resume: Resume | None
    reason: str


@dataclass(frozen=True)
class End:
    """Leave it; `code` becomes the exit code of the supervisor."""

    code: int
    reason: str


def after(exit: Exit, history: History, limits: Limits) -> tuple[Again | End, History]:
    """What to do, and the history with it."""
    if exit.stopping or exit.code in FINAL:
        how = "told to stop" if exit.stopping else "the run has ended" if exit.code == 0 else "its arguments are wrong"
        return End(_shell(exit.code), f"{how} (exit code {exit.code})"), history
    if exit.code == RESUME_EXIT:
        return _rollback(exit, history, limits)
    return _crash(exit, history, limits)


def _rollback(exit: Exit, history: History, limits: Limits) -> tuple[Again | End, History]:
    asked = exit.asked
    if asked is None:
        return End(
            RESUME_EXIT, "the trainer asks to be started again, but its agent left no message that can be believed"
        ), history
    if asked.decision_id in history.answered:
        reason = f"the trainer did not come up at step {asked.target.step} and asks for the same rollback again"
        return End(RESUME_EXIT, reason), history
    if history.rollbacks >= limits.rollbacks:
        return End(RESUME_EXIT, f"it has gone back {history.rollbacks} times already; a person has to look"), history
    known = replace(
        history,
        crashes=0,
        rollbacks=history.rollbacks + 1,
        answered=history.answered | {asked.decision_id},
        resume=asked,
    )
    return Again(0.0, asked, f"rollback to step {asked.target.step}: {asked.reason}"), known


def _crash(exit: Exit, history: History, limits: Limits) -> tuple[Again | End, History]:
    fresh = exit.progressed or exit.seconds >= limits.stable_seconds
    crashes = 1 if fresh else history.crashes + 1
    how = f"was killed by signal {-exit.code}" if exit.code < 0 else f"failed with exit code {exit.code}"
    if crashes > limits.crashes:
        reason = f"the trainer {how}, {crashes} times in a row without a new step; a person has to look"
        return End(_shell(exit.code), reason), replace(history, crashes=crashes)
    wait = min(limits.longest_wait, limits.first_wait * 2.0 ** (crashes - 1))
    reason = f"the trainer {how} after {exit.seconds:.0f} s (crash {crashes} of {limits.crashes})"
    return Again(wait, history.resume, reason), replace(history, crashes=crashes)


def _shell(code: int) -> int:
    return 128 - code if code < 0 else code
