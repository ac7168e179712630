"""How documents travel, and the thread that carries them so that a step boundary never waits for disk or network.

    desired.json --fetch--> Courier --(parsed, signature checked, journaled)--> slot --take--> boundary
    observed.json <-publish- Courier <--(journaled first)--------------------- slot <--post--- boundary

A `Mailbox` is two methods; another transport needs nothing else. Invariants: a document is in `control.jsonl` before the
trainer can see it, an ack is in `control.jsonl` before the controller can see it, and nothing that arrives or fails here
reaches the training loop as an exception.
"""

import json
import logging
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from controlplane.agent.memory import Received, Record, Unreadable
from controlplane.contract.documents import Ack, AckState, Desired, Observed
from controlplane.contract.rundir import RunDir, write_atomic

log = logging.getLogger(__name__)

LARGEST_DOCUMENT = 256 * 1024
"""Bytes; a desired document is some hundred."""


class Mailbox(Protocol):
    """Where desired documents come from and observed ones go. Called from one thread only; may raise OSError."""

    def fetch(self) -> bytes | None:
        """The newest desired document, or None when there is none."""

    def publish(self, observed_json: str) -> None:
        """Replace the observed document."""


class DirectoryMailbox:
    """The control directory of a run, on a file system that both sides see. Files are replaced atomically."""

    def __init__(self, rundir: RunDir) -> None:
        self._rundir = rundir

    def fetch(self) -> bytes | None:
        try:
            with self._rundir.desired.open("rb") as file:
                return file.read(LARGEST_DOCUMENT + 1)
        except FileNotFoundError:
            return None

    def publish(self, observed_json: str) -> None:
        write_atomic(self._rundir.observed, observed_json)


def ensure_key(rundir: RunDir) -> bytes:
    """The key of this run; made (mode 0600, 32 random bytes in hex) when there is none. Whole or absent, never in part."""
    rundir.control.mkdir(parents=True, exist_ok=True)
    if not rundir.key.exists():
        temporary = rundir.control / f".key.{secrets.token_hex(8)}"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        try:
            os.link(temporary, rundir.key)
        except FileExistsError:
            pass  # another process was first; its key counts
        finally:
            temporary.unlink()
    return read_key(rundir)


def read_key(rundir: RunDir) -> bytes:
    """The key with which desired documents are signed: 32 bytes.

    Raises:
        FileNotFoundError: no agent has started in this run directory yet.
        ValueError: the file does not hold 32 bytes in hex.
    """
    try:
        key = bytes.fromhex(rundir.key.read_text().strip())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ValueError(f"{rundir.key}: must hold 32 bytes in hex")
    return key


