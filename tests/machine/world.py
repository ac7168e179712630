"""One simulated run, its controllers, and everything between them that can go wrong. Real agent, journal, loop and files."""

import json
import math
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from controlplane.agent import Directive, GuardRails
from controlplane.contract.documents import Action, Desired, Health, Observed
from controlplane.contract.rundir import RunDir, write_atomic
from controlplane.decide import Decision, Judgement, Kind
from controlplane.journal import Entry, EntryKind, Journal, JournalError
from controlplane.loop import Controller
from controlplane.policy import parse
from controlplane.post import Post
from controlplane.sim import SimTrainer, Tempo
from controlplane.sources import Sample, SourceError
from controlplane.sources.exposition import parse as parse_metrics

POLICY_TEXT = (Path(__file__).parent / "policy.yaml").read_text()
POLICY = parse(POLICY_TEXT, "machine")
RAILS = GuardRails(cooldown_steps=2, max_rollbacks=2)
# Everything here is fsynced all the time; in memory that costs nothing, and what is tested is the order of writes.
_PLACE = "/dev/shm" if Path("/dev/shm").is_dir() else None


LATE = 90.0
"""Seconds that a late page has been on its way: more than the policy allows."""


class Dead(BaseException):
    """The controller's process ended here."""


class Run(SimTrainer):
    """A trainer that remembers what was asked of it."""

    def __init__(self, rundir: RunDir) -> None:
        self.rollbacks: list[tuple[Health | None, dict[str, float], dict[str, float]]] = []
        """(health of the target, values before, values asked for) of each rollback carried out."""
        super().__init__(
            rundir, 1, (), 100_000, prompts=8, rails=RAILS, tempo=Tempo(eval_every=10, eval_prompts=8, proof_steps=3)
        )

    def _roll_back(self, directive: Directive) -> str:
        target = directive.target
        health = next((c.health for c in self.checkpoints if target and c.digest == target.digest), None)
        self.rollbacks.append((health, dict(self.values), dict(directive.values)))
        return super()._roll_back(directive)


class Source:
    """Reads the trainer's page as it is, not at all, as it was (stale), as it is but too late (late), or as no numbers (nan)."""

    def __init__(self, trainer: Run) -> None:
        self.trainer, self.mode = trainer, "good"
        self._last = self._read()

    @property
    def seen_at(self) -> float:
        """When the page that is shown now was true, by the trainer's clock; never, where nothing can be read."""
        times = {"good": self.trainer.now, "stale": self._last.at, "late": self.trainer.now - LATE}
        return times.get(self.mode, -math.inf)

    def read(self, names: Collection[str]) -> Sample:
        if self.mode == "missing":
            raise SourceError("the network is gone")
        if self.mode == "stale":
            return self._last
        sample = self._read()
        if self.mode == "nan":
            return Sample(sample.at, dict.fromkeys(sample.values, math.nan))
        if self.mode == "late":
            return Sample(sample.at - LATE, sample.values)
        self._last = sample
        return sample

    def _read(self) -> Sample:
        return Sample(self.trainer.now, parse_metrics(self.trainer.agent.store.text(), None))


class FragileJournal(Journal):
    """Dies where it is told to."""

    dies = ""

    def append(self, rows: Any, at: float) -> list[Entry]:
        kind, body = rows[0]
        acts = kind is EntryKind.look and body["decision"]["kind"] == "act"
        self._die("before the journal", kind is EntryKind.look)
        written = super().append(rows, at)
        self._die("after the journal", kind is EntryKind.look)
        self._die("between journal and document", acts)
        self._die("after the line of the publication", kind is EntryKind.published)
        return written

    def _die(self, where: str, here: bool) -> None:
        if here and self.dies == where:
            self.dies = ""
            raise Dead


class FragilePost(Post):
    """Loses or kills publications."""

    loses = False
    dies = False

    def __init__(self, rundir: RunDir, underway: list[Desired]) -> None:
        super().__init__(rundir)
        self._underway = underway

    def publish(self, document: Desired) -> bool:
        if self.loses:
            self.loses = False
            self._underway.append(document)  # it may still come, late
            return True
        done = super().publish(document)
        if self.dies:
            self.dies = False
            raise Dead
        return done


class Seat:
    """One controller process: its own connection to the journal, its own clock."""

    def __init__(self, world: "World") -> None:
        self._world, self.offset = world, 0.0
        self.journal = FragileJournal(world.rundir.journal)
        self.controller = Controller(
            world.rundir, POLICY, POLICY_TEXT, world.source, self.journal, clock=lambda: world.trainer.now + self.offset
        )
        self.post = FragilePost(world.rundir, world.underway)
        self.controller._post = self.post
        self.alive = True
        self._guarded(self.controller.attach)

    def tick(self) -> tuple[Judgement, Decision] | None:
        """A look; None if the process died in it or was told that it does not lead."""
        return self._guarded(self.controller.tick)

    def kill(self) -> None:
        self.alive = False
        self.journal.close()

    def _guarded(self, work: Any) -> Any:
        try:
            return work()
        except Dead:
            self.kill()
        except JournalError:
            self.journal.resign()  # as `Controller.run` does: read-only from now on
            self.kill()
        return None


class World:
    """All of it, in a directory of its own."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(dir=_PLACE))
        self.rundir = RunDir(self.root)
        self.trainer = Run(self.rundir)
        self.source = Source(self.trainer)
        self.seats: list[Seat] = []
        self.documents: dict[str, Desired] = {}
        """Every document that ever lay in place, by decision."""
        self._reader: Journal | None = None
        self._entries: list[Entry] = []
        self.underway: list[Desired] = []
        """Published, and not arrived yet."""
        self.observed: list[bytes] = [self.rundir.observed.read_bytes()]

    def seat(self) -> Seat:
        """One more controller takes over; the others do not know yet."""
        self.seats.append(Seat(self))
        return self.seats[-1]

    def arrive(self, document: Desired) -> None:
        """A document lies where the trainer looks, whatever lay there before; and the trainer passes a boundary."""
        self.rundir.desired.write_bytes(b"{}")
        self.trainer.step()
        write_atomic(self.rundir.desired, document.model_dump_json())
        self.trainer.step()

    def note(self) -> None:
        """Remember what lies in the control directory."""
        if self.rundir.desired.exists():
            try:
                document = Desired.model_validate_json(self.rundir.desired.read_bytes())
                self.documents.setdefault(document.decision_id, document)
            except ValueError:
                pass
        now = self.rundir.observed.read_bytes()
        if now != self.observed[-1]:
            self.observed.append(now)

    def seen(self) -> Observed:
        return Observed.model_validate_json(self.rundir.observed.read_bytes())

    def answers(self) -> list[dict[str, Any]]:
        """What the agent wrote down about each decision, in order."""
        lines = [json.loads(line) for line in self.rundir.control_log.read_text().splitlines()]
        return [line for line in lines if line["event"] == "answered"]

    def journal(self) -> list[Entry]:
        """Every line so far; the chain is verified at the end."""
        if self._reader is None:
            self._reader = Journal(self.rundir.journal, read_only=True)
        self._entries += self._reader.entries(after=self._entries[-1].seq if self._entries else 0)
        return self._entries

    def close(self) -> None:
        self.trainer.close()
        if self._reader is not None:
            self._reader.close()
        for seat in self.seats:
            if seat.alive:
                seat.kill()
        shutil.rmtree(self.root, ignore_errors=True)


ORDERS = {"pause": Action.pause, "resume": Action.resume, "checkpoint": Action.checkpoint}
PEOPLE = frozenset({Kind.page, Kind.advise, Kind.waiting, Kind.act})
