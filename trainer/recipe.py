"""The recipe: everything that decides a run, in one YAML file. The resolved recipe is written into the run directory.

Defaults are the values of the ScaleRL paper (section 3) where it names one. Nothing heavy is imported, so that a bad
recipe is refused at once and the command line stays quick.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from controlplane.agent import GuardRails
from controlplane.contract.yamlfile import FileError, Misplaced, load, parse
from trainer.checkpoint.health import HealthSpec
from trainer.tasks.arithmetic import ArithmeticSpec

SHIPPED = Path(__file__).parent / "recipes"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TinyModel(_Part):
    """Shape of the model made from nothing: Qwen3 architecture, untied head, 0.5 million parameters by default."""

    hidden: int = Field(default=128, ge=8)
    """Width of the residual stream."""
    layers: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)
    """Query heads; must be a multiple of `kv_heads`."""
    kv_heads: int = Field(default=2, ge=1)
    head_dim: int = Field(default=32, ge=2, multiple_of=2)
    mlp: int = Field(default=320, ge=8)
    """Width of the gated MLP."""


class WarmStart(_Part):
    """Supervised steps before reinforcement learning."""

    steps: int = Field(default=800, ge=0)
    """Optimizer steps; 0 starts from random weights."""
    demonstrations_per_step: int = Field(default=16, ge=1)
    lr: float = Field(default=1.5e-3, gt=0)
    """Peak learning rate of AdamW (beta2 0.95), cosine down to a tenth."""
    clean_share: float = Field(default=0.7, ge=0, le=1)
    """Share of the steps, from the start, in which every demonstration is right and step by step."""
    wrong_share: float = Field(default=0.3, ge=0, le=1)
    """Probability of a wrong intermediate result in the mixed demonstrations after that."""
    seed: int = 0
    """Decides initial weights and demonstrations; runs with different recipe seeds share the warm start."""
    threads: int = Field(default=2, ge=1)
    """CPU threads while it is made: nothing else of ours runs then, so a second one is worth having."""


class Batch(_Part):
    """Completions per optimizer step."""

    prompts_per_step: int = Field(default=48, ge=1)
    """Prompts (groups) per optimizer step; a tunable."""
    samples_per_prompt: int = Field(default=16, ge=2)
    """Completions per prompt; the group that rewards are centred in."""


class Loss(_Part):
    """CISPO with prompt average and batch-level normalisation."""

    ratio_max: float = Field(default=5.0, ge=1)
    """Absolute upper bound of the importance ratio, never 1 + eps; a tunable."""


class Rollout(_Part):
    """How completions are sampled."""

    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature of sampler and learner; a tunable."""
    slots: int = Field(default=128, ge=1)
    """Completions decoded at once. More slots than a batch needs make training more off-policy."""


class OptimizerSpec(_Part):
    """AdamW with a constant learning rate after a linear warm-up."""

    lr: float = Field(default=5e-7, gt=0)
    """Base learning rate, reached after the warm-up."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps of linear warm-up."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-15, gt=0)
    """Tiny on purpose: a larger one acts as a hidden gradient clipping."""
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest global gradient norm."""
    tokens_per_micro_batch: int = Field(default=8192, ge=1)
    """Padded tokens per forward and backward pass; memory grows with it, the result does not change."""


class Staleness(_Part):
    """PipelineRL-k."""

    max_staleness: int = Field(default=8, ge=0, le=1000)
    """Most optimizer steps between the oldest weights in a completion and the learner that uses it; a tunable."""


class Length(_Part):
    """Length limits and forced interruption (ScaleRL, section 6)."""

    max_new_tokens: int = Field(default=14_336, ge=1)
    """Longest completion, tokens, answer included; a tunable."""
    thinking_budget: int = Field(default=12_288, ge=1)
    """Tokens of thinking; interruption happens within `window` of it. A tunable."""
    window: tuple[float, float] = (10 / 12, 1.0)
    """Where thinking is cut, uniformly, as proportions of the budget."""
    closing_phrase: str = "</think>"
    """Forced text that ends the thinking; its tokens carry no loss. Must contain the token `</think>`."""

    @model_validator(mode="after")
    def _ordered(self) -> "Length":
        low, high = self.window
        if not 0 < low <= high <= 1:
            raise ValueError("window must be two proportions, 0 < low <= high <= 1")
        if "</think>" not in self.closing_phrase:
            raise ValueError("closing_phrase must contain </think>")
        return self


class CurriculumSpec(_Part):
    """Which prompts an epoch holds."""

    no_positive_resampling: float = Field(default=0.9, gt=0, le=1)
    """Prompts with at least this pass rate over all their completions are left out of later epochs."""
    min_samples: int = Field(default=64, ge=1)
    """Completions seen before that is judged."""


