"""A shortcut for a controller that starts again: the evaluator as it stood after some look, so that only later looks are folded.

The journal stays the truth. A shortcut counts only if it was made by this very code (sources, Python, NumPy) under this very
policy for this very journal (its line has the hash that it had then); otherwise everything is folded, as without one. It is
pickled, and unpickling runs code: so the file must belong to us and be writable by nobody else, like the code itself.
"""

import base64
import hashlib
import logging
import os
import pickle
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy

from controlplane.contract.documents import Observed
from controlplane.contract.rundir import write_atomic
from controlplane.decide import Decision, Evaluator
from controlplane.journal import Entry, Journal

log = logging.getLogger("controller")

EVERY = 500
"""Looks between two shortcuts: two hours at the default interval, and under a second to fold."""
_CODE = ("decide", "detect", "forecast", "policy", "contract", "snapshot.py")
Action = tuple[Decision, Observed | None]


@dataclass(frozen=True)
class Shortcut:
    """Where an evaluator stood after the journal line `seq`, and the last action decided until then."""

    made_by: str
    seq: int
    hash: str
    evaluator: Evaluator
    action: Action | None


def save(path: Path, evaluator: Evaluator, action: Action | None, line: Entry) -> None:
    """Keep the shortcut; a disk that refuses costs time at the next start, and nothing else."""
    shortcut = Shortcut(_made_by(evaluator), line.seq, line.hash, evaluator, action)
    try:
        write_atomic(path, base64.b64encode(pickle.dumps(shortcut)).decode(), mode=0o600, durable=True)
    except OSError as error:
        log.warning("%s: no shortcut for the next start: %s", path, error)


def load(path: Path, evaluator: Evaluator, journal: Journal) -> Shortcut | None:
    """The shortcut, if it leads to where a fold by `evaluator`, which is fresh, would lead; None otherwise."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                log.warning("%s: not used, because it is not ours alone", path)
                return None
            shortcut = pickle.loads(base64.b64decode(file.read()))  # noqa: S301 - ours alone, as just checked
    except FileNotFoundError:
        return None
    except Exception as error:
        # Torn, or pickled by other code: whatever it is, the journal has everything.
        log.warning("%s: not used (%s)", path, type(error).__name__)
        return None
    if not isinstance(shortcut, Shortcut) or shortcut.made_by != _made_by(evaluator):
        return None
    line = next(journal.entries(after=shortcut.seq - 1), None)
    return shortcut if line is not None and (line.seq, line.hash) == (shortcut.seq, shortcut.hash) else None


def _made_by(evaluator: Evaluator) -> str:
    policy = hashlib.sha256(evaluator.policy.model_dump_json().encode()).hexdigest()
    return f"{_code()} {policy}"


@cache
def _code() -> str:
    """Hash of everything that a fold depends on beside policy and journal."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for place in _CODE:
        for path in sorted((root / place).rglob("*.py")) or [root / place]:
            digest.update(path.read_bytes())
    digest.update(f"{platform.python_version()} {numpy.__version__} {platform.machine()}".encode())
    return digest.hexdigest()
