"""A change happens on every rank of a trainer or on none. The ranks are threads here; tests/trainer has real processes."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from controlplane.agent import Agent, BoundaryState, Directive, Follower
from controlplane.agent.ranks import MESSAGE_BYTES
from controlplane.contract.documents import AckState, Action, Lease, Setting, Target
from controlplane.contract.rundir import RunDir
from tests.agent.house import GOOD, RAILS, VALUES, MemoryMailbox, desired, make_agent, send, state

RANKS = 3


class ThreadRanks:
    """Ranks that meet at barriers."""

    def __init__(self, rank: int, shared: "Shared") -> None:
        self.rank, self.shared = rank, shared

    def broadcast(self, message: bytes) -> bytes:
        assert len(message) <= MESSAGE_BYTES
        if self.rank == 0:
            self.shared.message = message
        self.shared.barrier.wait()
        message = self.shared.message
        self.shared.barrier.wait()
        return message

    def all_agree(self, yes: bool) -> bool:
        self.shared.votes[self.rank] = yes
        self.shared.barrier.wait()
        agreed = all(self.shared.votes)
        self.shared.barrier.wait()
        return agreed


class Shared:
    def __init__(self) -> None:
        self.barrier = threading.Barrier(RANKS, timeout=20)
        self.message, self.votes = b"", [True] * RANKS


class Trainer:
    """`RANKS` processes that do the same thing at the same time."""

    def __init__(self, rundir: RunDir, objections: dict[int, Callable[[Directive], str]] | None = None) -> None:
        self.rundir, self.mailbox, self.pool = rundir, MemoryMailbox(), ThreadPoolExecutor(RANKS)
        shared, objections = Shared(), objections or {}

        def start(rank: int) -> Agent | Follower:
            check = objections.get(rank, lambda _: "")
            ranks = ThreadRanks(rank, shared)
            if rank == 0:
                return make_agent(rundir, self.mailbox, ranks=ranks, check=check)
            return Follower(ranks, RAILS, tuple(Action), check)

        self.agents = list(self.pool.map(start, range(RANKS)))
        assert isinstance(self.agents[0], Agent)
        self.lead = self.agents[0]

    def boundary(self, **of_rank: BoundaryState) -> list[Directive | None]:
        usual = state(self.lead)
        states = [of_rank.get(f"rank_{rank}", usual) for rank in range(RANKS)]
        return list(self.pool.map(lambda pair: pair[0].boundary(pair[1]), zip(self.agents, states, strict=True)))

    def acknowledge(self, directives: list[Directive | None], readbacks: list[dict[str, float]]) -> None:
        def answer(rank: int) -> None:
            directive = directives[rank]
            assert directive is not None
            self.agents[rank].acknowledge(directive, AckState.applied, 10, readbacks[rank])

        list(self.pool.map(answer, range(RANKS)))

    @property
    def ack(self) -> tuple[AckState, str]:
        assert self.mailbox.observed is not None
        ack = self.mailbox.observed.last_ack
        assert ack is not None
        return ack.state, ack.reason


def test_a_decision_is_handed_out_on_every_rank_at_the_same_boundary(rundir: RunDir) -> None:
    trainer = Trainer(rundir)
    assert [agent.values for agent in trainer.agents] == [VALUES] * RANKS
    assert trainer.boundary() == [None] * RANKS
    send(trainer.mailbox, rundir, desired(trainer.lead, scale=0.5))
    directives = trainer.boundary()
    assert [directive and directive.values for directive in directives] == [{"lr_scale": 0.5}] * RANKS
    trainer.acknowledge(directives, [{"lr_scale": 0.5}] * RANKS)
    assert trainer.ack[0] is AckState.applied
    assert trainer.lead.values["lr_scale"] == 0.5


@pytest.mark.parametrize("refusing", range(RANKS))
def test_one_rank_that_refuses_is_enough_for_nobody_to_apply(rundir: RunDir, refusing: int) -> None:
    trainer = Trainer(rundir, {refusing: lambda _: "my shard is gone"})
    send(trainer.mailbox, rundir, desired(trainer.lead, scale=0.5))
    assert trainer.boundary() == [None] * RANKS
    assert trainer.ack[0] is AckState.rejected
    assert trainer.ack[1] == ("my shard is gone" if refusing == 0 else "another rank of the trainer refuses it")
    assert trainer.lead.values == VALUES
    assert trainer.boundary() == [None] * RANKS  # answered: not tried again


@pytest.mark.parametrize(
    ("changes", "rank"),
    [({"step": 9}, 1), ({"branch": 1}, 2), ({"values": {**VALUES, "lr_scale": 0.9}}, 1), ({"checkpoints": ()}, 2)],
)
def test_a_rank_that_stands_elsewhere_refuses(rundir: RunDir, changes: dict[str, object], rank: int) -> None:
    trainer = Trainer(rundir)
    target = Target(step=GOOD.step, digest=GOOD.digest)
    send(trainer.mailbox, rundir, desired(trainer.lead, action="rollback", target=target, scale=0.5))
    assert trainer.boundary(**{f"rank_{rank}": state(trainer.lead, **changes)}) == [None] * RANKS
    assert trainer.ack[0] is AckState.rejected


def test_ranks_that_differ_after_applying_poison_the_run(rundir: RunDir) -> None:
    trainer = Trainer(rundir)
    send(trainer.mailbox, rundir, desired(trainer.lead, scale=0.5))
    directives = trainer.boundary()
    trainer.acknowledge(directives, [{"lr_scale": 0.5}, {"lr_scale": 0.5}, {"lr_scale": 1.0}])
    assert trainer.ack[0] is AckState.failed
    assert "the ranks of the trainer differ" in trainer.ack[1]
    send(trainer.mailbox, rundir, desired(trainer.lead, "d2", generation=2, scale=0.5))
    assert trainer.boundary() == [None] * RANKS
    assert "only stop is accepted" in trainer.ack[1]
    send(trainer.mailbox, rundir, desired(trainer.lead, "d3", generation=3, action="stop"))
    assert [directive and directive.action for directive in trainer.boundary()] == [Action.stop] * RANKS


def test_a_lapsed_lease_is_reverted_on_every_rank_or_on_none_and_tried_again(rundir: RunDir) -> None:
    objections = iter(["not now", ""])
    checks = {1: lambda directive: next(objections) if "without renewal" in directive.reason else ""}
    trainer = Trainer(rundir, checks)
    lease = Lease(until_step=12, revert_to={"lr_scale": 1.0})
    send(trainer.mailbox, rundir, desired(trainer.lead, scale=0.5, lease=lease))
    trainer.acknowledge(trainer.boundary(), [{"lr_scale": 0.5}] * RANKS)
    late = {f"rank_{rank}": state(trainer.lead, step=13) for rank in range(RANKS)}
    assert trainer.boundary(**late) == [None] * RANKS
    directives = trainer.boundary(**late)
    assert [directive and directive.values for directive in directives] == [{"lr_scale": 1.0}] * RANKS
    trainer.acknowledge(directives, [{"lr_scale": 1.0}] * RANKS)
    assert trainer.ack[0] is AckState.reverted


def test_a_decision_too_large_for_the_ranks_is_refused_and_nobody_waits(rundir: RunDir, tmp_path: Path) -> None:
    trainer = Trainer(rundir)
    document = desired(trainer.lead, "d" * MESSAGE_BYTES, set={"lr_scale": Setting(scale=0.5)})
    send(trainer.mailbox, rundir, document)
    assert trainer.boundary() == [None] * RANKS
    assert "too large" in trainer.ack[1]
    assert trainer.boundary() == [None] * RANKS
