"""The recipe: everything that decides a run, in one YAML file. The resolved recipe is written into the run directory.

Defaults are the values of the ScaleRL paper (section 3) where it names one. Nothing heavy is imported, so that a bad
recipe is refused at once and the command line stays quick.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from controlplane.agent import GuardRails
from controlplane.contract.tunables import TUNABLES
from controlplane.contract.yamlfile import FileError, Misplaced, load
from trainer.cluster.settings import ClusterSpec
from trainer.settings import (
    Batch,
    Change,
    CheckpointSpec,
    CurriculumSpec,
    Evaluation,
    Fault,
    Length,
    Log,
    Loss,
    Metrics,
    ModelSpec,
    OptimizerSpec,
    Part,
    Precision,
    Rollout,
    Staleness,
    TinyModel,
    WarmStart,
)
from trainer.tasks.specs import ArithmeticSpec, TaskSpec

SHIPPED = Path(__file__).parent / "recipes"
FREE = ("cluster", "metrics", "log")
"""Sections that say where a run works and who looks on: it may go on with other ones."""


class Recipe(Part):
    """One run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=63)
    """Name of the run on dashboards."""
    seed: int = Field(default=0, ge=0)
    """Decides the order of prompts and every sampled token."""
    steps: int = Field(ge=1)
    """Optimizer steps; the run ends there."""
    threads: int = Field(default=2, ge=1)
    """CPU threads; without a GPU also the devices held, for the compute account."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where learner and generator run; auto takes a GPU where there is one."""
    task: TaskSpec = ArithmeticSpec()
    model: ModelSpec = TinyModel()
    warm_start: WarmStart = WarmStart()
    batch: Batch = Batch()
    rollout: Rollout = Rollout()
    loss: Loss = Loss()
    precision: Precision = Precision()
    optimizer: OptimizerSpec = OptimizerSpec()
    staleness: Staleness = Staleness()
    length: Length = Length()
    curriculum: CurriculumSpec = CurriculumSpec()
    evaluation: Evaluation = Evaluation()
    checkpoint: CheckpointSpec = CheckpointSpec()
    guard_rails: GuardRails = GuardRails()
    """Limits on what a controller may do; nobody outside can loosen them."""
    metrics: Metrics = Metrics()
    log: Log = Log()
    cluster: ClusterSpec = ClusterSpec()
    """Where it runs with `--cluster ray`."""
    faults: tuple[Fault, ...] = ()
    schedule: tuple[Change, ...] = ()
    """Changes of tunables at steps known beforehand."""

    @model_validator(mode="after")
    def _coherent(self) -> "Recipe":
        if self.rollout.slots < self.batch.samples_per_prompt:
            raise Misplaced(("rollout", "slots"), "must be at least batch.samples_per_prompt, or no group can start")
        if self.evaluation.slots < self.evaluation.k:
            raise Misplaced(("evaluation", "slots"), "must be at least evaluation.k, or no group can start")
        split, gpus = self.rollout.tensor_parallel_size, self.cluster.generators.gpus
        if split is not None and gpus and split != gpus:
            raise Misplaced(
                ("rollout", "tensor_parallel_size"), f"must be cluster.generators.gpus, which is {gpus}, or null"
            )
        if self.rollout.process == "same" and (split or gpus or 1) > 1 and self.rollout.generator == "vllm":
            raise Misplaced(("rollout", "process"), "must be own or auto where several GPUs share a model")
        if self.cluster.transfer == "nccl" and self.rollout.generator != "vllm":
            raise Misplaced(("cluster", "transfer"), "nccl is for rollout.generator vllm; others take a file")
        if self.task.kind != "arithmetic" and isinstance(self.model, TinyModel):
            raise Misplaced(("model",), f"the {self.task.kind} task needs a model directory: give model.path")
        for name, value in self.tunables().items():
            if self.guard_rails.inside(name, value) != value:
                bounds = self.guard_rails.of(name)
                raise Misplaced(
                    ("guard_rails", "bounds", name),
                    f"the recipe's own {name} of {value:g} is outside {bounds.min:g} to {bounds.max:g}",
                )
        for index, change in enumerate(self.schedule):
            for name, value in change.set.items():
                where = ("schedule", index, "set", name)
                if name not in self.tunables():
                    raise Misplaced(where, f"this recipe has no such tunable; it has {', '.join(self.tunables())}")
                if self.guard_rails.inside(name, value) != value:
                    bounds = self.guard_rails.of(name)
                    raise Misplaced(where, f"{value:g} is outside the guard rails {bounds.min:g} to {bounds.max:g}")
        return self

    def tunables(self) -> dict[str, float]:
        """The settings that may be changed while the run goes on, at their starting values."""
        values = {
            "lr_scale": 1.0,
            "prompts_per_step": float(self.batch.prompts_per_step),
            "temperature": self.rollout.temperature,
            "max_new_tokens": float(self.length.max_new_tokens),
            "max_staleness": float(self.staleness.max_staleness),
        }
        if self.loss.kind == "cispo":
            values["ratio_max"] = self.loss.ratio_max
        if self.loss.kind in ("grpo", "gspo"):
            values |= {"clip_low": self.loss.clip_low, "clip_high": self.loss.clip_high}
        if self.length.control == "interruption":
            values["thinking_budget"] = float(self.length.thinking_budget)
        if self.length.control == "penalty":
            values["length_penalty"] = self.length.penalty.factor
        return {name: values[name] for name in TUNABLES if name in values}

    def rails(self) -> GuardRails:
        """The guard rails of the tunables that this recipe has; a bound on one that its loss does not use is idle."""
        mine = self.tunables()
        bounds = {name: bounds for name, bounds in self.guard_rails.bounds.items() if name in mine}
        return self.guard_rails.model_copy(update={"bounds": bounds})

    def dump(self) -> str:
        """YAML with every default filled in; `load_recipe` reads it back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def digest(self) -> str:
        """Hash that two recipes share which train alike: equal but for the sections in `FREE`, and where an engine works."""
        left_out: Any = {
            **dict.fromkeys(FREE, True),
            "model": {"shape"},
            "rollout": {"process", "tensor_parallel_size"},
        }
        dumped = self.model_dump(mode="json", exclude=left_out)
        return hashlib.sha256(json.dumps(dumped, sort_keys=True).encode()).hexdigest()[:16]


def find_recipe(name: str | Path) -> Path:
    """A path as given, or the shipped recipe of that name.

    Raises:
        FileError: neither exists.
    """
    path = Path(name)
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    shipped = SHIPPED / f"{name}.yaml"
    if not shipped.exists():
        known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise FileError(f"{name}: no such recipe; give a file or one of {known}")
    return shipped


def overrides_of(pairs: Sequence[str]) -> dict[str, str]:
    """`--set KEY=VALUE` as `load_recipe` takes them.

    Raises:
        FileError: one is not of that form.
    """
    overrides: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise FileError(f"--set {pair}: give KEY=VALUE, for example --set optimizer.lr=3e-5")
        overrides[key] = value
    return overrides


def load_recipe(path: Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """Read a recipe; `overrides` maps dotted keys to YAML values and is put in place before anything is checked.

    Raises:
        FileError: file or override does not make a recipe.
    """
    return load(path, Recipe, overrides)