class Evaluation(_Part):
    """Held-out mean@k, with the same random numbers each time."""

    every: int = Field(default=100, ge=1)
    """Optimizer steps between two evaluations; there is also one at the start and one at the end."""
    prompts: int = Field(default=1000, ge=1)
    k: int = Field(default=16, ge=1)
    """Completions per prompt."""
    slots: int = Field(default=256, ge=1)
    """Completions decoded at once."""


class CheckpointSpec(_Part):
    """When checkpoints are written and how many stay."""

    every: int = Field(default=100, ge=1)
    """Optimizer steps between two checkpoints."""
    keep: int = Field(default=4, ge=1)
    """Checkpoints on disk; the newest and the last two good ones stay whatever the number."""
    health: HealthSpec = HealthSpec()


class Fault(_Part):
    """A drill: at a step of branch 0 the learning rate is multiplied as a person's typo would. Fires once."""

    step: int = Field(ge=1)
    """First optimizer step that is taken with the wrong rate."""
    kind: Literal["base_lr"]
    factor: float = Field(gt=0)
    """Factor on the base learning rate, which is part of every checkpoint: a rollback brings the right one back."""


class Metrics(_Part):
    """Where the exporter listens."""

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    """0 takes any free port; `target.json` in the run directory names it."""


class Recipe(_Part):
    """One run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=63)
    """Name of the run on dashboards."""
    seed: int = Field(default=0, ge=0)
    """Decides the order of prompts and every sampled token."""
    steps: int = Field(ge=1)
    """Optimizer steps; the run ends there."""
    threads: int = Field(default=2, ge=1)
    """CPU threads; also the devices held, for the compute account."""
    task: ArithmeticSpec = ArithmeticSpec()
    model: TinyModel = TinyModel()
    warm_start: WarmStart = WarmStart()
    batch: Batch = Batch()
    rollout: Rollout = Rollout()
    loss: Loss = Loss()
    optimizer: OptimizerSpec = OptimizerSpec()
    staleness: Staleness = Staleness()
    length: Length = Length()
    curriculum: CurriculumSpec = CurriculumSpec()
    evaluation: Evaluation = Evaluation()
    checkpoint: CheckpointSpec = CheckpointSpec()
    guard_rails: GuardRails = GuardRails()
    """Limits on what a controller may do; nobody outside can loosen them."""
    metrics: Metrics = Metrics()
    faults: tuple[Fault, ...] = ()

    @model_validator(mode="after")
    def _coherent(self) -> "Recipe":
        if self.rollout.slots < self.batch.samples_per_prompt:
            raise Misplaced(("rollout", "slots"), "must be at least batch.samples_per_prompt, or no group can start")
        if self.evaluation.slots < self.evaluation.k:
            raise Misplaced(("evaluation", "slots"), "must be at least evaluation.k, or no group can start")
        if self.evaluation.prompts > self.task.held_out_prompts:
            raise Misplaced(
                ("evaluation", "prompts"), f"is above the {self.task.held_out_prompts} held-out prompts of the task"
            )
        unknown = [name for name in self.guard_rails.bounds if name not in self.tunables()]
        if unknown:
            raise Misplaced(
                ("guard_rails", "bounds", unknown[0]),
                f"this trainer does not have it; it has {', '.join(self.tunables())}",
            )
        for name, value in self.tunables().items():
            if self.guard_rails.inside(name, value) != value:
                bounds = self.guard_rails.of(name)
                raise Misplaced(
                    ("guard_rails", "bounds", name),
                    f"the recipe's own {name} of {value:g} is outside {bounds.min:g} to {bounds.max:g}",
                )
        return self

    def tunables(self) -> dict[str, float]:
        """The settings that may be changed while the run goes on, at their starting values."""
        return {
            "lr_scale": 1.0,
            "prompts_per_step": float(self.batch.prompts_per_step),
            "ratio_max": self.loss.ratio_max,
            "temperature": self.rollout.temperature,
            "max_new_tokens": float(self.length.max_new_tokens),
            "thinking_budget": float(self.length.thinking_budget),
            "max_staleness": float(self.staleness.max_staleness),
        }

    def dump(self) -> str:
        """YAML with every default filled in; `load_recipe` reads it back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def digest(self) -> str:
        """Hash that two equal recipes share."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]


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


def load_recipe(path: Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """Read a recipe; `overrides` maps dotted keys to YAML values and is checked like the file.

    Raises:
        FileError: file or override does not make a recipe.
    """
    recipe = load(path, Recipe)
    if not overrides:
        return recipe
    data = recipe.model_dump(mode="json")
    for key, text in overrides.items():
        _assign(data, key, text)
    return parse(yaml.safe_dump(data, sort_keys=False), Recipe, name=f"{path} with --set {' '.join(overrides)}")


def _assign(data: dict[str, Any], key: str, text: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise FileError(f"--set {key}: {parent!r} is a single value and has no keys")
        data = inner
    try:
        data[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise FileError(f"--set {key}: {text!r} is not a YAML value") from None
