"""What people say, as files in `control/said/`: written once, signed with the key of the run, read at every look.

Whoever can read the key may speak; over HTTP the server signs for the holder of a token. An answer counts for a day and an
order for an hour: what nobody acted on by then was about another state of the run.
"""

import logging
import os
import re
from pathlib import Path

from pydantic import ValidationError

from controlplane.agent import read_key
from controlplane.contract.approvals import Approval, Order
from controlplane.contract.documents import Said
from controlplane.contract.rundir import RunDir, write_atomic

log = logging.getLogger("controller")

APPROVAL_SECONDS = 24 * 3600.0
ORDER_SECONDS = 3600.0
LARGEST = 64 * 1024
MOST = 200
"""Files looked at in one look; the oldest come first, and what is done with goes away."""


def say(rundir: RunDir, word: Approval | Order) -> Path:
    """Write down what a person says, for the controller of this run; the file.

    Raises:
        OSError: no trainer has started here yet, or its key cannot be read.
        ValueError: the key is damaged.
    """
    said = Said(run_uid=rundir.read_info().run_uid, word=word).signed(read_key(rundir))
    path = rundir.said / f"{word.at:017.6f}-{_slug(_name(word))}.json"
    write_atomic(path, said.model_dump_json() + "\n", mode=0o600, durable=True)
    return path


class Spoken:
    """Reads the files, checks the signatures, and clears away what is over."""

    def __init__(self, rundir: RunDir) -> None:
        self._rundir = rundir
        self._files: dict[str, Path] = {}
        self._done: set[str] = set()

    def read(self, now: float) -> tuple[tuple[Approval, ...], tuple[Order, ...]]:
        """What counts at `now`, oldest first."""
        approvals, orders = [], []
        for path in sorted(self._rundir.said.glob("*.json"))[:MOST]:
            word = self._believed(path)
            if word is None:
                continue
            limit = APPROVAL_SECONDS if isinstance(word, Approval) else ORDER_SECONDS
            if abs(now - word.at) > limit:
                log.warning("%s of %s is older than %g h and is dropped", path.name, word.by, limit / 3600)
                path.unlink(missing_ok=True)
            elif isinstance(word, Approval):
                approvals.append(word)
            elif word.order_id in self._done:
                path.unlink(missing_ok=True)
            else:
                self._files[word.order_id] = path
                orders.append(word)
        return tuple(approvals), tuple(orders)

    def forget(self, order_id: str) -> None:
        """This order was answered by a decision."""
        self._done.add(order_id)
        if path := self._files.pop(order_id, None):
            path.unlink(missing_ok=True)

    def _believed(self, path: Path) -> Approval | Order | None:
        """The word in a file; a file that is not signed by the key of this run is put aside, once, with a warning."""
        try:
            with path.open("rb") as file:
                data = file.read(LARGEST + 1)
            said = Said.model_validate_json(data if len(data) <= LARGEST else b"")
            if said.run_uid == self._rundir.read_info().run_uid and said.verified(read_key(self._rundir)):
                return said.word
        except FileNotFoundError:
            return None
        except (OSError, ValidationError, ValueError):
            pass
        log.warning("%s: not signed with the key of this run; put aside", path)
        os.replace(path, path.with_suffix(".refused"))
        return None


def _name(word: Approval | Order) -> str:
    return f"{word.answer}-{word.decision_id}" if isinstance(word, Approval) else f"{word.action}-{word.order_id}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)[:80]
