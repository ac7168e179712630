"""Records of probes on their way to a controller that does not see the run directory: whole lines, in order, each once.

    probes/<id>.jsonl --from byte n on--> the same file at the controller, only if it is n bytes long there

The position is the receiver's: it says how long its copy is, and that is where the next piece begins. So nothing is sent twice into the file,
whatever was lost on the way, and a restart of either side begins by asking. Pieces are bounded, and so is a whole record.
"""

import logging
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

LARGEST_PIECE = 256 * 1024
"""Bytes of one request; a line of a step with a thousand prompts has some twenty thousand."""
LARGEST_RECORD = 64 * 1024 * 1024

Put = Callable[[str, int, bytes], int]
"""Append a piece to the record of a probe if it is so many bytes long; returns how long it is now. May raise OSError."""


class Shipper:
    """Sends what is new in a folder. One per process, used from one thread."""

    def __init__(self, probes: Path, put: Put) -> None:
        self._probes, self._put = probes, put
        self._there: dict[str, int] = {}

    def ship(self) -> None:
        """Everything new, oldest record first. Raises OSError as `put` does: what was not sent is sent another time."""
        for path in sorted(self._probes.glob("*.jsonl"), key=lambda each: each.stat().st_mtime):
            while piece := self._piece(path):
                at = self._there.get(path.stem, 0)
                self._there[path.stem] = now = self._put(path.stem, at, piece)
                if now != at + len(piece) and now == at:
                    raise OSError(f"probe {path.stem}: the receiver takes nothing after byte {at}")

    def _piece(self, path: Path) -> bytes:
        """The next whole lines; empty where there are none, or the copy is longer than the record and so of another one."""
        at = self._there.get(path.stem, 0)
        if not at < path.stat().st_size:
            return b""
        with path.open("rb") as file:
            file.seek(at)
            piece = file.read(LARGEST_PIECE)
        end = piece.rfind(b"\n") + 1
        if not end and len(piece) == LARGEST_PIECE:
            raise OSError(f"probe {path.stem}: a line is longer than {LARGEST_PIECE} bytes")
        return piece[:end]