class Journal:
    """Append-only file of records, flushed to the disk. A torn last line (crash while writing) is cut off when opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(path, whole)

    def append(self, records: list[Record]) -> None:
        """All of the records or none: after an OSError the file is as it was."""
        data = "".join(record.model_dump_json() + "\n" for record in records).encode()
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            try:
                if os.write(handle, data) != len(data):
                    raise OSError(f"{self._path}: short write")
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)


class Courier:
    """Carries documents between a mailbox and the boundary, in a daemon thread or, without one, when told to.

    `address` is the run and the incarnation that documents should be written for.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        journal: Journal,
        key: bytes,
        address: tuple[str, str],
        clock: Callable[[], float],
        on_unreadable: Callable[[], None],
    ) -> None:
        self._mailbox, self._journal, self._key, self._clock = mailbox, journal, key, clock
        self._address = address
        self._on_unreadable = on_unreadable
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._wake = threading.Event()
        self._seen: bytes | None = None
        self._arrived: list[tuple[Desired, Received]] = []
        self._complaint: Ack | None = None
        self._records: list[Record] = []
        self._observed: Observed | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._troubles: dict[str, str] = {}

    # The side of the training loop: memory only.

    def take(self) -> list[tuple[Desired, Received]]:
        """Documents that were not taken yet, oldest first, with their journal records."""
        with self._lock:
            arrived, self._arrived = self._arrived, []
            return arrived

    def complaint(self) -> Ack | None:
        """Answer to the newest unreadable document, once. Its decision id is what the document claimed, or empty."""
        with self._lock:
            complaint, self._complaint = self._complaint, None
            return complaint

    def record(self, record: Record) -> None:
        """Journal a record before the next observed document is published."""
        with self._lock:
            self._records.append(record)

    def post(self, observed: Observed) -> None:
        """Publish this document soon; only the newest one counts."""
        with self._lock:
            self._observed = observed

    def wake(self) -> None:
        """Do not wait for the next poll."""
        self._wake.set()

    # The side of the mailbox: may wait.

    def collect(self) -> None:
        """Fetch, parse, check the signature, journal, put into the slot."""
        data = self._mailbox.fetch()
        if data is None or data == self._seen:
            return
        parsed = parse(data, self._key)
        if isinstance(parsed, Ack):
            self._journal_now([Unreadable(at=self._clock(), reason=parsed.reason)])
            self._on_unreadable()
            with self._lock:
                self._complaint = parsed
        else:
            received = Received(
                at=self._clock(),
                decision_id=parsed.decision_id,
                generation=parsed.generation,
                epoch=parsed.epoch if (parsed.run_uid, parsed.incarnation) == self._address else None,
                action=parsed.action,
            )
            self._journal_now([received])
            with self._lock:
                self._arrived.append((parsed, received))
        self._seen = data  # last, so that a failing disk means: try again

    def deliver(self) -> None:
        """Journal what was recorded, then publish the newest observed document."""
        with self._lock:
            observed = self._observed
        self.flush()
        if observed is None:
            return
        self._mailbox.publish(observed.model_dump_json())
        with self._lock:
            if self._observed is observed:
                self._observed = None

    def flush(self) -> None:
        """Journal what was recorded; it is on the disk when this returns. OSError: nothing was lost, try again."""
        self._journal_now([])

    def _journal_now(self, more: list[Record]) -> None:
        with self._writing:
            with self._lock:
                records = [*self._records]
            if records or more:
                self._journal.append([*records, *more])
            with self._lock:
                del self._records[: len(records)]

    # The thread.

    def start(self, every: float) -> None:
        """Run `collect` and `deliver` every `every` seconds until `stop`."""
        self._thread = threading.Thread(target=self._run, args=(every,), name="control-courier", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Deliver what is left, then end."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        self._attempt(self.deliver)

    def _run(self, every: float) -> None:
        while not self._stopping:
            self._attempt(self.collect)
            self._attempt(self.deliver)
            self._wake.wait(every)
            self._wake.clear()

    def _attempt(self, act: Callable[[], None]) -> None:
        name = act.__name__
        try:
            act()
        except Exception as error:
            # Whatever a transport raises must not end the thread: the next round tries again, training goes on.
            if self._troubles.get(name) != str(error):
                log.warning("control mailbox: %s failed: %s; tried again", name, error)
            self._troubles[name] = str(error)
        else:
            if self._troubles.pop(name, None) is not None:
                log.info("control mailbox: %s works again", name)

    def turn(self, act: Callable[[], None]) -> None:
        """`collect` or `deliver` at once, for an agent without a thread; failures are logged as in the thread."""
        self._attempt(act)


def parse(data: bytes, key: bytes) -> Desired | Ack:
    """A document with a valid signature, or the rejection of anything else."""
    if len(data) > LARGEST_DOCUMENT:
        return _rejected({}, f"the document is larger than {LARGEST_DOCUMENT} bytes")
    try:
        claims = json.loads(data)
    except (ValueError, RecursionError):
        return _rejected({}, "the document is not JSON")
    claims = claims if isinstance(claims, dict) else {}
    try:
        desired = Desired.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "document"
        return _rejected(claims, f"{place}: {first['msg'].removeprefix('Value error, ')}")
    if not desired.verified(key):
        return _rejected(claims, "the signature does not fit the document and the key of this run")
    return desired


def _rejected(claims: dict[str, object], reason: str) -> Ack:
    decision, generation = claims.get("decision_id"), claims.get("generation")
    return Ack(
        decision_id=decision[:200] if isinstance(decision, str) else "",
        generation=generation if isinstance(generation, int) else 0,
        state=AckState.rejected,
        reason=reason,
        at_step=0,
    )
