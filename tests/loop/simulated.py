"""A controller on a simulated trainer: real agent, real documents, real journal, virtual time."""

from collections.abc import Collection
from pathlib import Path

from controlplane.contract.rundir import RunDir
from controlplane.decide import Decision, Kind
from controlplane.journal import Journal
from controlplane.loop import Controller
from controlplane.policy import Autonomy, find, parse
from controlplane.sim.faults import Fault
from controlplane.sim.trainer import SimTrainer
from controlplane.sources import Sample, SourceError
from controlplane.sources.exposition import parse as parse_metrics


class SimSource:
    """Reads a simulated trainer's exposition; `broken` makes it fail as a dead network would."""

    def __init__(self, trainer: SimTrainer) -> None:
        self.trainer, self.broken = trainer, False

    def read(self, names: Collection[str]) -> Sample:
        if self.broken:
            raise SourceError("the network is gone")
        return Sample(self.trainer.now, parse_metrics(self.trainer.agent.store.text(), names))


class Bench:
    """One simulated run under one controller, which may be killed and started again."""

    def __init__(
        self, root: Path, seed: int = 1, faults: tuple[Fault, ...] = (), at_most: str = "act", planned: int = 250
    ) -> None:
        self.rundir = RunDir(root)
        self.at_most = at_most
        self.trainer = SimTrainer(self.rundir, seed, faults, planned)
        self.source = SimSource(self.trainer)
        self.decisions: list[Decision] = []
        self.journal = Journal(self.rundir.journal)
        self.controller = self.start()

    def start(self) -> Controller:
        """A new controller process on the same journal."""
        name, text = find("demo")
        policy = parse(text, name).capped(Autonomy[self.at_most])
        controller = Controller(self.rundir, policy, text, self.source, self.journal, clock=lambda: self.trainer.now)
        controller.attach()
        return controller

    def kill(self) -> None:
        """What SIGKILL leaves: the journal and the files, nothing else."""
        self.journal.close()
        self.journal = Journal(self.rundir.journal)

    def step(self) -> bool:
        """One step of the trainer and one look of the controller; False when the run is over."""
        going = self.trainer.step()
        self.decisions.append(self.controller.tick()[1])
        return going

    def run(self, until: int | None = None) -> None:
        while self.step() and (until is None or self.trainer.step_number < until):
            pass

    def of(self, *kinds: Kind) -> list[Decision]:
        return [d for d in self.decisions if d.kind in kinds]

    def close(self) -> None:
        self.trainer.close()
        self.journal.close()
