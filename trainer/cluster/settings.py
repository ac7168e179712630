"""The recipe's section `cluster`: who gets which devices, how long anybody is waited for, and how often anything is started again.

It has no effect without `scalerl train --cluster ray`, and it decides nothing about what is learned: a run may go on with
another one. Nothing heavy is imported.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from controlplane.contract.yamlfile import Misplaced
from trainer.settings import Part


class Learners(Part):
    """Processes that hold the model's shards (FSDP2) and take the optimizer step together."""

    ranks: int = Field(default=1, ge=1)
    """Processes in the group; with a single one and no GPU the driver learns itself, with `threads` of the recipe."""
    gpus: int | None = Field(default=None, ge=0, le=1)
    """GPUs of each; null: 1 where Ray has GPUs, else 0."""
    cpus: float = Field(default=1.0, gt=0)
    """CPU cores of each, as Ray counts them; without a GPU also its devices in the compute account."""
    placement: Literal["PACK", "STRICT_PACK", "SPREAD", "STRICT_SPREAD"] = "PACK"
    """How Ray places them: PACK fills one node after the other, STRICT_PACK refuses to use a second one."""
    step_seconds: float = Field(default=1800.0, gt=0)
    """Longest optimizer step, export, save or load before the group counts as lost."""


class Generators(Part):
    """Processes that sample completions, each with the whole model and `rollout.slots` slots of its own."""

    min: int = Field(default=1, ge=1)
    """The run ends rather than go on with fewer."""
    max: int = Field(default=1, ge=1)
    """The run begins with so many, or with as many as Ray has room for; `scalerl generators` changes the number."""
    gpus: int | None = Field(default=None, ge=0)
    """GPUs of each, all on one node; null: 1 where Ray has GPUs, else 0."""
    cpus: float = Field(default=1.0, gt=0)
    """CPU cores of each, as Ray counts them; without a GPU also its devices in the compute account."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of each process."""
    ahead: int = Field(default=0, ge=0)
    """Groups that may wait inside each generator beyond its slots, so that none of them is empty while the driver is busy.
    More makes training more off-policy."""


class Restarts(Part):
    """How often something is started again before it is given up."""

    limit: int = Field(default=5, ge=0)
    """Failures within the window after which a generator's place is given up, or the learners are and the run ends."""
    window_seconds: float = Field(default=3600.0, gt=0)
    """Failures longer ago are forgotten."""
    first_wait: float = Field(default=1.0, ge=0)
    """Seconds before the first restart; doubles with every failure in the window."""
    longest_wait: float = Field(default=60.0, ge=0)
    """Seconds that it never waits longer than."""


class Deadlines(Part):
    """Longest that anybody waits for a generator, in seconds. Who is late is killed, and its groups begin again elsewhere."""

    start: float = Field(default=600.0, gt=0)
    """From devices to a model that samples; also how long a run without any generator waits for devices."""
    hang: float = Field(default=180.0, gt=0)
    """Without an answer, or without a new token while there is work. Must exceed the longest single pause of the engine."""
    load: float = Field(default=300.0, gt=0)
    """To take new weights and confirm their digest."""
    abort: float = Field(default=60.0, gt=0)
    """To forget everything, at a rollback."""
    drain: float = Field(default=900.0, gt=0)
    """To finish what it has when there are to be fewer; after that its groups begin again elsewhere."""


class ClusterSpec(Part):
    """Split of the devices, placement, deadlines and restart budgets."""

    learners: Learners = Learners()
    generators: Generators = Generators()
    transfer: Literal["file", "nccl"] = "file"
    """How weights reach the generators. file: in one that they map. nccl: sent by rank 0 of the learner to all of them at once,
    with vLLM on GPUs; never run on GPUs so far."""
    gpus_per_node: int = Field(default=8, ge=1)
    """GPUs in one machine; a generator must fit into one."""
    weights: Path | None = None
    """Directory for weights on their way to the generators, the same on all machines; null: shared memory with a Ray
    of our own, which is one machine; with `--address` it is `weights/` in the run directory, on a shared file system then."""
    restarts: Restarts = Restarts()
    deadlines: Deadlines = Deadlines()

    @model_validator(mode="after")
    def _coherent(self) -> "ClusterSpec":
        if self.generators.max < self.generators.min:
            raise Misplaced(("generators", "max"), f"must be at least generators.min, which is {self.generators.min}")
        if (self.generators.gpus or 0) > self.gpus_per_node:
            raise Misplaced(
                ("generators", "gpus"), f"a generator must fit into one machine of {self.gpus_per_node} GPUs"
            )
        return self
