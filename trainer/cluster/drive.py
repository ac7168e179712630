"""`scalerl train --cluster ray`: the same loop, with learner and generators in processes of their own.

    driver (this process)                      learner ranks (FSDP2, one process group)
      Loop, buffer, curriculum, verifiers <---->  optimizer step, state, export of weights
      agent and its port, checkpoints                       |  file, digest
      evaluator                                             v
      Pool  <---------- groups -------------->  generators (any number, they come and go)

A generator that is lost is the pool's business and the loop never hears of it. When the learners are lost, everything but
the generators is built again in this process, exactly as a new process would: from the newest checkpoint. A driver that is
killed takes its actors with it, and the same command goes on.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from controlplane.agent import Directive
from controlplane.contract.rundir import RunDir, append_line, write_atomic
from trainer.build import Groundwork, Run, Workers, build, identify
from trainer.cluster import CannotStart, ClusterFailure
from trainer.cluster.broadcast import BroadcastSync
from trainer.cluster.budget import Budget
from trainer.cluster.engine import Engine, Lane
from trainer.cluster.fleet import Fleet
from trainer.cluster.learners import LearnerLost, Learners, start_learners
from trainer.cluster.pool import Pool
from trainer.cluster.ray_session import connected
from trainer.cluster.sync import FileSync, Outbox, parent_of
from trainer.cluster.wanted import wanted
from trainer.recipe import Recipe
from trainer.stopwatch import Devices
from trainer.sync import WeightSync

NAP = 0.1
"""Seconds between two looks for a signal while the learners wait for their restart."""


class LearnersGivenUp(ClusterFailure):
    """The learners were lost too often. One sentence."""


def drive(
    recipe: Recipe,
    rundir: RunDir,
    start: Path,
    address: str,
    say: Callable[[str], None],
    follow: Callable[[Run], None],
) -> tuple[Run, str]:
    """Go through the run on a cluster; returns its last part and why it ended. `follow` hears of each part before it begins.

    Raises:
        NoCluster: Ray cannot be reached or started.
        NoGenerators: too few generators, and no hope for more.
        LearnersGivenUp: the learners were lost too often.
        Poisoned: a rollback broke while the ranks put it in force, and a person has to look.
    """
    spec = recipe.cluster
    identify(recipe, rundir)
    write_atomic(rundir.recipe, recipe.dump(), durable=True)  # the section `cluster` may be another one now
    total = spec.learners.ranks * spec.learners.cpus + spec.generators.max * spec.generators.cpus
    with connected(address, total), _outbox(recipe, rundir, one_machine=not address) as outbox:
        cluster = _Cluster(recipe, rundir, start, outbox, say, follow)
        with closing(cluster):
            return cluster.run()


@contextmanager
def _outbox(recipe: Recipe, rundir: RunDir, one_machine: bool) -> Iterator[Outbox]:
    parent = parent_of(recipe.cluster.weights, rundir.root, one_machine)
    with closing(Outbox(parent, rundir.read_info().run_uid)) as outbox:
        yield outbox


class _Cluster:
    """Pool and learners of a run, and the lives of the learners."""

    def __init__(
        self,
        recipe: Recipe,
        rundir: RunDir,
        start: Path,
        outbox: Outbox,
        say: Callable[[str], None],
        follow: Callable[[Run], None],
    ) -> None:
        self._recipe, self._rundir, self._start, self._outbox = recipe, rundir, start, outbox
        self._say, self._follow = say, follow
        self._gpus = _gpus(recipe)
        self._devices = _devices(recipe, *self._gpus)
        self._pool: Pool | None = None
        self._learners: Learners | None = None
        self._running: Run | None = None

    def run(self) -> tuple[Run, str]:
        """Life after life of the learners, until the run has ended or was told to stop."""
        budget = Budget(self._recipe.cluster.restarts)
        while True:
            try:
                return self._live()
            except LearnerLost as error:
                budget = budget.after_failure(time.monotonic())
                self._mourn(error, budget)
                if self._waited_in_vain(budget.due()):
                    assert self._running is not None
                    return self._running, "stop"

    def close(self) -> None:
        """End every process."""
        if self._pool is not None:
            self._pool.close()
        if self._learners is not None:
            self._learners.close()

    def _live(self) -> tuple[Run, str]:
        """From resuming to the end of the run, or to the loss of the learners."""
        try:
            running = build(self._recipe, self._rundir, self._start, self._say, self._workers, self._vote)
        except (OSError, ValueError) as error:
            if self._running is None:
                raise CannotStart(str(error)) from error
            raise
        self._running = running
        if self._pool is not None:
            self._pool.stopping = lambda: running.loop.session.stopping
        self._follow(running)
        try:
            return running, running.loop.run()
        finally:
            if words := running.close():
                self._say(f"log.kind {self._recipe.log.kind}: {words}")

    def _mourn(self, error: LearnerLost, budget: Budget) -> None:
        now = time.monotonic()
        spent = budget.spent(now)
        wait = None if spent else max(0.0, budget.due() - now)
        self._tell("learners_lost", reason=str(error), restart_in=wait)
        if self._learners is not None:
            self._learners.close()
            self._learners = None
        if self._pool is not None:
            self._pool.withdraw()  # or a generator that waits for devices would take those of the learners
        if spent:
            limits = budget.spec
            raise LearnersGivenUp(
                f"the learners were lost more than {limits.limit} times within {limits.window_seconds:g} s; "
                f"the last time: {error}"
            ) from error

    def _waited_in_vain(self, until: float) -> bool:
        """Wait for the time of the restart; true when the run was told to stop meanwhile."""
        while self._running is None or not self._running.loop.session.stopping:
            if time.monotonic() >= until:
                return False
            time.sleep(NAP)
        return True

    def _workers(self, work: Groundwork) -> Workers:
        """New learners; the generators go on, with nothing under way."""
        from trainer.cluster.spare import OnCluster

        pool = self._pool or self._start_pool(work)
        for book in pool.books.values():
            pool.abort(book)
        self._learners = start_learners(work, self._rundir, self._gpus[0])
        sync = self._sync(self._learners, pool)
        beside = OnCluster(self._recipe, self._start, self._gpus[0])
        return Workers(self._learners.learner, pool.rollouts, pool.evaluation, sync, self._devices, beside)

    def _sync(self, learners: Learners, pool: Pool) -> WeightSync:
        files = FileSync(learners.export, pool, self._outbox)
        if self._recipe.cluster.transfer == "file":
            return files
        if learners.apply is None or not all(self._gpus):
            raise CannotStart(
                "cluster.transfer: nccl needs GPUs, for the learners and for the generators; file does not"
            )
        return BroadcastSync(files, pool, learners.apply, self._gpus[1], self._recipe.cluster.deadlines.load)

    def _vote(self, directive: Directive) -> str:
        return self._learners.vote(directive) if self._learners else ""

    def _start_pool(self, work: Groundwork) -> Pool:
        from trainer.cluster.ray_engine import RayEngine

        recipe, spec, gpus = self._recipe, self._recipe.cluster, self._gpus[1]

        def launch(name: str) -> Engine:
            return RayEngine(name, work, spec.generators, gpus)

        fleet = Fleet(launch, spec, lambda: wanted(self._rundir, spec.generators), self._tell)
        slots: dict[Lane, int] = {"rollout": recipe.rollout.slots, "evaluation": recipe.evaluation.slots}
        samples: dict[Lane, int] = {"rollout": recipe.batch.samples_per_prompt, "evaluation": recipe.evaluation.k}
        self._pool = Pool(fleet, spec, slots, samples, tell=self._tell)
        return self._pool

    def _tell(self, event: str, /, **fields: Any) -> None:
        if self._pool is not None:
            self._devices.generator = max(1, self._pool.live) * _unit(
                self._gpus[1], self._recipe.cluster.generators.cpus
            )
        state = self._running.loop.state if self._running else None
        where = {"step": state.step, "branch": state.branch} if state else {"step": 0, "branch": 0}
        append_line(self._rundir.events, {"event": event, **where, "time": time.time(), **fields})
        self._say(f"{event.replace('_', ' ')}: " + ", ".join(f"{key} {value}" for key, value in fields.items()))


def _gpus(recipe: Recipe) -> tuple[int, int]:
    """GPUs of each learner and of each generator."""
    import ray

    there = bool(ray.cluster_resources().get("GPU", 0))
    learners, generators = recipe.cluster.learners.gpus, recipe.cluster.generators.gpus
    usual = int(there), (recipe.rollout.tensor_parallel_size or 1) if there else 0
    return usual[0] if learners is None else learners, usual[1] if generators is None else generators


def _unit(gpus: int, cpus: float) -> int:
    """Devices of one process in the account: its GPUs, or its cores where it has none."""
    return gpus or max(1, round(cpus))


def _devices(recipe: Recipe, learner: int, generator: int) -> Devices:
    spec = recipe.cluster
    ranks = spec.learners.ranks
    learning = recipe.threads if ranks == 1 and not learner else ranks * _unit(learner, spec.learners.cpus)
    return Devices(spec.generators.max * _unit(generator, spec.generators.cpus), learning, "free")
